// Runs that a GPU has by heart (CUDA graphs), and what its own clock says about operators.

import test from 'ava'
import { onDevice } from '../lib/graph/device.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { program } from '../lib/graph/program.js'
import { addon, type NativeProgram, type NativeTensor } from '../lib/native.js'
import { tensor } from '../lib/tensor/tensor.js'
import { goldenLlama } from './golden.js'
import { randomTensor } from './random_numbers.js'
import { emulated, inject, objects } from './support/cuda_host.js'
import { type Buffer, encode, type Program, pointwise } from './support/instruction_list.js'
import { loraStep, syntheticBatch } from './support/lora_step.js'

const shape = [2, 3]
const input = (index: number): Buffer => ({ kind: 'input', index, shape })
const bound: Buffer = { kind: 'bound', index: 0, shape }

/** state += x; y = -state. */
const accumulate: Program = {
  buffers: [input(0), bound, { kind: 'output', index: 0, shape }],
  instructions: [pointwise('add', [1, 0], 1), pointwise('neg', [1], 2)],
}

const f32 = (...values: readonly number[]): NativeTensor =>
  addon.tensorFromData('f32', shape, Float32Array.from(values))
const numbers = async (x: NativeTensor | undefined): Promise<number[]> => [
  ...new Float32Array(await addon.tensorData(x!)),
]
const compile = (list: Program, state: readonly NativeTensor[], record = true): Promise<NativeProgram> =>
  addon.compile(encode(list), state, 'cuda', record)

/** Serial: failures are injected into the whole process, and addresses depend on what else it allocates. */
const emulatedOnly = emulated ? test.serial : test.serial.skip

test.serial('a program is replayed from its second run on, with the results of one that is not', async (t) => {
  const [recorded, plain] = [
    await compile(accumulate, [f32(0, 0, 0, 0, 0, 0)]),
    await compile(accumulate, [f32(0, 0, 0, 0, 0, 0)], false),
  ]
  const kept: NativeTensor[] = []
  for (let run = 1; run <= 4; ++run) {
    // Kept, so that inputs and outputs lie elsewhere at every run.
    const x = f32(run, 2, 3, 4, 5, 6 * run)
    const [[y], [expected]] = [await recorded.run([x]), await plain.run([x])]
    kept.push(x, y!, expected!)
    t.deepEqual(await numbers(y), await numbers(expected))
  }
  t.deepEqual(await numbers(kept[1]), [-1, -2, -3, -4, -5, -6])
  t.deepEqual([recorded.replays, plain.replays], [3, 0])
})

test.serial('a state that comes to lie elsewhere is recorded anew', async (t) => {
  const state = f32(0, 0, 0, 0, 0, 0)
  const step = await compile(accumulate, [state])
  const x = f32(1, 1, 1, 1, 1, 1)
  for (let run = 0; run < 2; ++run) await step.run([x])
  t.is(step.replays, 1)
  addon.tensorWrite(state, Float32Array.of(10, 20, 30, 40, 50, 60))
  // They take the memory that the state had.
  const others = [0, 1, 2, 3].map((value) => f32(value, value, value, value, value, value))
  const double = await addon.compile(
    encode({ buffers: [input(0), { kind: 'output', index: 0, shape }], instructions: [pointwise('neg', [0], 1)] }),
    [],
    'cuda',
  )
  for (const other of others) await double.run([other])
  t.deepEqual(await numbers((await step.run([x]))[0]), [-11, -21, -31, -41, -51, -61])
  t.deepEqual(await numbers((await step.run([x]))[0]), [-12, -22, -32, -42, -52, -62])
  t.deepEqual(await numbers((await step.run([x]))[0]), [-13, -23, -33, -43, -53, -63])
  t.true(step.replays >= 3)
  t.deepEqual(await numbers(state), [13, 23, 33, 43, 53, 63])
})

test.serial('what is wrong about contents ends a replay with its error, and the next one works', async (t) => {
  const list: Program = {
    buffers: [
      input(0),
      { kind: 'input', index: 1, dtype: 'i32', shape: [1] },
      { kind: 'output', index: 0, shape: [1, 3] },
    ],
    instructions: [{ op: 'gather_rows', inputs: [0, 1], outputs: [2] }],
  }
  const pick = await compile(list, [])
  const x = f32(1, 2, 3, 4, 5, 6)
  const row = (index: number) => addon.tensorFromData('i32', [1], Int32Array.of(index))
  for (const index of [0, 1, 0]) await pick.run([x, row(index)])
  await t.throwsAsync(pick.run([x, row(2)]), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: 'gather_rows: expected an index in [0, 2), got 2',
  })
  t.deepEqual(await numbers((await pick.run([x, row(1)]))[0]), [4, 5, 6])
  t.is(pick.replays, 3)
})

emulatedOnly('a launch that fails in a replay is an ERR_HEDDLE_DEVICE, and the next run works', async (t) => {
  const step = await compile(accumulate, [f32(0, 0, 0, 0, 0, 0)])
  const x = f32(1, 2, 3, 4, 5, 6)
  for (let run = 0; run < 2; ++run) await step.run([x])
  inject('launch')
  await t.throwsAsync(step.run([x]), {
    code: 'ERR_HEDDLE_DEVICE',
    message: /recording: .*cudaErrorLaunchOutOfResources/,
  })
  t.deepEqual(await numbers((await step.run([x]))[0]), [-3, -6, -9, -12, -15, -18])
  t.is(step.replays, 2)
})

emulatedOnly('what cannot be recorded is done one by one', async (t) => {
  const step = await compile(accumulate, [f32(0, 0, 0, 0, 0, 0)])
  const x = f32(1, 2, 3, 4, 5, 6)
  await step.run([x])
  inject('capture')
  for (let run = 0; run < 3; ++run) await step.run([x])
  t.deepEqual(await numbers((await step.run([x]))[0]), [-5, -10, -15, -20, -25, -30])
  t.is(step.replays, 0)
})

emulatedOnly('a disposed program has freed its recording', async (t) => {
  const state = f32(0, 0, 0, 0, 0, 0)
  const x = f32(1, 2, 3, 4, 5, 6)
  const once = async (runs: number): Promise<void> => {
    const step = await compile(accumulate, [state])
    for (let run = 0; run < runs; ++run) (await step.run([x]))[0]!.dispose()
    t.is(step.replays, Math.max(0, runs - 1))
    step.dispose()
  }
  await once(1)
  const before = await settled()
  await once(5)
  t.is(await settled(), before)
})

/** Programs are freed on another thread. */
async function settled(): Promise<number> {
  for (let last = objects(), same = 0; ; last = objects()) {
    await new Promise((resolve) => setTimeout(resolve, 1))
    same = objects() === last ? same + 1 : 0
    if (same === 20) return last
  }
}

/** A LoRA step with dropout, in three runs: losses, norms, and what the plan says. */
async function trained(): Promise<{ readonly results: unknown; readonly peakBytes: number }> {
  const network = await goldenLlama('tiny-llama')
  const { step, parameters } = await loraStep(network)
  const batch = syntheticBatch(2, 12, network.vocabularySize)
  const results: unknown[] = []
  for (const index of [1, 2, 3])
    results.push(await step.run({ batches: [batch], step: index, learningRate: 1e-2, seed: 3 }))
  const weights = await Promise.all(parameters.map(async (each) => [...((await each.data()) as Float32Array)]))
  return { results: [results, weights], peakBytes: step.plannedBytes }
}

test.serial('training steps are recorded, and train as if they were not, bit for bit', async (t) => {
  const recorded = await onDevice('cuda', trained)
  process.env.HEDDLE_CUDA_GRAPHS = '0'
  try {
    const plain = await onDevice('cuda', trained)
    t.deepEqual(recorded.results, plain.results)
    // The slots of a recording.
    t.true(recorded.peakBytes > plain.peakBytes)
  } finally {
    delete process.env.HEDDLE_CUDA_GRAPHS
  }
})

test.serial('operators are measured in runs that are to be profiled, and only there', async (t) => {
  const step = program((x) => mul(matmul(x!, x!), x!), { device: 'cuda', recorded: true })
  const x = randomTensor([40, 40], 1)
  for (let run = 0; run < 3; ++run) await step(x)
  t.deepEqual(step.profile(), [])
  const profiled = await step.run([x], { profiled: true })
  t.deepEqual([...(await profiled.data())], [...(await (await step(x)).data())])
  const [first, second, ...others] = step.profile()
  t.deepEqual([first!.op, first!.calls, second!.op, second!.calls, others.length], ['elementwise', 1, 'matmul', 1, 0])
  t.true(first!.seconds > 0 && second!.seconds > 0)
})

test.serial('switches of the environment are checked', (t) => {
  process.env.HEDDLE_CUDA_GRAPHS = 'yes'
  try {
    t.throws(() => program(() => tensor([1]) as never), {
      code: 'ERR_HEDDLE_ARGUMENT',
      message: 'HEDDLE_CUDA_GRAPHS: expected 0 or 1, got "yes"',
    })
  } finally {
    delete process.env.HEDDLE_CUDA_GRAPHS
  }
})
