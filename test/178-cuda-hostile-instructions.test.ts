// What a stranger may write into an instruction list, on the CUDA backend: the CPU's kernels refuse what is wrong about
// operands and attributes, the device's what is wrong about contents.
import './support/cuda_host.js'
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { addon } from '../lib/native.js'

const run = promisify(execFile)
const script = fileURLToPath(new URL('support/hostile_child.js', import.meta.url))
const rounds = '80'

test('hostile instructions for CUDA kernels are refused or run', async (t) => {
  const operators = addon.cudaInfo().operators.join(',')
  try {
    await run(process.execPath, [script, operators, rounds, 'cuda'], { timeout: 240_000, maxBuffer: 2 ** 28 })
    t.pass()
  } catch (error) {
    const { stdout = '', stderr = '', signal } = error as { stdout?: string; stderr?: string; signal?: string }
    t.fail(`${signal ?? 'failed'} at ${stdout.trimEnd().split('\n').at(-1)}\n${stderr}`)
  }
})
