// Incremental components, clusters, assignments, permutations, random orthogonal matrices, Walsh–Hadamard, segments.
import test from 'ava'
import { computed } from '../lib/graph/computed.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { segmentMax, segmentMean, segmentMin, segmentSum } from '../lib/graph/ops/segment.js'
import { walshHadamard } from '../lib/graph/ops/walsh_hadamard.js'
import { IncrementalSvd } from '../lib/linalg/incremental_svd.js'
import { kMeans } from '../lib/linalg/k_means.js'
import { invertPermutation, linearAssignment, randomOrthogonal, randomPermutation } from '../lib/linalg/permutation.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { goldenJson } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { matrixOf, notOrthonormal, numbersOf } from './support/matrices.js'

const golden = goldenJson<Record<'assignment' | 'incremental', Record<string, number[]>>>('linalg.json')
const listOf = async (a: Tensor): Promise<number[]> => [...((await a.data()) as Float64Array)]
const near = (found: readonly number[], expected: readonly number[], tolerance: number): boolean =>
  found.length === expected.length && found.every((value, i) => Math.abs(value - expected[i]!) < tolerance)

const rows = (start: number, end: number): Tensor =>
  matrixOf(golden.incremental.rows!.slice(start * 6, end * 6), [end - start, 6], 'f64')

test("incremental components are those of scikit-learn's IncrementalPCA", async (t) => {
  using components = new IncrementalSvd({ rank: 3 })
  for (const batch of [rows(0, 8), rows(8, 12), rows(12, 23)]) await components.update(batch)
  t.is(components.rows, 23)
  t.true(near(await listOf(components.s), golden.incremental.s!, 1e-12))
  t.true(near(await listOf(components.vh), golden.incremental.vh!, 1e-11))
  t.true(near(await listOf(components.mean), golden.incremental.mean!, 1e-13))
  t.true(near(await listOf(await components.explainedVarianceRatio()), golden.incremental.ratio!, 1e-12))
})

test('a component that forgets everything knows the last batch alone', async (t) => {
  using forgetful = new IncrementalSvd({ rank: 2, forgetting: 0 })
  using fresh = new IncrementalSvd({ rank: 2 })
  await forgetful.update(rows(0, 10))
  await forgetful.update(rows(10, 23))
  await fresh.update(rows(10, 23))
  t.true(near(await listOf(forgetful.s), await listOf(fresh.s), 1e-12))
  t.true(near(await listOf(forgetful.mean), await listOf(fresh.mean), 1e-12))
})

test('an update that is aborted or refused leaves the state as it was', async (t) => {
  using components = new IncrementalSvd({ rank: 2 })
  t.throws(() => components.s, { message: /a batch of rows first/ })
  await t.throwsAsync(components.update(rows(0, 1)), { code: 'ERR_HEDDLE_SHAPE', message: /at least 2/ })
  await components.update(rows(0, 10))
  const before = await listOf(components.s)
  await t.throwsAsync(components.update(rows(10, 23), { signal: AbortSignal.abort() }), { code: 'ERR_HEDDLE_ABORTED' })
  await t.throwsAsync(components.update(tensor([1, 2], [1, 2])), { code: 'ERR_HEDDLE_SHAPE' })
  t.deepEqual(await listOf(components.s), before)
})

test('an assignment is the best of all, found by trying them', async (t) => {
  const columns = await linearAssignment(matrixOf(golden.assignment.cost!, [5, 7], 'f64'))
  t.deepEqual(await listOf(columns), golden.assignment.columns)
})

test('with more rows than columns, rows are left over; maximize turns costs into gains', async (t) => {
  const cost = tensor([5, 1, 4, 9, 2, 8], [3, 2])
  t.deepEqual(await listOf(await linearAssignment(cost)), [1, -1, 0])
  t.deepEqual(await listOf(await linearAssignment(cost, { maximize: true })), [0, 1, -1])
  await t.throwsAsync(linearAssignment(tensor([1, Number.NaN], [1, 2])), { code: 'ERR_HEDDLE_ARGUMENT' })
})

test('a large assignment of a hidden permutation finds it', async (t) => {
  const hidden = (await (await randomPermutation(60, { seed: 3 })).data()) as Int32Array
  const cost = randomNumbers(3600, 1).map((value, at) => 2 + value - (hidden[Math.floor(at / 60)] === at % 60 ? 4 : 0))
  t.deepEqual(await listOf(await linearAssignment(tensor(cost, [60, 60]))), [...hidden])
})

test('a random permutation has every number once, and its inverse undoes it', async (t) => {
  const permutation = await randomPermutation(1000, { seed: 1 })
  const values = (await permutation.data()) as Int32Array
  t.deepEqual(
    [...values].sort((a, b) => a - b),
    [...Array(1000).keys()],
  )
  const inverse = (await (await invertPermutation(permutation)).data()) as Int32Array
  t.true(values.every((value, i) => inverse[value] === i))
  t.notDeepEqual([...values], [...Array(1000).keys()])
})

test('random orthogonal matrices are orthogonal and differ with the seed; wide ones have orthonormal rows', async (t) => {
  const [first, other] = [
    await randomOrthogonal([2, 12, 7], { seed: 1 }),
    await randomOrthogonal([2, 12, 7], { seed: 2 }),
  ]
  t.true(notOrthonormal(await numbersOf(first, 1)) < 1e-5)
  t.notDeepEqual(await first.data(), await other.data())
  const wide = await numbersOf(await randomOrthogonal([3, 8], { dtype: 'f64' }))
  const turned = {
    ...wide,
    rows: 8,
    columns: 3,
    values: wide.values.map((_, at) => wide.values[(at % 3) * 8 + Math.floor(at / 3)]!),
  }
  t.true(notOrthonormal(turned) < 1e-14)
})

test("they follow Haar's measure: diagonals are as often negative as positive", async (t) => {
  // LAPACK's q alone has a diagonal that is mostly negative.
  const values = (await (await randomOrthogonal([400, 3, 3], { seed: 5 })).data()) as Float32Array
  const positive = values.filter((value, at) => [0, 4, 8].includes(at % 9) && value > 0).length
  t.true(Math.abs(positive - 600) < 70, `${positive} of 1200`)
})

test("Walsh–Hadamard: the rows of Sylvester's matrix, orthogonal and its own inverse", async (t) => {
  const unit = tensor([0, 0, 0, 1, 0, 0, 0, 0])
  t.deepEqual(
    await listOf(await computed((x) => walshHadamard(x!, { normalized: false }), [unit])),
    [1, -1, -1, 1, 1, -1, -1, 1],
  )
  const x = tensor(randomNumbers(3 * 64, 1), [3, 64])
  const twice = await computed((y) => walshHadamard(walshHadamard(y!)), [x])
  t.true(near(await listOf(twice), await listOf(x), 1e-6))
  await t.throwsAsync(
    computed((y) => walshHadamard(y!), [tensor([1, 2, 3])]),
    { code: 'ERR_HEDDLE_SHAPE' },
  )
})

test('segments: sums, means, maxima and minima of the rows of each, and what an empty one has', async (t) => {
  const [x, segment] = [tensor([1, 5, 2, -1, 4, 0], [3, 2]), tensor(Int32Array.of(2, 0, 2))]
  const found = await computed(
    (y, of) => [segmentSum, segmentMean, segmentMax, segmentMin].map((fn) => fn(y!, of!, 3)),
    [x, segment],
  )
  const all = await Promise.all(found.map(listOf))
  t.deepEqual(all[0], [2, -1, 0, 0, 5, 5])
  t.deepEqual(all[1], [2, -1, 0, 0, 2.5, 2.5])
  t.deepEqual(all[2], [2, -1, -Infinity, -Infinity, 4, 5])
  t.deepEqual(all[3], [2, -1, Infinity, Infinity, 1, 0])
  await t.throwsAsync(
    computed((y, of) => segmentMax(y!, of!, 2), [x, segment]),
    { code: 'ERR_HEDDLE_ARGUMENT' },
  )
})

/** 150 points around (0, 0), (9, 0) and (0, 9). */
const clouds = (): Tensor => {
  const centers = [0, 0, 9, 0, 0, 9]
  return tensor(
    randomNumbers(300, 4).map((value, at) => value + centers[2 * (Math.floor(at / 2) % 3) + (at % 2)]!),
    [150, 2],
  )
}

test('k-means finds three clouds, the same for a seed', async (t) => {
  const [found, again] = [
    await kMeans(clouds(), { clusters: 3, seed: 2 }),
    await kMeans(clouds(), { clusters: 3, seed: 2 }),
  ]
  const labels = await listOf(found.labels)
  t.true(labels.every((label, i) => label === labels[i % 3]))
  t.is(new Set(labels).size, 3)
  t.deepEqual(await listOf(again.centers), await listOf(found.centers))
  t.true(found.inertia < 150)
})

test('k-means: a cluster that loses its points starts again at the farthest one', async (t) => {
  const far = await computed((x) => mul(x!, 1), [tensor([0, 0, 500, 500, 900, 900], [3, 2])])
  const found = await kMeans(clouds(), { clusters: 3, initial: far })
  t.is(new Set(await listOf(found.labels)).size, 3)
  t.true(found.inertia < 150)
})

test('k-means refuses more clusters than points', async (t) => {
  await t.throwsAsync(kMeans(tensor([1, 2], [2, 1]), { clusters: 3 }), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /at most 2/,
  })
  await t.throwsAsync(kMeans(tensor([1, 2]), { clusters: 1 }), { code: 'ERR_HEDDLE_SHAPE' })
})
