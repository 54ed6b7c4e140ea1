// `npm run bench -- cuda` where there is no GPU: in the emulation everything that it would time runs at tiny shapes, so that
// its code is known to work; the numbers mean nothing there.
import './support/cuda_host.js'
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { bytesOf, casesAt } from '../bench/cuda/cases.js'
import { cards, multiprocessors, occupancy, residentBlocks, roofline } from '../bench/cuda/chips.js'
import { launchesOf } from '../bench/cuda/launches.js'
import { prepareCase } from '../bench/cuda/run_case.js'
import { addon } from '../lib/native.js'
import { emulated } from './support/cuda_host.js'

const run = promisify(execFile)
const bench = fileURLToPath(new URL('../bench/run.js', import.meta.url))

test('every operator with a CUDA kernel has a case, at full size and tiny', (t) => {
  const operators = [...addon.cudaInfo().operators].sort()
  for (const scale of ['full', 'tiny'] as const)
    t.deepEqual([...new Set(casesAt(scale).map(({ op }) => op))].sort(), operators)
})

test('all cases and both training steps run, and each gives a line and a time', async (t) => {
  const { stdout } = await run(process.execPath, [bench, 'cuda', 'all', '1', 'tiny'])
  const lines = stdout.trimEnd().split('\n')
  t.true(lines[0]!.startsWith(addon.cudaInfo().name))
  const { kernels, tokensPerSecond } = JSON.parse(lines.at(-1)!)
  t.deepEqual(
    Object.keys(kernels),
    casesAt('tiny').map(({ op, name }) => `${op} ${name}`),
  )
  t.true(Object.values(kernels).every((found) => Number.isFinite((found as { seconds: number }).seconds)))
  t.deepEqual(Object.keys(tokensPerSecond), ['tiny f32', 'tiny bf16'])
  t.is(lines.length, 1 + Object.keys(kernels).length + 2 + 1)
})

test('without a CUDA device it ends with what is missing', async (t) => {
  const error = await t.throwsAsync(
    run(process.execPath, [bench, 'cuda'], { env: { ...process.env, HEDDLE_CUDA_ADDON: '/nowhere/heddle_cuda.node' } }),
  )
  t.regex(error.message, /ERR_HEDDLE_DEVICE/)
  t.regex(
    error.message,
    /expected the CUDA addon at \/nowhere\/heddle_cuda.node, got none. Build it with `npm run build:cuda`/,
  )
})

test('the bytes of a case are those of its operands, unless it reads less of them', (t) => {
  const softmax = casesAt('full').find(({ op }) => op === 'softmax')!
  t.is(bytesOf(softmax), 2 * 4 * 4096 * 2048)
  const gather = casesAt('full').find(({ op }) => op === 'gather_rows')!
  t.is(bytesOf(gather), 4 * 4096 * (2 * 2048 + 1))
})

test('the roof is that of the bytes for a copy and that of the operations for a large product', (t) => {
  const a100 = cards[0]!
  t.deepEqual(roofline(a100, { flops: 0, bytes: 2039e9, unit: 'f32' }), { seconds: 1, bound: 'bytes' })
  t.deepEqual(roofline(a100, { flops: 312e12, bytes: 8, unit: 'bf16' }), { seconds: 1, bound: 'flops' })
})

// Worked out by hand from the limits in bench/cuda/chips.ts.
test('occupancy: threads, blocks, registers and shared memory each can be what there is too little of', (t) => {
  const [sm80, sm86] = [multiprocessors[0]!, multiprocessors[1]!]
  const block = { threads: 256, registersPerThread: 32, sharedBytes: 0 }
  t.is(occupancy(sm80, block), 1)
  t.is(occupancy(sm86, block), 1)
  t.is(residentBlocks(sm86, { ...block, threads: 32 }), 16)
  t.is(occupancy(sm80, { ...block, registersPerThread: 64 }), 0.5)
  t.is(residentBlocks(sm80, { ...block, registersPerThread: 255 }), 1)
  t.is(residentBlocks(sm80, { ...block, sharedBytes: 48 << 10 }), 3)
  t.is(residentBlocks(sm86, { ...block, sharedBytes: 100 << 10 }), 0)
})

const emulatedOnly = emulated ? test.serial : test.serial.skip

emulatedOnly('launches are written down with the names and shapes of kernels, and nothing runs', async (t) => {
  const softmax = casesAt('full').find(({ op }) => op === 'softmax')!
  const launches = await launchesOf(async () => {
    const { program, inputs, dispose } = await prepareCase(softmax, { filled: false })
    await program.run(inputs)
    dispose()
  })
  t.is(launches.length, 1)
  t.regex(launches[0]!.name, /softmax/)
  t.true(launches[0]!.blocks > 1 && launches[0]!.threads % 32 === 0)
})
