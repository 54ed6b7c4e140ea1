// The native side of programs: what an instruction list may say, how memory is planned, how runs behave.
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import { HeddleError, type HeddleErrorCode } from '../lib/errors.js'
import { addon, NativeAbort, type NativeTensor } from '../lib/native.js'
import { randomNumbers } from './random_numbers.js'
import {
  type Buffer as Declaration,
  encode,
  type Instruction,
  type Program,
  pointwise,
} from './support/instruction_list.js'

const f32 = (shape: readonly number[], values: readonly number[]): NativeTensor =>
  addon.tensorFromData('f32', shape, Float32Array.from(values))

const read = async (tensor: NativeTensor | undefined): Promise<number[]> => [
  ...new Float32Array(await addon.tensorData(tensor!)),
]

const rejects = async (t: ExecutionContext, code: HeddleErrorCode, call: () => Promise<unknown>, message?: RegExp) => {
  const error = await t.throwsAsync(call)
  t.true(error instanceof HeddleError, String(error))
  t.is((error as HeddleError).code, code, String(error))
  if (message) t.regex((error as HeddleError).message, message)
}

const input = (index: number, shape: readonly number[]): Declaration => ({ kind: 'input', index, shape })
const output = (index: number, shape: readonly number[]): Declaration => ({ kind: 'output', index, shape })
const bound = (index: number, shape: readonly number[]): Declaration => ({ kind: 'bound', index, shape })
const temp = (shape: readonly number[]): Declaration => ({ kind: 'temp', shape })
const alias = (of: number, shape: readonly number[]): Declaration => ({ kind: 'alias', index: of, shape })

/** y = x + x through one temp. */
const doubled: Program = {
  buffers: [input(0, [2, 3]), temp([2, 3]), output(0, [2, 3])],
  instructions: [pointwise('neg', [0], 1), pointwise('sub', [0, 1], 2)],
}

test('a program runs and gives its outputs', async (t) => {
  const program = await addon.compile(encode(doubled), [])
  const [y] = await program.run([f32([2, 3], [1, 2, 3, 4, 5, 6])])
  t.deepEqual(y?.shape, [2, 3])
  t.deepEqual(await read(y), [2, 4, 6, 8, 10, 12])
})

test('random bytes are refused', async (t) => {
  for (let round = 0; round < 300; ++round) {
    const bytes = Uint8Array.from(randomNumbers((round * 7) % 200, round), (value) => (value + 1) * 128)
    if (round % 2) bytes.set(encode(doubled).subarray(0, Math.min(8, bytes.length)))
    await t.throwsAsync(addon.compile(bytes, []), { instanceOf: HeddleError })
  }
})

test('a list that stops early is refused, wherever it stops', async (t) => {
  const bytes = encode(doubled)
  for (let length = 0; length < bytes.length; ++length)
    await rejects(t, 'ERR_HEDDLE_FORMAT', () => addon.compile(bytes.subarray(0, length), []))
})

test('a list with any one byte changed is refused or runs, and never crashes', async (t) => {
  const bytes = encode(doubled)
  const x = f32([2, 3], [1, 2, 3, 4, 5, 6])
  for (let at = 0; at < bytes.length; ++at)
    for (const flip of [1, 0x80, 0xff]) {
      const changed = Uint8Array.from(bytes)
      changed[at]! ^= flip
      try {
        await (await addon.compile(changed, [])).run([x])
      } catch (error) {
        t.true(error instanceof HeddleError, String(error))
      }
    }
  t.pass()
})

const refused: Record<string, Program> = {
  'a temp read before it is written': {
    buffers: [temp([2]), output(0, [2])],
    instructions: [pointwise('neg', [0], 1)],
  },
  'a write to an input': {
    buffers: [input(0, [2]), output(0, [2])],
    instructions: [pointwise('neg', [0], 1), pointwise('neg', [1], 0)],
  },
  'a write to an input through an alias': {
    buffers: [input(0, [2]), output(0, [2]), alias(0, [1, 2])],
    instructions: [pointwise('neg', [0], 1), pointwise('neg', [1], 2)],
  },
  'an output that nothing writes': { buffers: [input(0, [2]), output(0, [2])], instructions: [] },
  'a buffer id out of range': { buffers: [output(0, [2])], instructions: [pointwise('neg', [7], 0)] },
  'an alias of an alias': {
    buffers: [input(0, [2]), alias(0, [1, 2]), alias(1, [2, 1]), output(0, [2])],
    instructions: [pointwise('neg', [0], 3)],
  },
  'an alias of a later buffer': { buffers: [alias(1, [2]), output(0, [2])], instructions: [pointwise('neg', [0], 1)] },
  'an alias of another size': {
    buffers: [input(0, [2]), alias(0, [3]), output(0, [3])],
    instructions: [pointwise('neg', [1], 2)],
  },
  'two buffers for one input': {
    buffers: [input(0, [2]), input(0, [2]), output(0, [2])],
    instructions: [pointwise('add', [0, 1], 2)],
  },
  'a gap in the outputs': { buffers: [input(0, [2]), output(1, [2])], instructions: [pointwise('neg', [0], 1)] },
  'two buffers for one bound tensor': {
    buffers: [bound(0, [2]), bound(0, [2]), output(0, [2])],
    instructions: [pointwise('add', [0, 1], 2)],
  },
  'a bound tensor that was not given': {
    buffers: [bound(3, [2]), output(0, [2])],
    instructions: [pointwise('neg', [0], 1)],
  },
  'an unknown operator': {
    buffers: [input(0, [2]), output(0, [2])],
    instructions: [{ op: 'no such thing', inputs: [0], outputs: [1] }],
  },
  'an attribute twice': {
    buffers: [input(0, [2]), output(0, [2])],
    instructions: [
      { ...pointwise('neg', [0], 1), attributes: [...pointwise('neg', [0], 1).attributes!, ['ops', ['neg']]] },
    ],
  },
  'a negative dimension': { buffers: [input(0, [-1]), output(0, [2])], instructions: [] },
  'more elements than memory can address': { buffers: [input(0, [2 ** 40, 2 ** 40])], instructions: [] },
  'a rank of 9': { buffers: [input(0, Array(9).fill(1))], instructions: [] },
}

for (const [what, program] of Object.entries(refused))
  test(`refused: ${what}`, async (t) => {
    await t.throwsAsync(addon.compile(encode(program), [f32([2], [1, 2])]), { instanceOf: HeddleError })
  })

test('refused: bytes after the end', async (t) => {
  await rejects(t, 'ERR_HEDDLE_FORMAT', () => addon.compile(Uint8Array.from([...encode(doubled), 0]), []))
})

test('refused: a count of billions, before anything is allocated for it', async (t) => {
  const bytes = encode(doubled)
  new DataView(bytes.buffer).setUint32(8, 0xffffffff, true)
  await rejects(t, 'ERR_HEDDLE_FORMAT', () => addon.compile(bytes, []))
})

test('a failure names the instruction, what was expected and what came', async (t) => {
  const program = refused['a temp read before it is written']!
  await rejects(t, 'ERR_HEDDLE_FORMAT', () => addon.compile(encode(program), []), /instruction 0 \(elementwise\)/)
})

test('a failure carries the stack of the call', async (t) => {
  async function whoAsked() {
    await addon.compile(new Uint8Array(3), [])
  }
  const error = await t.throwsAsync(whoAsked)
  t.regex(error?.stack ?? '', /whoAsked/)
})

test('temporaries whose lives do not overlap share memory', async (t) => {
  const elements = 1 << 18
  const length = 20
  const buffers = [input(0, [elements]), ...Array.from({ length }, () => temp([elements])), output(0, [elements])]
  const instructions = Array.from({ length: length + 1 }, (_, i) => pointwise('neg', [i], i + 1))
  const program = await addon.compile(encode({ buffers, instructions }), [])
  t.is(program.arenaBytes, 2 * elements * 4)
  t.true(program.peakBytes >= program.arenaBytes + elements * 4)
})

test('temporaries that live at once do not share memory', async (t) => {
  const width = 6
  const buffers: Declaration[] = [input(0, [4]), ...Array.from({ length: width }, () => temp([4])), output(0, [4])]
  const negations = Array.from({ length: width }, (_, i) => pointwise(i % 2 ? 'neg' : 'square', [0], i + 1))
  const sum: Instruction = {
    op: 'elementwise',
    inputs: Array.from({ length: width }, (_, i) => i + 1),
    outputs: [width + 1],
    attributes: [
      ['ops', ['add', 'add', 'add', 'add', 'add']],
      ['operands', [0, 1, 6, 2, 7, 3, 8, 4, 9, 5]],
      ['constants', []],
      ['results', [10]],
    ],
  }
  const program = await addon.compile(encode({ buffers, instructions: [...negations, sum] }), [])
  const [y] = await program.run([f32([4], [1, 2, 3, 4])])
  t.deepEqual(await read(y), [0, 6, 18, 36])
})

test('an alias is the same memory in another shape', async (t) => {
  const program = await addon.compile(
    encode({
      buffers: [input(0, [2, 3]), temp([2, 3]), alias(1, [6]), output(0, [6])],
      instructions: [pointwise('neg', [0], 1), pointwise('neg', [2], 3)],
    }),
    [],
  )
  const [y] = await program.run([f32([2, 3], [1, 2, 3, 4, 5, 6])])
  t.deepEqual(await read(y), [1, 2, 3, 4, 5, 6])
})

test('a kernel works in place where it says that it can', async (t) => {
  const program = await addon.compile(
    encode({
      buffers: [input(0, [3]), temp([3]), output(0, [3])],
      instructions: [pointwise('square', [0], 1), pointwise('neg', [1], 1), pointwise('neg', [1], 2)],
    }),
    [],
  )
  const [y] = await program.run([f32([3], [1, 2, 3])])
  t.deepEqual(await read(y), [1, 4, 9])
})

test('refused: in place where the kernel does not allow it', async (t) => {
  const program: Program = {
    buffers: [input(0, [2, 2]), temp([2, 2]), output(0, [2, 2])],
    instructions: [
      pointwise('neg', [0], 1),
      { op: 'transpose', inputs: [1], outputs: [1], attributes: [['permutation', [1, 0]]] },
      pointwise('neg', [1], 2),
    ],
  }
  await rejects(t, 'ERR_HEDDLE_FORMAT', () => addon.compile(encode(program), []), /overlap/)
})

test('refused: two outputs of one instruction in one buffer', async (t) => {
  const both: Instruction = {
    op: 'elementwise',
    inputs: [0],
    outputs: [1, 1],
    attributes: [
      ['ops', ['neg', 'square']],
      ['operands', [0, 0]],
      ['constants', []],
      ['results', [1, 2]],
    ],
  }
  const program = { buffers: [input(0, [2]), output(0, [2])], instructions: [both] }
  await rejects(t, 'ERR_HEDDLE_FORMAT', () => addon.compile(encode(program), []))
})

test('an instruction may leave out an output that nobody wants', async (t) => {
  const buffers = [input(0, [1, 2]), bound(0, [2]), output(0, [1, 2])]
  const norm: Instruction = { op: 'rms_norm', inputs: [0, 1], outputs: [2, null], attributes: [['eps', 0.5]] }
  const program = await addon.compile(encode({ buffers, instructions: [norm] }), [f32([2], [1, 1])])
  const [y] = await program.run([f32([1, 2], [1, 1])])
  for (const value of await read(y)) t.true(Math.abs(value - 1 / Math.sqrt(1.5)) < 1e-6)
})

/** state = state + x, in place; y = the new state. */
const accumulate: Program = {
  buffers: [input(0, [4]), bound(0, [4]), output(0, [4])],
  instructions: [pointwise('add', [1, 0], 1), pointwise('neg', [1], 2)],
}

test('state is updated in place, and runs of one program queue up', async (t) => {
  const state = addon.tensorZeros('f32', [4])
  const program = await addon.compile(encode(accumulate), [state])
  const one = f32([4], [1, 2, 3, 4])
  const runs = await Promise.all(Array.from({ length: 20 }, () => program.run([one])))
  t.deepEqual(await read(state), [20, 40, 60, 80])
  t.deepEqual(
    (await Promise.all(runs.map(async ([y]) => (await read(y))[0]))).map(Number),
    Array.from({ length: 20 }, (_, i) => -(i + 1)),
  )
})

test('refused: an input that is also the state of the program', async (t) => {
  const state = addon.tensorZeros('f32', [4])
  const program = await addon.compile(encode(accumulate), [state])
  await rejects(t, 'ERR_HEDDLE_ARGUMENT', () => program.run([state]))
})

test('refused: state that is bound a second time', async (t) => {
  const state = addon.tensorZeros('f32', [4])
  const program: Program = {
    buffers: [bound(0, [4]), bound(1, [4]), output(0, [4])],
    instructions: [pointwise('neg', [1], 0), pointwise('neg', [0], 2)],
  }
  await rejects(t, 'ERR_HEDDLE_ARGUMENT', () => addon.compile(encode(program), [state, state]))
})

test('a weight that another program updates is packed anew', async (t) => {
  const weight = f32([2, 2], [1, 0, 0, 1])
  const product: Program = {
    buffers: [input(0, [1, 2]), bound(0, [2, 2]), output(0, [1, 2])],
    instructions: [{ op: 'matmul', inputs: [0, 1, null], outputs: [2], attributes: [] }],
  }
  const double: Program = { buffers: [bound(0, [2, 2])], instructions: [pointwise('add', [0, 0], 0)] }
  const multiply = await addon.compile(encode(product), [weight])
  const update = await addon.compile(encode(double), [weight])
  const x = f32([1, 2], [3, 4])
  t.deepEqual(await read((await multiply.run([x]))[0]), [3, 4])
  await update.run([])
  t.deepEqual(await read((await multiply.run([x]))[0]), [6, 8])
  addon.tensorWrite(weight, Float32Array.from([0, 1, 1, 0]))
  t.deepEqual(await read((await multiply.run([x]))[0]), [4, 3])
})

test('wrong inputs are refused', async (t) => {
  const program = await addon.compile(encode(doubled), [])
  await rejects(t, 'ERR_HEDDLE_ARGUMENT', () => program.run([]))
  await rejects(t, 'ERR_HEDDLE_SHAPE', () => program.run([f32([3, 2], [1, 2, 3, 4, 5, 6])]))
  await rejects(t, 'ERR_HEDDLE_DTYPE', () => program.run([addon.tensorZeros('i32', [2, 3])]))
  const gone = f32([2, 3], [1, 2, 3, 4, 5, 6])
  gone.dispose()
  await rejects(t, 'ERR_HEDDLE_ARGUMENT', () => program.run([gone]))
  await rejects(t, 'ERR_HEDDLE_ARGUMENT', () => program.run([{} as NativeTensor]))
  await rejects(t, 'ERR_HEDDLE_ARGUMENT', () => program.run([program as unknown as NativeTensor]))
})

test('a disposed program refuses to run, after the runs that were asked for have ended', async (t) => {
  const program = await addon.compile(encode(doubled), [])
  const run = program.run([f32([2, 3], [1, 2, 3, 4, 5, 6])])
  program.dispose()
  t.deepEqual(await read((await run)[0]), [2, 4, 6, 8, 10, 12])
  await rejects(t, 'ERR_HEDDLE_ARGUMENT', () => program.run([]))
})

const long = (): Program => {
  const steps = 2000
  return {
    buffers: [input(0, [1 << 18]), temp([1 << 18]), temp([1 << 18]), output(0, [1 << 18])],
    instructions: [
      pointwise('neg', [0], 1),
      ...Array.from({ length: steps }, (_, i) => pointwise('exp', [1 + (i % 2)], 1 + ((i + 1) % 2))),
      pointwise('neg', [1], 3),
    ],
  }
}

test('an abort stops a run between two instructions', async (t) => {
  const program = await addon.compile(encode(long()), [])
  const abort = new NativeAbort()
  const run = program.run([addon.tensorZeros('f32', [1 << 18])], abort)
  setTimeout(() => abort.abort(), 5)
  await rejects(t, 'ERR_HEDDLE_ABORTED', () => run)
  await rejects(t, 'ERR_HEDDLE_ABORTED', () => program.run([addon.tensorZeros('f32', [1 << 18])], abort))
})

test('profile counts calls and time per operator', async (t) => {
  const program = await addon.compile(encode(doubled), [])
  t.deepEqual(program.profile(), [])
  for (let i = 0; i < 3; ++i) await program.run([f32([2, 3], [1, 2, 3, 4, 5, 6])])
  const [entry, ...others] = program.profile()
  t.is(entry?.op, 'elementwise')
  t.is(entry?.calls, 6)
  t.true(entry!.seconds > 0)
  t.is(others.length, 0)
})

test.serial('results do not depend on the number of threads', async (t) => {
  const x = addon.tensorFromData('f32', [64, 1000], randomNumbers(64000, 7))
  const program = await addon.compile(
    encode({
      buffers: [input(0, [64, 1000]), output(0, [1000]), output(1, [64])],
      instructions: [
        { op: 'reduce_sum', inputs: [0], outputs: [1], attributes: [['axes', [0]]] },
        { op: 'reduce_sum', inputs: [0], outputs: [2], attributes: [['axes', [1]]] },
      ],
    }),
    [],
  )
  const before = addon.threads()
  const results: number[][] = []
  for (const count of [1, 2, 5]) {
    addon.setThreads(count)
    const [a, b] = await program.run([x])
    results.push([...(await read(a)), ...(await read(b))])
  }
  addon.setThreads(before)
  t.deepEqual(results[1], results[0])
  t.deepEqual(results[2], results[0])
})

test('random numbers are those of Philox 4x32-10', async (t) => {
  // The known answers of Random123's kat_vectors for counter 0 and key 0; f32 keeps the upper 24 bits.
  const answers = [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8].map((word) => (word >>> 8) / 2 ** 24)
  const program = await addon.compile(
    encode({
      buffers: [{ kind: 'input', index: 0, dtype: 'u32', shape: [2] }, output(0, [4])],
      instructions: [{ op: 'random_uniform', inputs: [0], outputs: [1], attributes: [['stream', 0]] }],
    }),
    [],
  )
  const [y] = await program.run([addon.tensorFromData('u32', [2], new Uint32Array(2))])
  t.deepEqual(await read(y), answers)
})

test.serial('tensors that nobody disposes are collected: V8 knows their size', async (t) => {
  const data = new Float32Array(1 << 20)
  const before = process.memoryUsage().rss
  let peak = 0
  for (let i = 0; i < 200; ++i) {
    addon.tensorFromData('f32', [data.length], data)
    await new Promise(setImmediate)
    peak = Math.max(peak, process.memoryUsage().rss - before)
  }
  t.true(peak < 100 * data.byteLength, `${peak} bytes of ${200 * data.byteLength}`)
})

test('sizes that no machine has are refused as out of memory', (t) => {
  const error = t.throws(() => addon.tensorZeros('f32', [2 ** 44]))
  t.is((error as HeddleError).code, 'ERR_HEDDLE_OOM')
})

const script = fileURLToPath(new URL('support/program_worker.js', import.meta.url))

test('the addon works in workers and is unloaded cleanly, also in the middle of a run', async (t) => {
  for (const mode of ['finish', 'terminate', 'finish', 'terminate']) {
    const worker = new Worker(script, { workerData: encode(mode === 'finish' ? doubled : long()) })
    const message = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    t.is(message, mode === 'finish' ? 'done' : 'running')
    if (mode === 'terminate') await worker.terminate()
  }
})

const run = promisify(execFile)

test('the process ends by itself when nothing runs, and at once when told to in the middle of a run', async (t) => {
  for (const mode of ['idle', 'exit']) {
    const { stdout } = await run(process.execPath, [script, mode], { timeout: 60_000 })
    t.is(stdout.trim(), mode === 'idle' ? 'done' : 'running')
  }
})
