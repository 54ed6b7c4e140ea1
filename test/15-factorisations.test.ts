// Factorisations keep LAPACK's promises for matrices of every kind: the factors multiply back, and orthogonal ones are
// orthogonal, to a small multiple of the size times the rounding unit.
import test from 'ava'
import fc from 'fast-check'
import { cholesky, eigh, ldu, lu, qr, qrPivoted, svd, svdvals } from '../lib/linalg/factorise.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { goldenJson } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { onEmulatedGpu, onGpu } from './support/backend.js'
import {
  distance,
  epsilonOf,
  matrixOf,
  type Numbers,
  notOrthonormal,
  numbersOf,
  product,
  scaled,
  transposed,
} from './support/matrices.js'

const kinds = [
  'random',
  'zero',
  'rank one',
  'repeated',
  'clustered',
  'graded',
  'graded upwards',
  'shift',
  'huge',
  'tiny',
  'integers',
] as const
type Kind = (typeof kinds)[number]

/** A matrix that gives factorisations trouble. */
function valuesOf(kind: Kind, m: number, n: number, seed: number): Float32Array {
  const noise = randomNumbers(m * n, seed)
  return noise.map((value, at) => {
    const [i, j] = [Math.floor(at / n), at % n]
    switch (kind) {
      case 'zero':
        return 0
      case 'rank one':
        return noise[i * n]! * noise[j]!
      // All singular values are 1.
      case 'repeated':
        return i === j ? 1 : 0
      // All are near 1, and orthonormal vectors need many rotations by small angles.
      case 'clustered':
        return (i === j ? 1 : 0) + 1e-6 * value
      case 'graded':
        return value * 10 ** (-0.25 * (i + j))
      case 'graded upwards':
        return value * 10 ** (-0.25 * (m - i + n - j))
      // Bidiagonal already, with zeros on its diagonal.
      case 'shift':
        return j === i + 1 ? 1 : 0
      case 'huge':
        return value * 1e30
      case 'tiny':
        return value * 1e-30
      case 'integers':
        return Math.round(2 * value)
      default:
        return value
    }
  })
}

const batches = fc.record({
  kind: fc.constantFrom(...kinds),
  dtype: fc.constantFrom('f32' as const, 'f64' as const),
  count: fc.integer({ min: 1, max: 19 }),
  m: fc.integer({ min: 1, max: 40 }),
  n: fc.integer({ min: 1, max: 40 }),
  seed: fc.nat(1e6),
  full: fc.boolean(),
})
type Batch = typeof batches extends fc.Arbitrary<infer T> ? T : never

const tensorOf = ({ kind, dtype, count, m, n, seed }: Batch): Tensor => {
  const parts = Array.from({ length: count }, (_, i) => [...valuesOf(kind, m, n, seed + i)])
  return matrixOf(parts.flat(), [count, m, n], dtype)
}

const bound = (dtype: 'f32' | 'f64', ...sizes: readonly number[]): number => 8 * Math.max(...sizes) * epsilonOf[dtype]

const property = (check: (batch: Batch) => Promise<boolean>) =>
  fc.assert(fc.asyncProperty(batches, check), { numRuns: onEmulatedGpu ? 8 : 60, seed: 5 })

const firstColumns = (a: Numbers, k: number): Numbers => ({
  rows: a.rows,
  columns: k,
  values: Float64Array.from({ length: a.rows * k }, (_, at) => a.values[Math.floor(at / k) * a.columns + (at % k)]!),
})

test('svd: u diag(s) vh is a, u and vh are orthonormal, s descends and is not negative', async (t) => {
  await property(async (batch) => {
    using a = tensorOf(batch)
    const { u, s, vh } = await svd(a, { full: batch.full })
    const k = Math.min(batch.m, batch.n)
    const limit = bound(batch.dtype, batch.m, batch.n)
    const values = (await s.data()) as Float32Array
    for (const index of [0, batch.count - 1]) {
      const own = values.slice(index * k, (index + 1) * k)
      const [left, right] = [await numbersOf(u, index), transposed(await numbersOf(vh, index))]
      const back = product(scaled(firstColumns(left, k), own), transposed(firstColumns(right, k)))
      if (distance(back, await numbersOf(a, index)) > limit) return false
      if (notOrthonormal(left) > limit || notOrthonormal(right) > limit) return false
      if (own.some((value, i) => value < 0 || (i > 0 && value > own[i - 1]!))) return false
    }
    return true
  })
  t.pass()
})

test('svd of one matrix does not depend on the others of its batch', async (t) => {
  const numbers = [...randomNumbers(21 * 12 * 9, 3)]
  const all = await svd(matrixOf(numbers, [21, 12, 9], 'f32'))
  const last = await svd(matrixOf(numbers.slice(20 * 108), [12, 9], 'f32'))
  t.deepEqual([...(await last.s.data())], [...(await all.s.data())].slice(20 * 9))
})

// Beside each other in the lanes of vectors up to 128 rows, more of them one by one; matrices that are very long by their
// QR.
const shapes = [
  [6, 128, 128],
  [7, 65, 128],
  [3, 130, 70],
  [1, 1100, 40],
  [2, 30, 1300],
] as const
for (const [count, m, n] of onEmulatedGpu ? [[1, 48, 48] as const, [1, 300, 20] as const] : shapes)
  for (const kind of ['random', 'clustered', 'rank one', 'tiny'] as const)
    test(`${kind} [${count}, ${m}, ${n}]: svd, singular values alone, qr and eigh as LAPACK promises them`, async (t) => {
      const limit = bound('f32', m, n)
      const parts = Array.from({ length: count }, (_, i) => [...valuesOf(kind, m, n, i)])
      const a = matrixOf(parts.flat(), [count, m, n], 'f32')
      const original = await numbersOf(a, count - 1)
      const { u, s, vh } = await svd(a)
      const k = Math.min(m, n)
      const values = [...((await s.data()) as Float32Array)].slice((count - 1) * k)
      const [left, right] = [await numbersOf(u, count - 1), await numbersOf(vh, count - 1)]
      t.true(distance(product(scaled(left, values), right), original) < limit)
      t.true(notOrthonormal(left) < limit && notOrthonormal(transposed(right)) < limit)
      const alone = [...((await (await svdvals(a)).data()) as Float32Array)].slice((count - 1) * k)
      t.true(alone.every((value, i) => Math.abs(value - values[i]!) <= limit * values[0]!))
      const { q, r } = await qr(a)
      t.true(distance(product(await numbersOf(q, count - 1), await numbersOf(r, count - 1)), original) < limit)
      t.true(notOrthonormal(await numbersOf(q, count - 1)) < limit)
      if (m !== n) return
      const { w, v } = await eigh(a)
      const vectors = await numbersOf(v, count - 1)
      const back = product(
        scaled(vectors, [...((await w.data()) as Float32Array)].slice((count - 1) * n)),
        transposed(vectors),
      )
      const symmetric = original.values.map((value, at) =>
        at % n > Math.floor(at / n) ? original.values[(at % n) * n + Math.floor(at / n)]! : value,
      )
      t.true(distance(back, { ...original, values: symmetric }) < limit && notOrthonormal(vectors) < limit)
    })

// Products of such matrices take long in JavaScript: they are applied to a few vectors instead.
for (const [m, n, kind] of [
  [512, 530, 'random'],
  [530, 512, 'huge'],
] as const)
  test(`svd of a large ${kind} matrix [${m}, ${n}]`, async (t) => {
    const a = matrixOf(valuesOf(kind, m, n, 1), [m, n], 'f32')
    const { u, s, vh } = await svd(a)
    const [left, right, values] = [await numbersOf(u), await numbersOf(vh), [...((await s.data()) as Float32Array)]]
    const probe = (rows: number): Numbers => ({
      rows,
      columns: 3,
      values: Float64Array.from(randomNumbers(rows * 3, rows)),
    })
    const stretched = transposed(scaled(transposed(product(right, probe(n))), values))
    t.true(distance(product(left, stretched), product(await numbersOf(a), probe(n))) < bound('f32', m, n))
    for (const vectors of [left, transposed(right)]) {
      const [x, turned] = [probe(vectors.columns), product(vectors, probe(vectors.columns))]
      t.true(distance(product(transposed(vectors), turned), x) < bound('f32', m, n))
    }
  })

test('singular values that differ by 10⁻⁶ of themselves are found as such', async (t) => {
  const wanted = [1, 1 - 1e-6, 1 - 2e-6, 0.5, 1e-9, 0]
  const [left, right] = await Promise.all([
    qr(matrixOf([...randomNumbers(36, 1)], [6, 6], 'f64')),
    qr(matrixOf([...randomNumbers(36, 2)], [6, 6], 'f64')),
  ])
  const a = product(scaled(await numbersOf(left.q), wanted), transposed(await numbersOf(right.q)))
  const s = (await svdvals(tensor(a.values, [6, 6]))).data()
  t.true([...((await s) as Float64Array)].every((value, i) => Math.abs(value - wanted[i]!) < 1e-14))
})

test('qr: q r is a, q is orthonormal, r is upper triangular', async (t) => {
  await property(async (batch) => {
    using a = tensorOf(batch)
    const { q, r } = await qr(a, { full: batch.full })
    const limit = bound(batch.dtype, batch.m, batch.n)
    const [orthogonal, upper] = [await numbersOf(q, batch.count - 1), await numbersOf(r, batch.count - 1)]
    return (
      distance(product(orthogonal, upper), await numbersOf(a, batch.count - 1)) <= limit &&
      notOrthonormal(orthogonal) <= limit &&
      upper.values.every((value, at) => Math.floor(at / batch.n) <= at % batch.n || value === 0)
    )
  })
  t.pass()
})

test('qr with pivots: a[:, pivots] is q r, and the diagonal of r descends', async (t) => {
  await property(async (batch) => {
    using a = tensorOf(batch)
    const { q, r, pivots } = await qrPivoted(a)
    const columns = (await pivots.data()) as Int32Array
    const all = await numbersOf(a, 0)
    const ordered = {
      ...all,
      values: all.values.map((_, at) => all.values[at - (at % batch.n) + columns[at % batch.n]!]!),
    }
    const upper = await numbersOf(r, 0)
    const diagonal = Array.from({ length: upper.rows }, (_, i) => Math.abs(upper.values[i * batch.n + i]!))
    return (
      distance(product(await numbersOf(q, 0), upper), ordered) <= bound(batch.dtype, batch.m, batch.n) &&
      diagonal.every((value, i) => i === 0 || value <= diagonal[i - 1]! * (1 + 1e-5))
    )
  })
  t.pass()
})

test('eigh: v diag(w) vᵀ is a, v is orthonormal, w ascends', async (t) => {
  await property(async ({ m, ...batch }) => {
    const square = { ...batch, m: batch.n }
    const values = Array.from({ length: batch.count }, (_, i) => {
      const x = valuesOf(batch.kind, batch.n, batch.n, batch.seed + i)
      return Array.from(x, (value, at) => value + x[(at % batch.n) * batch.n + Math.floor(at / batch.n)]!)
    })
    using a = matrixOf(values.flat(), [batch.count, batch.n, batch.n], batch.dtype)
    const { w, v } = await eigh(a)
    const vectors = await numbersOf(v, 0)
    const found = ((await w.data()) as Float32Array).slice(0, batch.n)
    const limit = bound(square.dtype, batch.n)
    return (
      distance(product(scaled(vectors, found), transposed(vectors)), await numbersOf(a, 0)) <= limit &&
      notOrthonormal(vectors) <= limit &&
      found.every((value, i) => i === 0 || value >= found[i - 1]!)
    )
  })
  t.pass()
})

test('lu and ldu: the rows of a in the order of the permutation are l u, and l diag(d) u', async (t) => {
  await property(async (batch) => {
    using a = tensorOf(batch)
    const { permutation, l, u } = await lu(a)
    const places = (await permutation.data()) as Int32Array
    const all = await numbersOf(a, 0)
    const ordered = {
      ...all,
      values: all.values.map((_, at) => all.values[places[Math.floor(at / batch.n)]! * batch.n + (at % batch.n)]!),
    }
    const limit = bound(batch.dtype, batch.m, batch.n)
    const factors = await ldu(a)
    const d = (await factors.d.data()) as Float32Array
    return (
      distance(product(await numbersOf(l, 0), await numbersOf(u, 0)), ordered) <= limit &&
      (batch.m > batch.n ||
        batch.kind !== 'random' ||
        distance(product(scaled(await numbersOf(factors.l, 0), d), await numbersOf(factors.u, 0)), ordered) <= limit)
    )
  })
  t.pass()
})

test('cholesky: l lᵀ is a; what is not positive definite is refused with the place', async (t) => {
  const root = await numbersOf(matrixOf([...randomNumbers(100, 4)], [10, 10], 'f64'))
  const a = product(root, transposed(root))
  const l = await numbersOf(await cholesky(tensor(a.values, [10, 10])))
  t.true(distance(product(l, transposed(l)), a) < 1e-14)
  t.true(l.values.every((value, at) => at % 10 <= Math.floor(at / 10) || value === 0))
  await t.throwsAsync(cholesky(tensor([1, 0, 0, -1], [2, 2])), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /minor of order 2/,
  })
})

test('values agree with numpy and scipy', async (t) => {
  type Golden = Record<
    'svd' | 'eigh' | 'qr' | 'long_qr' | 'batch' | 'lu' | 'cholesky' | 'pivoted',
    Record<string, number[]>
  >
  const golden = goldenJson<Golden>('linalg.json')
  const near = async (found: Tensor, expected: readonly number[]): Promise<void> => {
    const values = (await found.data()) as Float64Array
    t.true(values.every((value, i) => Math.abs(value - expected[i]!) < 1e-12))
  }
  await near(await svdvals(matrixOf(golden.svd.a!, [2, 5, 3], 'f64')), golden.svd.s!)
  await near((await eigh(matrixOf(golden.eigh.a!, [4, 4], 'f64'))).w, golden.eigh.w!)
  await near((await qr(matrixOf(golden.qr.a!, [5, 3], 'f64'))).r, golden.qr.r!)
  // Long matrices are factorised by blocks, and have the signs of reflections of the whole nevertheless.
  const long = Array.from({ length: 3600 }, (_, at) => Math.sin(7 * Math.floor(at / 3) + 2 * (at % 3) ** 3 + (at % 3)))
  await near((await qr(matrixOf(long, [1200, 3], 'f64'))).r, golden.long_qr.r!)
  const side = Array.from({ length: 7 * 12 * 9 }, (_, at) => Math.cos(at * at))
  const batch = matrixOf(side, [7, 12, 9], 'f64')
  await near((await qr(batch)).r, golden.batch.r!)
  await near(await svdvals(batch), golden.batch.s!)
  await near((await lu(matrixOf(golden.lu.a!, [4, 4], 'f64'))).u, golden.lu.u!)
  await near(await cholesky(matrixOf(golden.cholesky.a!, [4, 4], 'f64')), golden.cholesky.l!)
  const pivoted = await qrPivoted(matrixOf(golden.pivoted.a!, [5, 3], 'f64'))
  await near(pivoted.r, golden.pivoted.r!)
  t.deepEqual([...(await pivoted.pivots.data())].map(Number), golden.pivoted.pivots)
})

test('empty batches and empty matrices have empty factors', async (t) => {
  const { u, s, vh } = await svd(tensor([], [0, 3, 2]))
  t.deepEqual(
    [u.shape, s.shape, vh.shape],
    [
      [0, 3, 2],
      [0, 2],
      [0, 2, 2],
    ],
  )
  const none = await svd(tensor([], [2, 0]), { full: true })
  t.deepEqual([...(await none.u.data())], [1, 0, 0, 1])
})

for (const value of [Number.NaN, Number.POSITIVE_INFINITY])
  test(`${value} is refused by every factorisation, in any matrix of a batch`, async (t) => {
    const broken = tensor([4, 0, 0, 3, 2, 1, 1, value], [2, 2, 2])
    for (const factorise of [svd, svdvals, qr, qrPivoted, eigh, lu, cholesky])
      await t.throwsAsync(factorise(broken) as Promise<unknown>, { code: 'ERR_HEDDLE_ARGUMENT', message: /finite/ })
  })

/** To a GPU a batch is one launch. */
const unlessOnGpu = onGpu ? test.skip : test

unlessOnGpu('a batch stops between its matrices when it is aborted', async (t) => {
  const a = matrixOf([...randomNumbers(40 * 150 * 150, 1)], [40, 150, 150], 'f32')
  const controller = new AbortController()
  const running = svd(a, { signal: controller.signal })
  setTimeout(() => controller.abort(), 5)
  await t.throwsAsync(running, { code: 'ERR_HEDDLE_ABORTED' })
})
