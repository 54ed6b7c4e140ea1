// Matrix completion by alternating minimisation: recovery where theory promises it, by hand where it can be done by
// hand, and plain refusals where the entries do not determine the matrix.
import test from 'ava'
import { computed } from '../lib/graph/computed.js'
import { add, cast, div, mul, sqrt, square, sub } from '../lib/graph/ops/elementwise.js'
import { concat } from '../lib/graph/ops/index.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { randomNormal } from '../lib/graph/ops/random.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { addon } from '../lib/native.js'
import { type CompletionOptions, completeMatrix } from '../lib/structured/completion.js'
import { Tensor, tensor } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'

interface Sample {
  readonly rows: Int32Array
  readonly columns: Int32Array
  readonly values: Float64Array
}

/** f64 standard normal numbers. */
const normal = (shape: readonly number[], seed: number): Promise<Tensor> =>
  computed(() => cast(randomNormal(read(tensor(Uint32Array.of(seed, 0), [2])), 0, shape), 'f64'))

/** Orthonormal columns. */
const basis = async (n: number, k: number, seed: number): Promise<Tensor> =>
  new Tensor(await addon.orthonormalColumns((await normal([n, k], seed)).native))

/** A matrix of rank k with these singular values. */
async function lowRank(m: number, n: number, singular: readonly number[], seed = 1): Promise<Tensor> {
  const [u, v] = [await basis(m, singular.length, seed), await basis(n, singular.length, seed + 1)]
  const s = tensor(Float64Array.from(singular))
  return computed(() => matmul(mul(read(u), read(s)), read(v), { transposeB: true }))
}

/** Each entry with probability p, and noise on it. */
async function observe(matrix: Tensor, p: number, seed: number, noise = 0): Promise<Sample> {
  const [m, n] = matrix.shape as [number, number]
  const entries = await matrix.data()
  const [drawn, errors] = [randomNumbers(m * n, seed), await (await normal([m * n], seed + 7)).data()]
  const kept = Array.from(drawn.keys()).filter((i) => (drawn[i]! + 1) / 2 < p)
  return {
    rows: Int32Array.from(kept, (i) => Math.floor(i / n)),
    columns: Int32Array.from(kept, (i) => i % n),
    values: Float64Array.from(kept, (i) => Number(entries[i]) + noise * Number(errors[i])),
  }
}

const complete = async (
  { rows, columns, values }: Sample,
  shape: readonly [number, number],
  options: CompletionOptions,
) => completeMatrix({ rows, columns }, values, shape, options)

/** ‖a − u vᵀ‖ / ‖a‖ over all entries. */
async function errorOf(a: Tensor, { u, v }: { readonly u: Tensor; readonly v: Tensor }): Promise<number> {
  const norm = (x: Sym): Sym => sqrt(sum(square(x)))
  const error = await computed(() =>
    div(norm(sub(read(a), matmul(read(u), read(v), { transposeB: true }))), norm(read(a))),
  )
  return error.item()
}

const everything = { tolerance: 0, minChange: 0 }

test('a rank-1 matrix with one entry missing: the entry follows from the others', async (t) => {
  const sample = {
    rows: Int32Array.of(0, 0, 1, 1, 2),
    columns: Int32Array.of(0, 1, 0, 1, 0),
    values: Float64Array.of(1, 2, 2, 4, 3),
  }
  const { u, v, report } = await complete(sample, [3, 2], { rank: 1, maxIterations: 200 })
  const [left, right] = [await u.data(), await v.data()]
  t.true(Math.abs(Number(left[2]) * Number(right[1]) - 6) < 1e-6)
  t.is(report.parts, 1)
  t.is(report.reason, 'tolerance')
})

test('everything observed: one round recovers any matrix of the rank', async (t) => {
  const matrix = await lowRank(60, 40, [5, 2, 1])
  const found = await complete(await observe(matrix, 1, 1), [60, 40], { rank: 3, maxIterations: 1 })
  t.true((await errorOf(matrix, found)) < 1e-10)
})

test('exact half steps contract the error at the rate that was measured elsewhere', async (t) => {
  const matrix = await lowRank(120, 100, [1, 0.75, 0.5])
  const sample = await observe(matrix, 0.35, 3)
  // Relative error after 5, 9, 13, 17 and 21 rounds of a reference implementation on such a matrix.
  const limits = [8.6e-4, 9.9e-6, 1.5e-7, 2.5e-9, 4.6e-11]
  for (const [i, rounds] of [5, 9, 13, 17, 21].entries()) {
    const found = await complete(sample, [120, 100], { rank: 3, maxIterations: rounds, ...everything })
    const error = await errorOf(matrix, found)
    t.true(error < 100 * limits[i]!, `${error} after ${rounds}`)
  }
})

test('the residual on the entries never rises with exact half steps', async (t) => {
  const matrix = await lowRank(80, 70, [3, 2, 1])
  const { report } = await complete(await observe(matrix, 0.4, 4, 0.01), [80, 70], {
    rank: 3,
    maxIterations: 12,
    ...everything,
  })
  for (const [i, { residual }] of report.rounds.entries())
    if (i > 0) t.true(residual <= report.rounds[i - 1]!.residual * (1 + 1e-12))
})

for (const kappa of [1, 100])
  test(`κ = ${kappa}: three warm inner steps follow the exact solution, for every basis is made orthonormal`, async (t) => {
    const singular = Array.from({ length: 5 }, (_, i) => kappa + ((1 - kappa) * i) / 4)
    const matrix = await lowRank(300, 300, singular)
    const sample = await observe(matrix, 0.3, 5)
    const error = async (options: Partial<CompletionOptions>): Promise<number> =>
      errorOf(matrix, await complete(sample, [300, 300], { rank: 5, maxIterations: 12, ...everything, ...options }))
    const exact = await error({})
    t.true(exact < 1e-7, `exact ${exact}`)
    for (const solver of ['sketch-pcg', 'cg'] as const) {
      const inner = await error({ solver, innerIterations: 3 })
      t.true(inner < 20 * exact, `${solver} ${inner}`)
    }
  })

test('the solvers agree at a tight tolerance', async (t) => {
  const matrix = await lowRank(90, 80, [2, 1])
  const sample = await observe(matrix, 0.5, 6, 0.05)
  const found = await Promise.all(
    (['exact', 'sketch-pcg', 'cg'] as const).map((solver) =>
      complete(sample, [90, 80], {
        rank: 2,
        maxIterations: 6,
        ...everything,
        solver,
        innerIterations: 60,
        innerTolerance: 1e-13,
      }),
    ),
  )
  for (const each of found) t.true(Math.abs(each.report.residual - found[0]!.report.residual) < 1e-8)
})

test('a CountSketch makes a badly conditioned regression easy: 20 steps where plain ones get nowhere', async (t) => {
  // One row that observes the first 5000 of 10 000 rows of the basis: equations of condition 1e4. The other rows are so
  // large that making the whole basis orthonormal leaves that as it is.
  const [q, w] = [await basis(5000, 20, 1), await basis(20, 20, 2)]
  const scale = tensor(Float64Array.from({ length: 20 }, (_, i) => 10 ** (-4 * (i / 19))))
  const [x, noise, rest] = [await normal([20, 1], 3), await normal([5000, 1], 4), await normal([5000, 20], 5)]
  const a = await computed(() => matmul(mul(read(q), read(scale)), read(w), { transposeB: true }))
  const b = await computed(() => add(matmul(read(a), read(x)), mul(read(noise), 1e-4)))
  const whole = await computed(() => concat([read(a), mul(read(rest), 10)], 0))
  const indices = tensor(Int32Array.from({ length: 5000 }, (_, i) => i))
  const flat = tensor(Float64Array.from(await b.data(), Number))
  const solve = async (solver: 'exact' | 'sketch-pcg' | 'cg') => {
    const step = await addon.alternatingHalfStep(
      {
        pointers: tensor(Int32Array.of(0, 5000)).native,
        indices: indices.native,
        order: undefined,
        values: flat.native,
        weights: undefined,
      },
      whole.native,
      undefined,
      { solver, sketchRows: solver === 'sketch-pcg' ? 80 : 0, iterations: 20, tolerance: 0, ridge: 0, seed: 1 },
    )
    return Array.from(await new Tensor(step.factor).data(), Number)
  }
  const [exact, sketched, plain] = [await solve('exact'), await solve('sketch-pcg'), await solve('cg')]
  const off = (found: readonly number[]): number =>
    Math.hypot(...found.map((value, i) => value - exact[i]!)) / Math.hypot(...exact)
  t.true(off(sketched) < 1e-6, `sketched ${off(sketched)}`)
  t.true(off(plain) > 1e-3, `plain ${off(plain)}`)
})

test('additive noise is averaged away', async (t) => {
  const matrix = await lowRank(200, 200, [200, 200, 200, 200, 200])
  // Entries of about √(5 · 200² / 200²) = √5.
  const found = await complete(await observe(matrix, 0.3, 8, 0.05), [200, 200], { rank: 5, maxIterations: 20 })
  t.true((await errorOf(matrix, found)) < 0.05 / Math.sqrt(5))
  t.is(found.report.reason, 'stagnation')
})

test('held-out entries tell a fit from a recovery', async (t) => {
  const noise = Float64Array.from(randomNumbers(40 * 40, 9))
  const matrix = tensor(noise, [40, 40])
  const fit = await complete(await observe(matrix, 0.6, 10), [40, 40], {
    rank: 8,
    holdout: 0.2,
    maxIterations: 30,
    minChange: 0,
  })
  t.true(fit.report.residual < 0.3)
  t.true(fit.report.holdoutError! > 0.6, String(fit.report.holdoutError))
  const low = await lowRank(60, 60, [60, 60])
  const real = await complete(await observe(low, 0.5, 11), [60, 60], { rank: 2, holdout: 0.1 })
  t.true(real.report.holdoutError! < 1e-6)
})

test('weights of 0 and 1 are a mask, scaled weights change nothing, and 2 is twice the entry', async (t) => {
  const matrix = await lowRank(30, 25, [2, 1])
  const all = await observe(matrix, 0.8, 12, 0.1)
  const options = { rank: 2, maxIterations: 4, ...everything }
  const weights = Float64Array.from(all.values, (_, i) => Number(i % 3 !== 0))
  const kept = Array.from(all.values.keys()).filter((i) => i % 3 !== 0)
  const part = {
    rows: Int32Array.from(kept, (i) => all.rows[i]!),
    columns: Int32Array.from(kept, (i) => all.columns[i]!),
    values: Float64Array.from(kept, (i) => all.values[i]!),
  }
  const masked = await complete(all, [30, 25], { ...options, weights })
  const without = await complete(part, [30, 25], options)
  t.true(Math.abs(masked.report.residual - without.report.residual) < 1e-6)
  const scaled = await complete(all, [30, 25], { ...options, weights: weights.map((weight) => 7 * weight) })
  t.true(Math.abs(scaled.report.residual - masked.report.residual) < 1e-6)
})

test('outliers masked out: the fit to the rest is exact where a truncated SVD is far off', async (t) => {
  const matrix = await lowRank(100, 80, [100, 80])
  const entries = Array.from(await matrix.data(), Number)
  const outlier = (i: number): boolean => (i * 7919) % 50 === 0
  const kept = entries.flatMap((_, i) => (outlier(i) ? [] : [i]))
  const sample = {
    rows: Int32Array.from(kept, (i) => Math.floor(i / 80)),
    columns: Int32Array.from(kept, (i) => i % 80),
    values: Float64Array.from(kept, (i) => entries[i]!),
  }
  t.true((await errorOf(matrix, await complete(sample, [100, 80], { rank: 2 }))) < 1e-8)
  const spoiled = {
    rows: Int32Array.from(entries, (_, i) => Math.floor(i / 80)),
    columns: Int32Array.from(entries, (_, i) => i % 80),
    values: Float64Array.from(entries, (value, i) => (outlier(i) ? 50 : value)),
  }
  t.true((await errorOf(matrix, await complete(spoiled, [100, 80], { rank: 2 }))) > 0.1)
})

test('fresh entries for every half step, as the theorem has it, converge too', async (t) => {
  const matrix = await lowRank(150, 150, [1])
  const sample = await observe(matrix, 0.95, 13)
  const found = await complete(sample, [150, 150], { rank: 1, maxIterations: 4, fresh: true, ...everything })
  const error = await errorOf(matrix, found)
  t.true(error < 0.05, String(error))
})

test('a coherent row breaks the start that trusts it, not one that is clipped', async (t) => {
  // One row a thousand times larger than the rest carries the first singular vector alone.
  const matrix = await lowRank(80, 80, [1, 1])
  const entries = Float64Array.from(await matrix.data(), Number)
  for (let j = 0; j < 80; j += 1) entries[j]! *= 1e3
  const spiked = tensor(entries, [80, 80])
  const sample = await observe(spiked, 0.5, 14)
  const found = await complete(sample, [80, 80], { rank: 2, incoherence: 3, maxIterations: 60 })
  t.true((await errorOf(spiked, found)) < 1e-5)
})

test('a rank above the true one is fitted without a single NaN', async (t) => {
  const matrix = await lowRank(40, 40, [1])
  const sample = await observe(matrix, 0.7, 15)
  const free = await complete(sample, [40, 40], { rank: 4, maxIterations: 60 })
  t.true(free.report.residual < 1e-6)
  t.true(Array.from(await free.u.data(), Number).every(Number.isFinite))
  const zero = { rows: Int32Array.of(0, 0, 1, 1), columns: Int32Array.of(0, 1, 0, 1), values: new Float64Array(4) }
  t.is((await complete(zero, [2, 2], { rank: 1 })).report.residual, 0)
})

test('what the entries do not determine is refused, or given the least norm and reported', async (t) => {
  const argument = (message: RegExp) => ({ code: 'ERR_HEDDLE_ARGUMENT', message })
  const parts = {
    rows: Int32Array.of(0, 0, 1, 1),
    columns: Int32Array.of(0, 1, 2, 3),
    values: Float64Array.of(1, 2, 3, 4),
  }
  await t.throwsAsync(complete(parts, [2, 4], { rank: 1 }), argument(/at least 5 entries for rank 1, got 4/))
  const square = {
    rows: Int32Array.of(0, 0, 1, 1, 2, 2, 3, 3),
    columns: Int32Array.of(0, 1, 0, 1, 2, 3, 2, 3),
    values: new Float64Array(8).fill(1),
  }
  await t.throwsAsync(
    complete(square, [4, 4], { rank: 1 }),
    argument(/connect all rows and columns, got 2 separate parts/),
  )
  const accepted = await complete(square, [4, 4], { rank: 1, undetermined: 'minimum-norm' })
  t.is(accepted.report.parts, 2)

  const matrix = await lowRank(20, 20, [1, 1])
  const sample = await observe(matrix, 0.9, 16)
  const kept = Array.from(sample.rows.keys()).filter((i) => sample.rows[i] !== 3)
  const gap = {
    rows: Int32Array.from(kept, (i) => sample.rows[i]!),
    columns: Int32Array.from(kept, (i) => sample.columns[i]!),
    values: Float64Array.from(kept, (i) => sample.values[i]!),
  }
  await t.throwsAsync(complete(gap, [20, 20], { rank: 2 }), argument(/1 rows and 0 columns that are not/))
  const filled = await complete(gap, [20, 20], { rank: 2, undetermined: 'minimum-norm' })
  t.deepEqual(filled.report.undetermined, { rows: 1, columns: 0 })
  t.deepEqual(Array.from((await filled.u.data()).slice(6, 8), Number), [0, 0])
  const ridged = await complete(gap, [20, 20], { rank: 2, ridge: 1e-6 })
  t.deepEqual(ridged.report.undetermined, { rows: 0, columns: 0 })
})

test('entries that are not finite, outside, twice or too few for the rank are refused', async (t) => {
  const refused = async (sample: Sample, options: CompletionOptions, message: RegExp): Promise<void> => {
    await t.throwsAsync(complete(sample, [2, 2], options), { code: 'ERR_HEDDLE_ARGUMENT', message })
  }
  const good = { rows: Int32Array.of(0, 0, 1), columns: Int32Array.of(0, 1, 0), values: Float64Array.of(1, 2, 3) }
  await refused({ ...good, values: Float64Array.of(1, Number.NaN, 3) }, { rank: 1 }, /values: expected finite/)
  await refused({ ...good, values: Float64Array.of(1, 2) }, { rank: 1 }, /one for each of 3 entries/)
  await refused({ ...good, rows: Int32Array.of(0, 0, 2) }, { rank: 1 }, /a row in \[0, 2\)/)
  await refused({ ...good, rows: Int32Array.of(0, 0, 0), columns: Int32Array.of(0, 1, 1) }, { rank: 1 }, /twice/)
  await refused(good, { rank: 3 }, /at most 2/)
  await refused(good, { rank: 1, weights: Float64Array.of(1, -1, 1) }, /weights: expected finite numbers from 0 on/)
  await refused(good, { rank: 1, solvr: 'exact' } as CompletionOptions, /Did you mean "solver"/)
})

test('the same seed gives the same bits on any number of threads', async (t) => {
  const matrix = await lowRank(70, 60, [2, 1])
  const sample = await observe(matrix, 0.5, 17)
  const run = async (): Promise<unknown> => {
    const { u } = await complete(sample, [70, 60], {
      rank: 2,
      maxIterations: 3,
      solver: 'sketch-pcg',
      sketchRows: 8,
      ...everything,
    })
    return u.data()
  }
  const before = addon.threads()
  t.teardown(() => addon.setThreads(before))
  addon.setThreads(1)
  const one = await run()
  addon.setThreads(3)
  t.deepEqual(await run(), one)
})

test('an abort signal stops it between half steps', async (t) => {
  const matrix = await lowRank(30, 30, [1])
  const signal = AbortSignal.abort()
  await t.throwsAsync(complete(await observe(matrix, 0.9, 1), [30, 30], { rank: 1, signal }), {
    code: 'ERR_HEDDLE_ABORTED',
  })
})

test('no buffer of the size of the matrix: a million entries of 200 000 × 200 000', async (t) => {
  const count = 1_200_000
  const draws = randomNumbers(2 * count, 18)
  const place = (i: number): number => Math.floor(((draws[i]! + 1) / 2) * 200_000)
  const seen = new Set<number>()
  const entries: [number, number][] = []
  for (let i = 0; i < count; i += 1) {
    const at: [number, number] = [place(2 * i), place(2 * i + 1)]
    const key = at[0] * 200_000 + at[1]
    if (!seen.has(key)) entries.push(at)
    seen.add(key)
  }
  const sample = {
    rows: Int32Array.from(entries, ([row]) => row),
    columns: Int32Array.from(entries, ([, column]) => column),
    values: Float64Array.from(entries, ([row, column]) => Math.sin(row) * Math.cos(column)),
  }
  const before = process.memoryUsage().rss
  const { report } = await complete(sample, [200_000, 200_000], {
    rank: 2,
    maxIterations: 2,
    undetermined: 'minimum-norm',
  })
  t.is(report.rounds.length, 2)
  t.true(process.memoryUsage().rss - before < 1e9)
})
