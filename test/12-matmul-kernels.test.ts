// Matrix products and the fused loss of the native core, against plain loops in double precision.
import test, { type ExecutionContext } from 'ava'
import { HeddleError, type HeddleErrorCode } from '../lib/errors.js'
import { addon, type NativeTensor } from '../lib/native.js'
import { randomNumbers } from './random_numbers.js'
import { type Attribute, type Buffer as Declaration, encode } from './support/instruction_list.js'

type Values = Float32Array | Int32Array
type Precision = 'f32' | 'bf16'

interface Argument {
  readonly shape: readonly number[]
  readonly values: Values
  /** A bound tensor that nothing writes: the kernel may pack it. */
  readonly frozen?: boolean
}

interface Call {
  readonly op: string
  readonly inputs: readonly (Argument | null)[]
  readonly outputs: readonly (readonly number[] | null)[]
  readonly attributes?: readonly (readonly [string, Attribute])[]
}

interface MatmulCase {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly leading?: readonly number[]
  readonly batchedB?: boolean
  readonly transposeA?: boolean
  readonly transposeB?: boolean
  readonly alpha?: number
  readonly addend?: 'full' | 'bias'
  readonly precision?: Precision
  readonly frozen?: boolean
}

const count = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1)

const random = (shape: readonly number[], seed: number): Argument => ({
  shape,
  values: randomNumbers(count(shape), seed),
})

const nativeTensor = ({ shape, values }: Argument): NativeTensor =>
  addon.tensorFromData(values instanceof Int32Array ? 'i32' : 'f32', shape, values)

/** Runs one instruction; an output that was not wanted comes back empty. */
async function run({ op, inputs, outputs, attributes = [] }: Call): Promise<Float32Array[]> {
  const buffers: Declaration[] = []
  const declare = (declaration: Declaration): number => buffers.push(declaration) - 1
  const given: NativeTensor[] = []
  const bound: NativeTensor[] = []
  const inputIds = inputs.map((argument) => {
    if (argument === null) return null
    const list = argument.frozen ? bound : given
    const index = list.push(nativeTensor(argument)) - 1
    const dtype = argument.values instanceof Int32Array ? 'i32' : 'f32'
    return declare({ kind: argument.frozen ? 'bound' : 'input', dtype, shape: argument.shape, index })
  })
  let wanted = 0
  const outputIds = outputs.map((shape) => (shape ? declare({ kind: 'output', shape, index: wanted++ }) : null))
  const bytes = encode({ buffers, instructions: [{ op, inputs: inputIds, outputs: outputIds, attributes }] })
  const program = await addon.compile(bytes, bound)
  const results = await program.run(given)
  const read = await Promise.all(results.map(async (result) => new Float32Array(await addon.tensorData(result))))
  return outputs.map((shape) => (shape ? (read.shift() as Float32Array) : new Float32Array(0)))
}

/** Nearest bf16, ties to even. */
function rounded(value: number): number {
  const float = Float32Array.of(value)
  const bits = new Uint32Array(float.buffer)
  bits[0] = ((bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) & 0xffff0000) >>> 0
  return float[0]!
}

const operand = (values: Values, precision: Precision): Float64Array =>
  Float64Array.from(values, precision === 'bf16' ? rounded : (value) => value)

function matmulCall(options: MatmulCase): Call {
  const { m, n, k, leading = [], batchedB = false, transposeA = false, transposeB = false, alpha = 1 } = options
  const a = random([...leading, ...(transposeA ? [k, m] : [m, k])], 1)
  const b = random([...(batchedB ? leading : []), ...(transposeB ? [n, k] : [k, n])], 2)
  const shape = [...leading, m, n]
  const c = options.addend && random(options.addend === 'full' ? shape : [n], 3)
  return {
    op: 'matmul',
    inputs: [a, { ...b, frozen: options.frozen ?? false }, ...(c ? [c] : [])],
    outputs: [shape],
    attributes: [
      ['transpose_a', Number(transposeA)],
      ['transpose_b', Number(transposeB)],
      ...(alpha === 1 ? [] : [['alpha', alpha] as const]),
      ['precision', options.precision ?? 'f32'],
    ],
  }
}

function matmulReference(options: MatmulCase, call: Call): Float64Array {
  const { m, n, k, leading = [], batchedB, transposeA, transposeB, alpha = 1, addend, precision = 'f32' } = options
  const [a, b] = call.inputs.map((argument) => operand(argument!.values, precision))
  const c = call.inputs[2]?.values
  const y = new Float64Array(count(leading) * m * n)
  for (let item = 0; item < count(leading); ++item)
    for (let i = 0; i < m; ++i)
      for (let j = 0; j < n; ++j) {
        let sum = 0
        for (let l = 0; l < k; ++l) {
          const left = a![item * m * k + (transposeA ? l * m + i : i * k + l)]!
          const right = b![(batchedB ? item * k * n : 0) + (transposeB ? j * k + l : l * n + j)]!
          sum += left * right
        }
        const at = (item * m + i) * n + j
        y[at] = alpha * sum + (c ? c[addend === 'full' ? at : j]! : 0)
      }
  return y
}

function close(t: ExecutionContext, got: Float32Array | undefined, expected: Float64Array, tolerance: number) {
  t.is(got?.length, expected.length)
  const scale = Math.max(1, ...expected.map(Math.abs))
  const worst = expected.findIndex((value, i) => !(Math.abs(got![i]! - value) <= tolerance * scale))
  t.is(worst, -1, `element ${worst}: ${got?.[worst]} for ${expected[worst]}`)
}

async function agrees(t: ExecutionContext, options: MatmulCase) {
  const call = matmulCall(options)
  const [y] = await run(call)
  close(t, y, matmulReference(options, call), 3e-6)
}

const refused = async (t: ExecutionContext, code: HeddleErrorCode, call: Call) => {
  const error = await t.throwsAsync(run(call))
  t.true(error instanceof HeddleError, String(error))
  t.is((error as HeddleError).code, code, String(error))
}

const sides = [false, true]

for (const frozen of sides)
  for (const precision of ['f32', 'bf16'] as const) {
    const form = `${precision}${frozen ? ', frozen b' : ''}`

    test(`matmul (${form}) takes either side transposed, at sizes that fill no tile`, async (t) => {
      for (const transposeA of sides)
        for (const transposeB of sides)
          for (const [m, n, k] of [
            [1, 1, 1],
            [7, 33, 5],
            [70, 150, 65],
            [1, 300, 130],
          ] as const)
            await agrees(t, { m, n, k, transposeA, transposeB, precision, frozen })
    })

    test(`matmul (${form}) scales the product and adds a matrix or a row`, async (t) => {
      for (const addend of ['full', 'bias'] as const)
        for (const m of [1, 9, 200])
          for (const alpha of [1, 0.5]) await agrees(t, { m, n: 140, k: 20, addend, alpha, precision, frozen })
    })

    test(`matmul (${form}) flattens leading dimensions over a shared b`, async (t) => {
      for (const transposeA of sides)
        await agrees(t, { m: 5, n: 11, k: 6, leading: [2, 3], transposeA, precision, frozen })
    })
  }

test('sums over many rows with a thin side agree, whichever side it is', async (t) => {
  for (const precision of ['f32', 'bf16'] as const)
    for (const [wide, thin, k] of [
      [112, 16, 100],
      [208, 5, 64],
      [96, 40, 129],
    ] as const)
      for (const [m, n] of [
        [wide, thin],
        [thin, wide],
      ] as const)
        await agrees(t, { m, n, k, transposeA: true, precision, alpha: 0.5, addend: 'full' })
})

test('matmul multiplies batches item by item', async (t) => {
  for (const precision of ['f32', 'bf16'] as const)
    for (const transposeA of sides)
      for (const transposeB of sides)
        await agrees(t, { m: 9, n: 10, k: 7, leading: [3, 50], batchedB: true, transposeA, transposeB, precision })
  await agrees(t, { m: 300, n: 20, k: 40, leading: [3], batchedB: true, addend: 'full' })
})

test('an empty inner dimension leaves the addend', async (t) => {
  await agrees(t, { m: 3, n: 4, k: 0 })
  await agrees(t, { m: 3, n: 4, k: 0, addend: 'bias' })
})

test('many rows in several tiles agree with the same rows alone', async (t) => {
  const call = matmulCall({ m: 300, n: 192, k: 64, transposeB: true, frozen: true })
  const [all] = await run(call)
  for (const row of [0, 63, 64, 299]) {
    const a = call.inputs[0]!.values.slice(row * 64, (row + 1) * 64) as Values
    const [one] = await run({ ...call, inputs: [{ shape: [1, 64], values: a }, call.inputs[1]!], outputs: [[1, 192]] })
    close(t, one, Float64Array.from(all!.subarray(row * 192, (row + 1) * 192)), 1e-6)
  }
})

test('matmul refuses shapes that do not fit', async (t) => {
  const call = matmulCall({ m: 3, n: 4, k: 5 })
  const [a, b] = call.inputs
  await refused(t, 'ERR_HEDDLE_SHAPE', { ...call, inputs: [a!, random([6, 4], 2)] })
  await refused(t, 'ERR_HEDDLE_SHAPE', { ...call, outputs: [[4, 3]] })
  await refused(t, 'ERR_HEDDLE_SHAPE', { ...call, inputs: [a!, b!, random([3], 3)] })
  await refused(t, 'ERR_HEDDLE_SHAPE', { ...call, inputs: [random([5], 1), b!] })
  await refused(t, 'ERR_HEDDLE_ARGUMENT', { ...call, attributes: [['precision', 'f16']] })
})

interface LossCase {
  readonly x: Argument
  readonly w: Argument
  readonly targets: Argument
  readonly g: Argument
}

function lossCase(n: number, d: number, v: number, frozen: boolean): LossCase {
  const targets = Int32Array.from(randomNumbers(n, 5), (value, i) =>
    i % 3 === 1 ? -100 : Math.floor(((value + 1) / 2) * v),
  )
  return {
    x: random([n, d], 1),
    w: { ...random([v, d], 2), frozen },
    targets: { shape: [n], values: targets },
    g: random([n], 4),
  }
}

/** nll, lse, d sum(nll) / dx, and the gradients of sum(g * nll). */
function lossReference({ x, w, targets, g }: LossCase, precision: Precision) {
  const [n, d] = x.shape as [number, number]
  const v = w.shape[0]!
  const xs = operand(x.values, precision)
  const ws = operand(w.values, precision)
  const zeros = (size: number) => new Float64Array(size)
  const result = { nll: zeros(n), lse: zeros(n), dx: zeros(n * d), weightedDx: zeros(n * d), dw: zeros(v * d) }
  for (let i = 0; i < n; ++i) {
    const target = targets.values[i]!
    if (target < 0) continue
    const row = xs.subarray(i * d, (i + 1) * d)
    const logits = Array.from({ length: v }, (_, j) => row.reduce((sum, value, l) => sum + value * ws[j * d + l]!, 0))
    const top = Math.max(...logits)
    const lse = top + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0))
    result.lse[i] = lse
    result.nll[i] = lse - logits[target]!
    logits.forEach((logit, j) => {
      const p = Math.exp(logit - lse) - Number(j === target)
      for (let l = 0; l < d; ++l) {
        result.dx[i * d + l]! += p * ws[j * d + l]!
        result.weightedDx[i * d + l]! += g.values[i]! * p * ws[j * d + l]!
        result.dw[j * d + l]! += g.values[i]! * p * row[l]!
      }
    })
  }
  return result
}

for (const precision of ['f32', 'bf16'] as const)
  for (const frozen of sides)
    test(`linear_cross_entropy and its vjp (${precision}${frozen ? ', frozen w' : ''}) agree with the definition`, async (t) => {
      const attributes = [['precision', precision]] as const
      // Probabilities are rounded to bf16 before they meet w and x.
      const gradientTolerance = precision === 'bf16' ? 8e-3 : 1e-5
      for (const [n, d, v] of [
        [1, 3, 1],
        [5, 8, 40],
        [150, 12, 700],
      ] as const) {
        const given = lossCase(n, d, v, frozen)
        const expected = lossReference(given, precision)
        const { x, w, targets, g } = given
        const inputs = [x, w, targets]
        const forward = await run({ op: 'linear_cross_entropy', inputs, outputs: [[n], [n], [n, d]], attributes })
        close(t, forward[0], expected.nll, 1e-5)
        close(t, forward[1], expected.lse, 1e-5)
        close(t, forward[2], expected.dx, gradientTolerance)
        const lse = { shape: [n], values: forward[1]! }
        const backward = { op: 'linear_cross_entropy_vjp', inputs: [...inputs, lse, g], attributes }
        const both = await run({
          ...backward,
          outputs: [
            [n, d],
            [v, d],
          ],
        })
        close(t, both[0], expected.weightedDx, gradientTolerance)
        close(t, both[1], expected.dw, gradientTolerance)
        const [, onlyDw] = await run({ ...backward, outputs: [null, [v, d]] })
        t.deepEqual(onlyDw, both[1])
      }
    })

for (const precision of ['f32', 'bf16'] as const)
  test(`linear_cross_entropy (${precision}) agrees over many rows and a head of bf16 numbers, which is kept compact`, async (t) => {
    const [n, d, v] = [1030, 8, 1100]
    const { x, w, targets, g } = lossCase(n, d, v, true)
    const head = { ...w, values: Float32Array.from(w.values, rounded) }
    const expected = lossReference({ x, w: head, targets, g }, precision)
    const [nll, lse, dx] = await run({
      op: 'linear_cross_entropy',
      inputs: [x, head, targets],
      outputs: [[n], [n], [n, d]],
      attributes: [['precision', precision]],
    })
    close(t, nll, expected.nll, 1e-5)
    close(t, lse, expected.lse, 1e-5)
    close(t, dx, expected.dx, precision === 'bf16' ? 8e-3 : 1e-5)
  })

test('the loss does not overflow on large logits', async (t) => {
  const x = { shape: [2, 1], values: Float32Array.of(1000, -1000) }
  const w = { shape: [3, 1], values: Float32Array.of(1, 0, -1) }
  const targets = { shape: [2], values: Int32Array.of(0, 0) }
  const outputs = [[2], [2], [2, 1]]
  const [nll, lse, dx] = await run({ op: 'linear_cross_entropy', inputs: [x, w, targets], outputs })
  t.deepEqual([...nll!, ...lse!, ...dx!], [0, 2000, 1000, 1000, 0, -2])
})

test('rows that are ignored have no loss and no gradient', async (t) => {
  const { x, w, g } = lossCase(4, 3, 5, false)
  const targets = { shape: [4], values: Int32Array.of(-100, -100, -100, -100) }
  const inputs = [x, w, targets]
  const forward = await run({ op: 'linear_cross_entropy', inputs, outputs: [[4], [4], [4, 3]] })
  const lse = { shape: [4], values: forward[1]! }
  const backward = await run({
    op: 'linear_cross_entropy_vjp',
    inputs: [...inputs, lse, g],
    outputs: [
      [4, 3],
      [5, 3],
    ],
  })
  for (const result of [forward[0], forward[2], ...backward]) t.true(result!.every((value) => value === 0))
})

test('a target outside the vocabulary is refused', async (t) => {
  for (const target of [5, -1]) {
    const { x, w } = lossCase(2, 3, 5, true)
    const targets = { shape: [2], values: Int32Array.of(0, target) }
    const inputs = [x, w, targets]
    await refused(t, 'ERR_HEDDLE_ARGUMENT', { op: 'linear_cross_entropy', inputs, outputs: [[2], [2], null] })
  }
})

test('products and losses do not depend on the number of threads', async (t) => {
  const products = [
    matmulCall({ m: 200, n: 300, k: 70, transposeB: true, frozen: true, precision: 'bf16' }),
    matmulCall({ m: 16, n: 300, k: 200, transposeA: true }),
  ]
  const { x, w, targets } = lossCase(150, 12, 700, false)
  const loss: Call = { op: 'linear_cross_entropy', inputs: [x, w, targets], outputs: [[150], [150], [150, 12]] }
  const before = addon.threads()
  const results = []
  for (const threads of [1, 3]) {
    addon.setThreads(threads)
    results.push(await Promise.all([...products, loss].map(run)))
  }
  addon.setThreads(before)
  t.deepEqual(results[0], results[1])
})
