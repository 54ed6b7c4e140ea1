// Equations, least squares, inverses, ranks, norms, polar and truncated decompositions.
import test from 'ava'
import fc from 'fast-check'
import { gradients } from '../lib/graph/grad.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { slice } from '../lib/graph/ops/index.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { reshape, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { eigh, qr, svd } from '../lib/linalg/factorise.js'
import { svdLowRank, truncatedSvd } from '../lib/linalg/low_rank.js'
import { polar } from '../lib/linalg/polar.js'
import { lstsq, matrixNorm, matrixRank, pinv, solve, solveTriangular } from '../lib/linalg/solve.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { goldenJson } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import {
  distance,
  matrixOf,
  type Numbers,
  notOrthonormal,
  numbersOf,
  product,
  scaled,
  transposed,
} from './support/matrices.js'

const random = (seed: number, ...shape: readonly number[]): Tensor =>
  matrixOf(
    [
      ...randomNumbers(
        shape.reduce((a, b) => a * b, 1),
        seed,
      ),
    ],
    shape,
    'f64',
  )

const golden = goldenJson<Record<'solve' | 'pinv' | 'lstsq', Record<string, number[]>>>('linalg.json')

test('solve, pinv and lstsq agree with numpy', async (t) => {
  const near = async (found: Tensor, expected: readonly number[]): Promise<void> => {
    const values = (await found.data()) as Float64Array
    t.true(values.every((value, i) => Math.abs(value - expected[i]!) < 1e-10))
  }
  await near(
    await solve(matrixOf(golden.solve.a!, [4, 4], 'f64'), matrixOf(golden.solve.b!, [4, 2], 'f64')),
    golden.solve.x!,
  )
  const deficient = matrixOf(golden.pinv.a!, [5, 4], 'f64')
  await near(await pinv(deficient), golden.pinv.x!)
  const { x, rank } = await lstsq(deficient, matrixOf(golden.lstsq.b!, [5], 'f64'))
  await near(x, golden.lstsq.x!)
  t.is(rank.item(), 2)
})

test('solve: a x is b, for batches and for vectors', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 30 }),
      fc.integer({ min: 1, max: 5 }),
      fc.nat(1e6),
      async (n, count, seed) => {
        const [a, b] = [random(seed, count, n, n), random(seed + 1, count, n)]
        const x = await solve(a, b)
        const [left, right, found] = [await numbersOf(a, count - 1), await b.data(), await x.data()]
        const last = (all: ArrayLike<number | bigint>) => ({
          values: Float64Array.from(all as Float64Array).slice((count - 1) * n),
          rows: n,
          columns: 1,
        })
        return distance(product(left, last(found)), last(right)) < 1e-9
      },
    ),
    { numRuns: 30, seed: 3 },
  )
  t.pass()
})

test('a singular system is refused with the place of its pivot', async (t) => {
  await t.throwsAsync(solve(tensor([1, 2, 2, 4], [2, 2]), tensor([1, 1])), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /pivot 2/,
  })
  await t.throwsAsync(solve(tensor([1, 2], [1, 2]), tensor([1])), { code: 'ERR_HEDDLE_SHAPE' })
})

test('triangular systems read one triangle alone', async (t) => {
  const [a, b] = [tensor([2, 7, 3, 4], [2, 2]), tensor([2, 11])]
  t.deepEqual([...(await (await solveTriangular(a, b)).data())], [1, 2])
  t.deepEqual([...(await (await solveTriangular(a, b, { upper: true })).data())], [-8.625, 2.75])
  t.deepEqual([...(await (await solveTriangular(a, b, { unitTriangular: true })).data())], [2, 5])
})

test('pinv satisfies the four equations of Penrose', async (t) => {
  const left = await numbersOf(random(1, 7, 3))
  const a = product(left, await numbersOf(random(2, 3, 6)))
  const inverse = await numbersOf(await pinv(tensor(a.values, [7, 6])))
  const [forward, backward] = [product(a, inverse), product(inverse, a)]
  t.true(distance(product(forward, a), a) < 1e-12)
  t.true(distance(product(backward, inverse), inverse) < 1e-12)
  t.true(distance(transposed(forward), forward) < 1e-12)
  t.true(distance(transposed(backward), backward) < 1e-12)
})

test('ranks of a batch', async (t) => {
  const a = tensor([1, 2, 2, 4, 1, 0, 0, 1, 0, 0, 0, 0], [3, 2, 2])
  t.deepEqual([...(await (await matrixRank(a)).data())], [1, 2, 0])
  t.deepEqual([...(await (await matrixRank(tensor([1, 0, 0, 0.1], [2, 2]), { rtol: 0.2 })).data())], [1])
})

test('norms of a matrix whose singular values are 4 and 3', async (t) => {
  const a = tensor([0, 4, 3, 0], [2, 2])
  const norm = async (kind: 'fro' | 'spectral' | 'nuclear' | 'l1,2') => (await matrixNorm(a, kind)).item()
  t.deepEqual([await norm('fro'), await norm('spectral'), await norm('nuclear'), await norm('l1,2')], [5, 4, 7, 7])
})

test("Frobenius' norm of huge and tiny elements neither overflows nor vanishes", async (t) => {
  for (const scale of [1e30, 1e-30]) {
    const norm = (await matrixNorm(tensor([3 * scale, 0, 0, 4 * scale], [2, 2]))).item()
    t.true(Math.abs(norm / scale - 5) < 1e-5)
  }
})

for (const method of ['svd', 'newton-schulz'] as const)
  test(`polar by ${method}: u p is a, u is orthonormal, p is symmetric`, async (t) => {
    const a = random(8, 7, 5)
    const { u, p } = await polar(a, { method })
    const [turn, stretch] = [await numbersOf(u), await numbersOf(p)]
    t.true(distance(product(turn, stretch), await numbersOf(a)) < 1e-10)
    t.true(notOrthonormal(turn) < 1e-10)
    t.true(distance(transposed(stretch), stretch) < 1e-10)
  })

test('truncatedSvd finds the leading part, and its error bound holds', async (t) => {
  const [m, n, rank] = [80, 50, 5]
  const exact = await svd(random(3, m, n))
  const values = Float64Array.from({ length: n }, (_, i) => 2 ** -i)
  const a = product(scaled(await numbersOf(exact.u), values), await numbersOf(exact.vh))
  const { u, s, vh, error } = await truncatedSvd(tensor(a.values, [m, n]), { rank, seed: 2 })
  const found = (await s.data()) as Float64Array
  t.true(found.every((value, i) => Math.abs(value - values[i]!) < 1e-8))
  const approximation = product(scaled(await numbersOf(u), found), await numbersOf(vh))
  const missed = a.values.map((value, at) => value - approximation.values[at]!)
  const largest = (await matrixNorm(tensor(missed, [m, n]), 'spectral')).item()
  t.true(Math.abs(largest - 2 ** -rank) < 1e-6)
  t.true(error.item() >= largest && error.item() < 100 * largest)
})

test('truncatedSvd works on batches, and repeats itself for a seed', async (t) => {
  const a = matrixOf([...randomNumbers(2 * 30 * 20, 3)], [2, 30, 20], 'f32')
  const [first, again, other] = await Promise.all([1, 1, 2].map((seed) => truncatedSvd(a, { rank: 3, seed })))
  t.deepEqual(first!.u.shape, [2, 30, 3])
  t.deepEqual(await first!.u.data(), await again!.u.data())
  t.notDeepEqual(await first!.u.data(), await other!.u.data())
})

test('a rank that is too large, and an unknown option, are refused', async (t) => {
  await t.throwsAsync(svdLowRank(random(1, 4, 3), { rank: 4 }), { code: 'ERR_HEDDLE_SHAPE', message: /at most 3/ })
  await t.throwsAsync(truncatedSvd(random(1, 4, 3), { rank: 1, oversample: 2 } as never), { message: /oversampling/ })
})

for (const [name, degenerate] of [
  ['equal', [1, 0, 0, 0, 1, 0, 0, 0, 1]],
  ['zero', [0, 0, 0, 0, 0, 0, 0, 0, 0]],
] as const)
  test(`gradients at ${name} singular values and eigenvalues are finite`, async (t) => {
    const step = program(async (x) => {
      const { u, s, vh } = svd(x!)
      const { w, v } = eigh(x!)
      return gradients(sum(matmul(matmul(u, vh), matmul(v, v))), [x!]).then(([g]) => [g!, s, w])
    })
    const [gradient] = await step(matrixOf(degenerate, [3, 3], 'f32'))
    t.true(((await gradient!.data()) as Float32Array).every(Number.isFinite))
  })

test('at equal singular values the gradient of the polar factor is exact', async (t) => {
  // At the identity, d (u vh) is the antisymmetric part of d a.
  const weight = [1, 2, 3, 5, 7, 11, 13, 17, 19]
  const step = program((x, w) => gradients(sum(mul(polar(x!).u, w!)), [x!]))
  const [gradient] = await step(matrixOf([1, 0, 0, 0, 1, 0, 0, 0, 1], [3, 3], 'f64'), matrixOf(weight, [3, 3], 'f64'))
  const expected = [0, -1.5, -5, 1.5, 0, -3, 5, 3, 0]
  t.true([...((await gradient!.data()) as Float64Array)].every((value, i) => Math.abs(value - expected[i]!) < 1e-12))
})

/** All singular values are 3. */
const orthonormal = async (m: number, n: number): Promise<Numbers> => {
  const { q } = await qr(random(5, Math.max(m, n), Math.min(m, n)))
  const columns = scaled(await numbersOf(q), [3, 3, 3])
  return m < n ? transposed(columns) : columns
}
const plus = (a: Numbers, h: number, way: Numbers): Numbers => ({
  ...a,
  values: a.values.map((value, at) => value + h * way.values[at]!),
})
const weights = matrixOf([...randomNumbers(30, 77)], [30], 'f64')
const weighted = (x: Sym): Sym => {
  const flat = reshape(x, [-1])
  return sum(mul(flat, slice(read(weights), [{ axis: 0, start: 0, end: flat.shape[0]! }])))
}
for (const [name, f] of [
  ['pinv', (a: Sym): Sym => pinv(a)],
  ['lstsq', (a: Sym): Sym => lstsq(a, read(matrixOf([...randomNumbers(a.shape[0]!, 8)], [a.shape[0]!], 'f64'))).x],
] as const)
  for (const kind of ['tall', 'wide', 'square', 'of rank 2'] as const)
    test(`gradient of ${name} at equal singular values, ${kind}: the central difference`, async (t) => {
      const [m, n] = kind === 'wide' ? [3, 5] : kind === 'square' ? [3, 3] : [5, 3]
      const start = await orthonormal(m, n)
      // [m, 2] times the first two rows of an identity.
      const left = { ...start, columns: 2, values: start.values.filter((_, i) => i % n < 2) }
      const right = {
        rows: 2,
        columns: n,
        values: Float64Array.from({ length: 2 * n }, (_, i) => Number(i % (n + 1) === 0)),
      }
      const ways = [
        await numbersOf(random(21, m, kind === 'of rank 2' ? 2 : n)),
        await numbersOf(random(22, 2, n)),
      ] as const
      const at = (h: number): Numbers =>
        kind === 'of rank 2' ? product(plus(left, h, ways[0]), plus(right, h, ways[1])) : plus(start, h, ways[0])
      const tensorAt = (h: number): Tensor => tensor(at(h).values, [m, n])
      const value = program((a) => weighted(f(a!)))
      const slope = program((a) => gradients(weighted(f(a!)), [a!]))
      const [gradient] = await slope(tensorAt(0))
      const h = 1e-5
      const tangent = plus(at(h), -1, at(-h)).values.map((x) => x / (2 * h))
      const numbers = (await gradient!.data()) as Float64Array
      const found = numbers.reduce((total, g, i) => total + g * tangent[i]!, 0)
      const expected = ((await value(tensorAt(h))).item() - (await value(tensorAt(-h))).item()) / (2 * h)
      t.true(Math.abs(found - expected) < 1e-7 * Math.max(1, Math.abs(expected)), `${found} against ${expected}`)
    })
