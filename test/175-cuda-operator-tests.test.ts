// The tests of operators, linear algebra, structured matrices, models and adapters, with the CUDA backend in place of the CPU.
// On a GPU (`npm run test:cuda`) all of these files run, in the emulation a few of them: `npm run test:cuda -- --emulation`
// runs the others as well.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { emulated } from './support/cuda_host.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** What `npm test` has time for in the emulation. */
const quick = [
  '15-factorisations',
  '30-gradients',
  '31-program-cache',
  '33-activations-norms',
  '35-indexing-scans',
  '36-einsum',
  '37-differentiation',
  '38-recompute',
  '64-constant-folding',
]

const others = [
  '16-equations',
  '17-clusters-and-permutations',
  '32-low-rank-matmul',
  '34-convolutions',
  '40-llama',
  '41-lora',
  '48-attention-windows',
  '74-lora-properties',
  '100-chains',
  '101-structured-matrices',
  '102-projections',
  '103-replaced-linears',
  '105-sparse',
  '106-tucker',
  '107-structured-sparse-tucker',
  '121-ia3',
  '122-vera',
  '123-randlora',
  '126-oft',
  '135-flora',
  '136-monarch-adapter',
  '137-compacter',
  '150-paged-attention',
  '151-grouped-low-rank',
]

interface Outcome {
  readonly passed: number
  /** By title, what ava says about it. */
  readonly failures: ReadonlyMap<string, string>
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
      (error, out, told) => {
        const tests = [...out.matchAll(/^(not )?ok \d+ - (.*)$([\s\S]*?)(?=^(?:not )?ok \d+ - |^1\.\.|(?![\s\S]))/gm)]
        const failed = tests.filter(([, not]) => not)
        const failures = new Map(failed.map(([, , title, text]) => [title!, text!.slice(0, 2000)]))
        if (error && failures.size === 0) failures.set('the file', `${error.message}\n${told.slice(-2000)}`)
        resolve({ passed: tests.length - failed.length, failures })
      },
    )
  })
}

const all = !emulated || process.env.HEDDLE_CUDA_TESTS === 'all'

for (const file of all ? [...quick, ...others] : quick)
  test.serial(`${file} on a CUDA device`, async (t) => {
    t.timeout(1_800_000)
    const { passed, failures } = await run(file)
    t.deepEqual([...failures], [])
    t.true(passed > 0, 'no test of this file ran')
  })
