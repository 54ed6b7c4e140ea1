/**
 * A matrix of low rank from some of its entries, by robust alternating minimisation (Gu, Song, Yin, Zhang, ICLR 2024, arXiv
 * 2302.11068): each half round solves one small regression per row, and every pass costs O(observations · rank).
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError, throwIfAborted } from '../errors.js'
import { computed } from '../graph/computed.js'
import {
  abs,
  cast,
  div,
  equal,
  floor,
  greater,
  less,
  maximum,
  mul,
  select,
  sqrt,
  square,
  sub,
} from '../graph/ops/elementwise.js'
import { gather } from '../graph/ops/gather.js'
import { copy, slice } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { randomNormal, randomUniform } from '../graph/ops/random.js'
import { sum } from '../graph/ops/reduce.js'
import { type SparseSupport, sddmm, spmm } from '../graph/ops/sparse.js'
import { type Program, program } from '../graph/program.js'
import { read, type Sym } from '../graph/sym.js'
import { svd } from '../linalg/factorise.js'
import { addon, type HalfStepOptions, type NativeObservations } from '../native.js'
import { seedTensor } from '../tensor/seed.js'
import { Tensor, tensor } from '../tensor/tensor.js'
import { disposeSupport, type SparseEntries, supportFromEntries } from './sparse.js'

/** Options of {@link completeMatrix}. */
export interface CompletionOptions {
  /** Columns of u and v. */
  readonly rank: number
  /** Ends when ‖observed − fit‖ / ‖observed‖ is at most this; default 1e-9. */
  readonly tolerance?: number
  /** Ends when a round lowers the residual by a smaller share of it; default 1e-4. */
  readonly minChange?: number
  /** Rounds, each of both half steps; default 30. */
  readonly maxIterations?: number
  /** Of the start, the sketches and the held-out entries; default 0. */
  readonly seed?: number
  /**
   * How a row's regression is solved: `exact` by normal equations in f64; `sketch-pcg` by a few conjugate-gradient steps
   * preconditioned with a CountSketch, from the last round's solution; `cg` without the preconditioner, for incoherent,
   * well-conditioned matrices. Default `exact`; docs/numerics/matrix-completion.md compares
   * their costs.
   */
  readonly solver?: 'exact' | 'sketch-pcg' | 'cg'
  /** Rows of a sketch; default 4 · rank. Rows with no more observations are solved exactly. */
  readonly sketchRows?: number
  /** Conjugate-gradient steps of a half step; default 3. The first, which has no solution to start from, takes more. */
  readonly innerIterations?: number
  /** Share of a row's first gradient at which its steps may end; default 1e-3. */
  readonly innerTolerance?: number
  /** λ ≥ 0 added to the diagonal of every row's normal equations; default 0. */
  readonly ridge?: number
  /**
   * μ: entries of the start that are larger than 2μ √(rank / rows) are set to 0, so that no single row rules it. Default:
   * nothing is.
   */
  readonly incoherence?: number
  /** Share of the entries that is kept out of the fit, to report the error on; default 0. */
  readonly holdout?: number
  /**
   * Every half step sees a part of the entries of its own, as the theorem has it: 2 · maxIterations + 1 parts. Default
   * false: all entries, always.
   */
  readonly fresh?: boolean
  /** f64 weights ≥ 0, one per entry, of the squared errors; default 1. */
  readonly weights?: Tensor | Float64Array
  /**
   * Rows and columns that the entries do not determine (fewer than `rank` of them, or parts of the matrix that no entry
   * connects): `refuse` (default) them, or give them the solution of minimum norm and report how many there are.
   */
  readonly undetermined?: 'refuse' | 'minimum-norm'
  /** Stops between two half steps: ERR_HEDDLE_ABORTED. */
  readonly signal?: AbortSignal
}

/** One round of {@link completeMatrix}. */
export interface CompletionRound {
  /** ‖observed − fit‖ / ‖observed‖, weighted. */
  readonly residual: number
  /** Root mean square error on the held-out entries. */
  readonly holdoutError?: number
  /** Conjugate-gradient steps over all rows and columns. */
  readonly innerIterations: number
}

/** How a completion went. */
export interface CompletionReport {
  readonly rounds: readonly CompletionRound[]
  /** Why it ended: the residual fell to `tolerance`, it changed by less than `minChange`, or `maxIterations`. */
  readonly reason: 'tolerance' | 'stagnation' | 'iterations'
  /** Of the last round. */
  readonly residual: number
  /** Of the last round, with `holdout`. */
  readonly holdoutError?: number
  /** Parts of the matrix that no entry connects; 1 where everything is determined. */
  readonly parts: number
  /** Rows and columns that have the solution of minimum norm. */
  readonly undetermined: { readonly rows: number; readonly columns: number }
}

/** The matrix that fits the entries: u vᵀ. */
export interface Completion {
  /** f64 `[m, rank]` */
  readonly u: Tensor
  /** f64 `[n, rank]` with orthonormal columns */
  readonly v: Tensor
  readonly report: CompletionReport
}

const schema = z.strictObject({
  rank: z.int().min(1),
  tolerance: z.number().min(0).default(1e-9),
  minChange: z.number().min(0).default(1e-4),
  maxIterations: z.int().min(1).default(30),
  seed: z.int().min(0).default(0),
  solver: z.enum(['exact', 'sketch-pcg', 'cg']).default('exact'),
  sketchRows: z.int().min(1).optional(),
  innerIterations: z.int().min(1).default(3),
  innerTolerance: z.number().min(0).default(1e-3),
  ridge: z.number().min(0).default(0),
  incoherence: z.number().gt(0).optional(),
  holdout: z.number().min(0).lt(1).default(0),
  fresh: z.boolean().default(false),
  weights: z.custom<Tensor | Float64Array>().optional(),
  undetermined: z.enum(['refuse', 'minimum-norm']).default('refuse'),
  signal: z.instanceof(AbortSignal).optional(),
})

type Options = z.infer<typeof schema>

/** The observations by rows, and what every step needs of them. */
interface Problem {
  readonly options: Options
  readonly shape: readonly [number, number]
  readonly support: SparseSupport
  /** f64 [count] */
  readonly values: Tensor
  /** f64 [count]: 0 for what is held out. */
  readonly weights: Tensor | undefined
  /** f64 [count]: 1 for what is held out. */
  readonly held: Tensor | undefined
}

/** Both factors; the product is left · rightᵀ, and the right one has orthonormal columns. */
interface Factors {
  readonly left: Tensor
  readonly right: Tensor
}

/**
 * The matrix of rank k that fits the given entries, without a buffer of the size of the matrix. Starts from the leading
 * singular vectors of the observed matrix; the same arguments give the same result on any number of threads. A small
 * residual on the entries is not recovery: hold some out.
 * @param indices rows and columns of the entries, each entry once
 * @param values one finite number per entry
 * @param shape [m, n]
 * @throws ERR_HEDDLE_ARGUMENT for entries outside, twice or not finite, and where they do not determine the matrix, unless
 * `undetermined` allows for it; ERR_HEDDLE_SHAPE; ERR_HEDDLE_ABORTED
 */
export async function completeMatrix(
  indices: SparseEntries,
  values: Tensor | Float64Array | Float32Array,
  shape: readonly [number, number],
  options: CompletionOptions,
): Promise<Completion> {
  const parsed = parseConfig('completeMatrix', schema, options)
  const problem = await problemOf(indices, values, shape, parsed)
  try {
    const parts = await checkDetermined(problem)
    return await alternate(problem, parts)
  } finally {
    disposeSupport(problem.support)
    problem.values.dispose()
    problem.weights?.dispose()
    problem.held?.dispose()
  }
}

async function alternate(problem: Problem, parts: number): Promise<Completion> {
  const { maxIterations, tolerance, minChange } = problem.options
  const measure = measureOf(problem)
  const rounds: CompletionRound[] = []
  let undetermined = { rows: 0, columns: 0 }
  let reason: CompletionReport['reason'] = 'iterations'
  let factors: Factors | undefined
  try {
    for (let round = 0; round < maxIterations && reason === 'iterations'; round += 1) {
      const columns = await halfStep(problem, 'columns', 2 * round, factors ?? { left: await firstBasis(problem) })
      const rows = await halfStep(problem, 'rows', 2 * round + 1, columns.factors)
      factors = rows.factors
      undetermined = { rows: rows.undetermined, columns: columns.undetermined }
      if (round === 0) refuseUndetermined(problem, undetermined)
      const innerIterations = columns.innerIterations + rows.innerIterations
      rounds.push({ ...(await measured(measure, factors, problem)), innerIterations })
      reason = reasonToEnd(rounds, tolerance, minChange)
    }
    const { residual, holdoutError } = rounds.at(-1)!
    const last = holdoutError === undefined ? { residual } : { residual, holdoutError }
    return { u: factors!.left, v: factors!.right, report: { rounds, reason, ...last, parts, undetermined } }
  } finally {
    measure.dispose()
  }
}

function reasonToEnd(
  rounds: readonly CompletionRound[],
  tolerance: number,
  minChange: number,
): CompletionReport['reason'] {
  const [before, now] = [rounds.at(-2)?.residual, rounds.at(-1)!.residual]
  if (now <= tolerance) return 'tolerance'
  return before !== undefined && before - now < minChange * before ? 'stagnation' : 'iterations'
}

/**
 * Solves for the columns' factor given the rows' one, or the other way round. What is given is made orthonormal; its
 * other factor, where there is one, is where iterative solvers start.
 */
async function halfStep(
  problem: Problem,
  side: 'rows' | 'columns',
  step: number,
  given: { readonly left: Tensor; readonly right?: Tensor },
): Promise<{ readonly factors: Factors; readonly innerIterations: number; readonly undetermined: number }> {
  throwIfAborted(problem.options.signal, 'completeMatrix')
  const weights = await stepWeights(problem, step + 1)
  const [basis, start] = side === 'columns' ? [given.left, given.right] : [given.right!, given.left]
  const result = await addon.alternatingHalfStep(
    observations(problem, side, weights ?? problem.weights),
    basis.native,
    start?.native,
    stepOptions(problem.options, step),
  )
  weights?.dispose()
  basis.dispose()
  start?.dispose()
  const [factor, orthonormal] = [new Tensor(result.factor), new Tensor(result.basis)]
  const factors = side === 'columns' ? { left: orthonormal, right: factor } : { left: factor, right: orthonormal }
  return { factors, innerIterations: result.iterations, undetermined: result.undetermined }
}

function stepOptions(options: Options, step: number): HalfStepOptions {
  const { solver, rank, sketchRows = 4 * rank, innerIterations, innerTolerance, ridge, seed } = options
  const cold = step === 0
  return {
    solver,
    sketchRows: solver === 'sketch-pcg' ? Math.max(sketchRows, rank) : 0,
    iterations: cold ? Math.max(innerIterations, 2 * rank + 20) : innerIterations,
    tolerance: cold ? 1e-10 : innerTolerance,
    ridge,
    seed: seed + step,
  }
}

const observations = (
  { support, values }: Problem,
  side: 'rows' | 'columns',
  weights: Tensor | undefined,
): NativeObservations => ({
  pointers: (side === 'rows' ? support.rowPointers : support.columnPointers).native,
  indices: (side === 'rows' ? support.columnIndices : support.rowIndices).native,
  order: side === 'rows' ? undefined : support.columnOrder.native,
  values: values.native,
  weights: weights?.native,
})

/** The leading left singular vectors of the observed matrix, whose entries that are missing count as 0. */
async function firstBasis(problem: Problem): Promise<Tensor> {
  const { options, shape, support, values } = problem
  const { rank, seed, incoherence } = options
  const width = Math.min(rank + 8, ...shape)
  const weights = (await stepWeights(problem, 0)) ?? problem.weights
  const entries = (): Sym => (weights ? mul(read(values), read(weights)) : read(values))
  using words = seedTensor(seed)
  let basis = await orthonormal(() =>
    spmm(support, entries(), cast(randomNormal(read(words), 0, [shape[1], width]), 'f64')),
  )
  for (let i = 0; i < 3; i += 1) {
    const across = await orthonormal(() => spmm(support, entries(), read(basis), { transpose: true }))
    basis.dispose()
    basis = await orthonormal(() => spmm(support, entries(), read(across)))
    across.dispose()
  }
  using small = await computed(() => cast(spmm(support, entries(), read(basis), { transpose: true }), 'f32'))
  const { u, s, vh } = await svd(small)
  const start = await computed(() => {
    const leading = cast(slice(read(vh), [{ axis: 0, start: 0, end: rank }]), 'f64')
    const vectors = matmul(read(basis), leading, { transposeB: true })
    const limit = incoherence === undefined ? undefined : 2 * incoherence * Math.sqrt(rank / shape[0])
    return limit === undefined ? vectors : select(cast(greater(abs(vectors), limit), 'f64'), 0, vectors)
  })
  for (const each of [u, s, vh, basis]) each.dispose()
  if (weights !== problem.weights) weights?.dispose()
  return start
}

async function orthonormal(fn: () => Sym): Promise<Tensor> {
  using columns = await computed(fn)
  return new Tensor(await addon.orthonormalColumns(columns.native))
}

/** Weights of the entries that this half step may see, with `fresh`; part 0 is the start's. */
async function stepWeights({ options, values, weights }: Problem, part: number): Promise<Tensor | undefined> {
  if (!options.fresh) return undefined
  using words = seedTensor(options.seed)
  return await computed(() => {
    const parts = 2 * options.maxIterations + 1
    const drawn = floor(mul(randomUniform(read(words), 1, values.shape), parts))
    const own = cast(equal(drawn, part), 'f64')
    return weights ? mul(own, read(weights)) : own
  })
}

/** [residual, held-out error]; the second means nothing where nothing was held out. */
type Measure = Program<readonly [Sym, Sym]>

function measureOf({ support, values, weights, held }: Problem): Measure {
  return program((left, right) => {
    const entries = read(values)
    const errors = square(sub(sddmm(support, left!, right!), entries))
    const weighted = (numbers: Sym): Sym => sum(weights ? mul(read(weights), numbers) : numbers)
    const residual = ratio(weighted(errors), weighted(square(entries)))
    return [residual, held ? ratio(sum(mul(read(held), errors)), sum(read(held))) : residual] as const
  })
}

/** √(a / b), 0 for a = 0. */
const ratio = (a: Sym, b: Sym): Sym => sqrt(div(a, maximum(b, Number.MIN_VALUE)))

async function measured(
  measure: Measure,
  { left, right }: Factors,
  { held }: Problem,
): Promise<Pick<CompletionRound, 'residual' | 'holdoutError'>> {
  const [residual, holdoutError] = await measure(left, right)
  const numbers = held ? { holdoutError: holdoutError.item() } : {}
  const result = { residual: residual.item(), ...numbers }
  residual.dispose()
  holdoutError.dispose()
  return result
}

async function problemOf(
  indices: SparseEntries,
  values: Tensor | Float64Array | Float32Array,
  shape: readonly [number, number],
  options: Options,
): Promise<Problem> {
  const most = Math.min(...shape)
  if (options.rank > most) refuse('completeMatrix.rank', `at most ${most}`, `${options.rank}`)
  const { support, source } = await supportFromEntries(indices, shape)
  try {
    const sorted = await entryNumbers('values', values, source)
    const given = options.weights && (await entryNumbers('weights', options.weights, source))
    const held = options.holdout > 0 ? await heldOut(options, support.count) : undefined
    const weights = held ? await remaining(held, given) : given
    return { options, shape, support, values: sorted, weights, held }
  } catch (error) {
    disposeSupport(support)
    throw error
  } finally {
    source.dispose()
  }
}

/** One f64 per entry, in the order of the support. */
async function entryNumbers(
  name: string,
  numbers: Tensor | Float64Array | Float32Array,
  source: Tensor,
): Promise<Tensor> {
  const given = numbers instanceof Tensor ? numbers : tensor(numbers)
  if (given.shape.length !== 1 || given.size !== source.size)
    refuse(`completeMatrix.${name}`, `one for each of ${source.size} entries`, `shape [${given.shape}]`)
  const { sorted, check } = await computed(() => {
    const entries = gather(cast(read(given), 'f64'), 0, read(source))
    // 0 · x is NaN for an x that is not finite; so is the root of a negative weight.
    return { sorted: copy(entries), check: sum(mul(name === 'weights' ? sqrt(entries) : entries, 0)) }
  })
  if (given !== numbers) given.dispose()
  const finite = check.item() === 0
  check.dispose()
  if (!finite) {
    sorted.dispose()
    const expected = name === 'weights' ? 'finite numbers from 0 on' : 'finite numbers'
    refuse(`completeMatrix.${name}`, expected, 'others among them')
  }
  return sorted
}

async function heldOut({ seed, holdout }: Options, count: number): Promise<Tensor> {
  using words = seedTensor(seed)
  return await computed(() => cast(less(randomUniform(read(words), 2, [count]), holdout), 'f64'))
}

const remaining = (held: Tensor, weights: Tensor | undefined): Promise<Tensor> =>
  computed(() => {
    const kept = sub(1, read(held))
    return weights ? mul(kept, read(weights)) : kept
  })

/** Parts of the matrix, after refusing entries that are too few or do not connect. */
async function checkDetermined({ options, shape, support }: Problem): Promise<number> {
  const { rowPointers, columnIndices } = support
  const parts = await addon.connectedParts(rowPointers.native, columnIndices.native, shape[1])
  if (options.undetermined === 'minimum-norm' || options.ridge > 0) return parts
  const freedom = options.rank * (shape[0] + shape[1] - options.rank)
  if (freedom > support.count)
    refuse('completeMatrix', `at least ${freedom} entries for rank ${options.rank}`, `${support.count}`, allowed)
  if (parts > 1)
    refuse('completeMatrix', 'entries that connect all rows and columns', `${parts} separate parts`, allowed)
  return parts
}

function refuseUndetermined({ options }: Problem, { rows, columns }: CompletionReport['undetermined']): void {
  if (options.undetermined === 'minimum-norm' || options.ridge > 0 || rows + columns === 0) return
  refuse(
    'completeMatrix',
    `entries that determine every row and column at rank ${options.rank}`,
    `${rows} rows and ${columns} columns that are not`,
    allowed,
  )
}

const allowed = "A ridge, or undetermined: 'minimum-norm', accepts that."

function refuse(place: string, expected: string, got: string, hint?: string): never {
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got, ...(hint ? { hint } : {}) })
}
