// The operators' own tests, with the CUDA backend in place of the CPU: whatever has all its kernels there must pass.
import './support/cuda_host.js'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** By file: how many of its tests need none of the kernels that are missing. */
const files: Readonly<Record<string, number>> = {
  '15-factorisations': 22,
  '30-gradients': 87,
  '31-program-cache': 4,
  '33-activations-norms': 59,
  '35-indexing-scans': 37,
  '36-einsum': 28,
  '37-differentiation': 14,
  '38-recompute': 5,
  '64-constant-folding': 3,
}

interface Outcome {
  readonly passed: number
  /** Of each failed test, what ava says about it. */
  readonly failures: readonly string[]
}

/** Runs a test file in an ava of its own, with every program on the device. */
function run(file: string): Promise<Outcome> {
  const ava = join(root, 'node_modules', 'ava', 'entrypoints', 'cli.mjs')
  const env = { ...process.env, HEDDLE_DEVICE: 'cuda' }
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [ava, '--tap', `dist/test/${file}.test.js`],
      { cwd: root, env, maxBuffer: 2 ** 27 },
      (_, out) => {
        const [, ...tests] = out.split(/^(?=(?:not )?ok \d+)/m)
        const failed = tests.filter((each) => each.startsWith('not ok'))
        resolve({ passed: tests.length - failed.length, failures: failed.map((text) => text.slice(0, 2000)) })
      },
    )
  })
}

for (const [file, least] of Object.entries(files))
  test.serial(`${file} on a CUDA device`, async (t) => {
    const { passed, failures } = await run(file)
    const wrong = failures.filter((text) => !text.includes('an operator that CUDA devices have a kernel for'))
    t.deepEqual(wrong, [])
    t.true(passed >= least, `${passed} tests passed, ${least} did before`)
  })
