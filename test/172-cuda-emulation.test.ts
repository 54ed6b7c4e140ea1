// The emulation in which CUDA kernels run without a GPU: sound kernels run, and what CUDA leaves undefined is found.
import { execFile } from 'node:child_process'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { addonPath } from '../lib/native.js'

const run = promisify(execFile)
const program = join(dirname(addonPath()), 'heddle_cuda_emulation')

const outcome = async (kernel: string, order = 'forward'): Promise<string> => {
  const { stdout } = await run(program, [kernel], { env: { ...process.env, HEDDLE_CUDA_HOST_ORDER: order } })
  return stdout.trimEnd()
}

const all = (value: (thread: number) => number): string =>
  `ran ${Array.from({ length: 64 }, (_, i) => value(i)).join(' ')}`

const sound: Readonly<Record<string, string>> = {
  barrier: all((i) => (i + 1) % 64),
  'warp barrier': all((i) => i - (i % 32) + ((i + 1) % 32)),
  atomic: all(() => 64),
  sum: all(() => (63 * 64) / 2),
}

for (const [kernel, expected] of Object.entries(sound))
  test(`sound, in either order: ${kernel}`, async (t) => {
    t.is(await outcome(kernel), expected)
    t.is(await outcome(kernel, 'reverse'), expected)
  })

const defects: Readonly<Record<string, RegExp>> = {
  'no barrier': /expected a barrier between two threads that share memory|written before it is read/,
  'no warp barrier': /expected a barrier between two threads that share memory|written before it is read/,
  'write after read':
    /expected a barrier between two threads that share memory, got thread \d+ writing what thread \d+ has read/,
  'read of nothing': /expected shared memory that was written before it is read/,
  index: /expected an index below 64, got 64/,
  'dynamic memory': /expected aligned bytes within the 0 of the launch, got 256 from byte 0/,
  divergence:
    /expected threads that all meet the same barrier, got 63 at a barrier of the block and 1 at one of their warp/,
  shuffle: /expected lanes that still run, got a mask with one that has ended/,
}

for (const [kernel, message] of Object.entries(defects))
  test(`found: ${kernel}`, async (t) => t.regex(await outcome(kernel), message))
