// Low-rank updates of which every row has its own: the dense product, row by row, and the same bits whatever the
// neighbours and the threads.
import test from 'ava'
import fc from 'fast-check'
import { add } from '../lib/graph/ops/elementwise.js'
import { groupedLowRank } from '../lib/graph/ops/grouped_low_rank.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { addon } from '../lib/native.js'
import { type Tensor, tensor, write, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers, tensorOf } from './random_numbers.js'

interface Pools {
  readonly inner: number
  readonly out: number
  readonly rows: number
  readonly a: Tensor
  readonly b: Tensor
}

interface Row {
  readonly first: number
  readonly rank: number
  readonly scale: number
}

const numbers = async (x: Tensor): Promise<Float32Array> => (await x.data()) as Float32Array

function poolsOf(inner: number, out: number, rows: number, dtypes: readonly ['f32' | 'bf16', 'f32' | 'bf16']): Pools {
  const a = tensorOf(randomNumbers(rows * inner, 1), [rows, inner], dtypes[0])
  return { inner, out, rows, a, b: tensorOf(randomNumbers(rows * out, 2), [rows, out], dtypes[1]) }
}

const operandsOf = (rows: readonly Row[]): readonly [Tensor, Tensor] => [
  tensor(Int32Array.from(rows.flatMap(({ first, rank }) => [first, rank])), [rows.length, 2]),
  tensor(
    rows.map(({ scale }) => scale),
    [rows.length],
  ),
]

async function grouped({ inner, out, a, b }: Pools, rows: readonly Row[], y: Float32Array, x: Float32Array) {
  const run = program((y, x, ranges, scales) =>
    groupedLowRank(y!, x!, read(a), read(b), { ranges: ranges!, scales: scales! }),
  )
  const result = await run(tensor(y, [rows.length, out]), tensor(x, [rows.length, inner]), ...operandsOf(rows))
  run.dispose()
  return numbers(result)
}

/** What a tensor holds, in f64. */
const wide = async (x: Tensor): Promise<Float64Array> =>
  Float64Array.from(await numbers(await program((each) => add(each!, 0))(x)))

/** The same in f64, element by element. */
async function dense({ inner, out, a, b }: Pools, rows: readonly Row[], y: Float32Array, x: Float32Array) {
  const [wideA, wideB] = [await wide(a), await wide(b)]
  return rows.flatMap(({ first, rank, scale }, i) => {
    const result = Array.from({ length: out }, (_, o) => y[i * out + o]!)
    for (let j = first; j < first + rank; j += 1) {
      let z = 0
      for (let k = 0; k < inner; k += 1) z += x[i * inner + k]! * wideA[j * inner + k]!
      for (let o = 0; o < out; o += 1) result[o]! += scale * z * wideB[j * out + o]!
    }
    return result
  })
}

const dtype = fc.constantFrom<'f32' | 'bf16'>('f32', 'bf16')
/** Rows in runs of one adapter each, some without. */
const runsArbitrary = fc.array(
  fc.record({
    count: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 40 })),
    first: fc.integer({ min: 0, max: 20 }),
    rank: fc.constantFrom(0, 1, 3, 4, 8, 17, 20),
    scale: fc.constantFrom(1, -0.5, 0),
  }),
  { minLength: 1, maxLength: 6 },
)

test('any rows with any factors: the dense product, and the same bits as each row alone', async (t) => {
  const property = fc.asyncProperty(
    fc.constantFrom(1, 7, 16, 33, 100),
    fc.constantFrom(1, 9, 16, 70, 200),
    fc.tuple(dtype, dtype),
    runsArbitrary,
    async (inner, out, dtypes, runs) => {
      const pools = poolsOf(inner, out, 40, dtypes)
      const rows = runs.flatMap(({ count, ...row }) => Array.from({ length: count }, () => row))
      const y = randomNumbers(rows.length * out, 3)
      const x = randomNumbers(rows.length * inner, 4)
      const together = await grouped(pools, rows, y, x)
      const expected = await dense(pools, rows, y, x)
      const worst = Math.max(...together.map((value, i) => Math.abs(value - expected[i]!)))
      t.true(worst < 1e-5 * Math.max(1, ...expected.map(Math.abs)), `off by ${worst}`)
      for (const i of new Set([0, Math.floor(rows.length / 2), rows.length - 1])) {
        const own = [y.subarray(i * out, (i + 1) * out), x.subarray(i * inner, (i + 1) * inner)] as const
        t.deepEqual(together.subarray(i * out, (i + 1) * out), await grouped(pools, [rows[i]!], ...own))
      }
    },
  )
  await fc.assert(property, { numRuns: 60, seed: 1, endOnFailure: true })
})

test.serial('results do not depend on the number of threads', async (t) => {
  const pools = poolsOf(576, 1536, 600, ['bf16', 'bf16'])
  const rows = Array.from({ length: 150 }, (_, i): Row => {
    const adapter = i < 60 ? i : 61
    return { first: adapter * 8, rank: i % 9 === 0 && i < 60 ? 64 : 8, scale: 2 }
  })
  const [y, x] = [randomNumbers(150 * 1536, 3), randomNumbers(150 * 576, 4)]
  const before = addon.threads()
  t.teardown(() => addon.setThreads(before))
  const results = []
  for (const threads of [1, 2, 5]) {
    addon.setThreads(threads)
    results.push(await grouped(pools, rows, y, x))
  }
  t.deepEqual(results[1], results[0])
  t.deepEqual(results[2], results[0])
})

test('a row without factors stays as it is, and no row sees those of another', async (t) => {
  const pools = poolsOf(16, 16, 8, ['f32', 'f32'])
  const a = await numbers(pools.a)
  const poisoned = {
    ...pools,
    a: tensor(
      a.map((x, i) => (i < 64 ? x : Number.NaN)),
      [8, 16],
    ),
  }
  const [y, x] = [randomNumbers(3 * 16, 3), randomNumbers(3 * 16, 4)]
  const rows = [
    { first: 4, rank: 0, scale: Number.NaN },
    { first: 0, rank: 4, scale: 1 },
    { first: -9, rank: 0, scale: 1 },
  ]
  const result = await grouped(poisoned, rows, y, x)
  t.deepEqual(result, await grouped(pools, rows, y, x))
  t.deepEqual(result.subarray(0, 16), y.subarray(0, 16))
  t.deepEqual(result.subarray(32), y.subarray(32))
  t.notDeepEqual(result.subarray(16, 32), y.subarray(16, 32))
})

test('what is written into the pools between runs is used by the next one', async (t) => {
  const [a, b] = [zeros([4, 16], 'bf16'), zeros([4, 16])]
  const run = program((x, ranges, scales) =>
    groupedLowRank(add(x!, 0), x!, read(a), read(b), { ranges: ranges!, scales: scales! }),
  )
  const x = tensor(new Float32Array(16).fill(1), [1, 16])
  const operands = operandsOf([{ first: 1, rank: 2, scale: 0.5 }])
  t.deepEqual(await numbers(await run(x, ...operands)), new Float32Array(16).fill(1))
  // bf16 ones, then f32 ones
  write(a, new Uint16Array(64).fill(0x3f80))
  write(b, new Float32Array(64).fill(1))
  t.deepEqual(await numbers(await run(x, ...operands)), new Float32Array(16).fill(1 + 0.5 * 2 * 16))
})

for (const [name, row] of [
  ['before the pools', { first: -1, rank: 2 }],
  ['behind the pools', { first: 3, rank: 6 }],
  ['of negative rank', { first: 3, rank: -1 }],
  ['that wraps around', { first: 2 ** 31 - 1, rank: 2 ** 31 - 1 }],
] as const)
  test(`a range ${name} is refused`, async (t) => {
    const pools = poolsOf(4, 4, 8, ['f32', 'f32'])
    const run = grouped(pools, [{ ...row, scale: 1 }], new Float32Array(4), new Float32Array(4))
    await t.throwsAsync(run, { code: 'ERR_HEDDLE_ARGUMENT', message: /ranges within the 8 rows/ })
  })

test('operands that do not fit are refused when traced', async (t) => {
  const attempt = (shapes: readonly (readonly number[])[], ranges: Tensor) =>
    program(() => {
      const [y, x, a, b, scales] = shapes.map((shape) => read(zeros(shape)))
      return groupedLowRank(y!, x!, a!, b!, { ranges: read(ranges), scales: scales! })
    })()
  const code = 'ERR_HEDDLE_SHAPE'
  const fitting = [[2, 6], [2, 4], [8, 4], [8, 6], [2]] as const
  const ranges = zeros([2, 2], 'i32')
  await t.notThrowsAsync(attempt(fitting, ranges))
  for (const [at, shape] of [
    [0, [3, 6]],
    [1, [2, 5]],
    [2, [7, 4]],
    [3, [8, 5]],
  ] as const)
    await t.throwsAsync(attempt(fitting.with(at, shape as never), ranges), { code, message: /y \[n, out\]/ })
  await t.throwsAsync(attempt(fitting.with(4, [3] as never), ranges), { code, message: /scales \[2\]/ })
  await t.throwsAsync(attempt(fitting, zeros([2, 2])), { code, message: /ranges i32 \[2, 2\]/ })
})
