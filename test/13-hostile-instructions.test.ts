// What a stranger may write into an instruction list, kernel by kernel: wrong shapes, dtypes, attributes, operand
// counts and contents are refused or run, and never crash the process.
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { kernels } from './support/kernel_calls.js'

const run = promisify(execFile)
const script = fileURLToPath(new URL('support/hostile_child.js', import.meta.url))
const rounds = '160'

for (const kernel of Object.keys(kernels))
  test(`hostile instructions for ${kernel} are refused or run`, async (t) => {
    await t.notThrowsAsync(async () => {
      try {
        await run(process.execPath, [script, kernel, rounds], { timeout: 60_000, maxBuffer: 2 ** 26 })
      } catch (error) {
        const { stdout = '', stderr = '', signal } = error as { stdout?: string; stderr?: string; signal?: string }
        throw new Error(`${signal ?? 'failed'} at ${stdout.trimEnd().split('\n').at(-1)}\n${stderr}`)
      }
    })
  })
