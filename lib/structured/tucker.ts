/**
 * Tucker decompositions X ≈ G ×₁ A₁ … ×_N A_N with orthonormal factors: HOSVD, its sequentially truncated form, and HOOI
 * (De Lathauwer et al. 2000; Vannieuwenhoven et al. 2012).
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { moveAxis } from '../graph/ops/axes.js'
import { cast, sqrt, square, sub } from '../graph/ops/elementwise.js'
import { copy, slice } from '../graph/ops/index.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import { modeProducts } from '../graph/ops/tucker.js'
import { read, type Sym } from '../graph/sym.js'
import { svd } from '../linalg/factorise.js'
import { elementCount, shapeText } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'

/** X ≈ core ×₁ factors[0] … ×_N factors[N − 1]. */
export interface Tucker {
  /** `[j₁, …, j_N]` */
  readonly core: Tensor
  /** `[iₙ, jₙ]` with orthonormal columns; undefined for an axis that was left as it is. */
  readonly factors: readonly (Tensor | undefined)[]
}

/** A Tucker tensor of a given one, and how close it is. */
export interface TuckerDecomposition extends Tucker {
  /** ‖X − X̂‖ / ‖X‖ of Frobenius, measured on the reconstruction; 0 for X = 0. */
  readonly relativeError: number
}

/** What {@link hooi} gives. */
export interface HooiDecomposition extends TuckerDecomposition {
  /** 1 − relative error: of the start, then after each sweep over all axes. */
  readonly fit: readonly number[]
  /** `converged`: the fit changed by less than the tolerance. */
  readonly reason: 'converged' | 'iterations'
}

/** Ranks of a decomposition. */
export interface TuckerOptions {
  /**
   * jₙ for each axis, or one for all (at most the axis's size); undefined in the list leaves an axis as it is (partial
   * Tucker).
   */
  readonly ranks?: number | readonly (number | undefined)[] | undefined
  /** Instead of `ranks`: the smallest ranks for which HOSVD promises this relative error. */
  readonly error?: number | undefined
  /** With `error` or a single rank: the axes to decompose; default all. */
  readonly axes?: readonly number[] | undefined
}

/** Options of {@link hosvd}. */
export interface HosvdOptions extends TuckerOptions {
  /**
   * Default true: each axis is truncated before the next one is looked at, which costs less and bounds the error by the
   * same sum. False: all factors are singular vectors of X's own unfoldings.
   */
  readonly sequential?: boolean
}

/** Options of {@link hooi}. */
export interface HooiOptions extends TuckerOptions {
  /** Ends when a sweep changes the fit by less; default 1e-6. */
  readonly tolerance?: number
  /** Sweeps over all axes; default 50. */
  readonly maxIterations?: number
}

const rank = z.int().min(1)
const schema = z.strictObject({
  ranks: z.union([rank, z.array(rank.optional())]).optional(),
  error: z.number().min(0).optional(),
  axes: z.array(z.int()).optional(),
  sequential: z.boolean().default(true),
  tolerance: z.number().min(0).default(1e-6),
  maxIterations: z.int().min(0).default(50),
})

/** How many singular vectors to keep of an axis, or that from its singular values. */
type Keep = number | ((values: readonly number[]) => number)

/**
 * Higher-order SVD: the leading left singular vectors of every unfolding. ‖X − X̂‖² is at most the sum of what the axes
 * leave out, and at most N times that of the best Tucker tensor of these ranks.
 * @param x f32, of at least one axis
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE
 */
export async function hosvd(x: Tensor, options: HosvdOptions): Promise<TuckerDecomposition> {
  const parsed = parseConfig('hosvd', schema, options)
  const keeps = await keepsOf('hosvd', x, parsed)
  const factors: (Tensor | undefined)[] = x.shape.map(() => undefined)
  let current = x
  for (const [axis, keep] of keeps.entries()) {
    if (keep === undefined) continue
    factors[axis] = await leadingVectors(current, axis, keep)
    if (!parsed.sequential) continue
    const next = await projected(current, only(factors, axis))
    if (current !== x) current.dispose()
    current = next
  }
  if (parsed.sequential && current !== x)
    return { core: current, factors, relativeError: await errorOf(x, { core: current, factors }) }
  const core = await projected(x, factors)
  return { core, factors, relativeError: await errorOf(x, { core, factors }) }
}

/**
 * Higher-order orthogonal iteration: starts from the sequentially truncated HOSVD and improves one factor after the other
 * with all others fixed. The fit never falls.
 * @param x f32
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE
 */
export async function hooi(x: Tensor, options: HooiOptions): Promise<HooiDecomposition> {
  const { tolerance, maxIterations, ...ranks } = parseConfig('hooi', schema, options)
  const start = await hosvd(x, ranks)
  const factors = [...start.factors]
  let { core, relativeError } = start
  const fit = [1 - relativeError]
  let converged = false
  for (let sweep = 0; sweep < maxIterations && !converged; sweep += 1) {
    for (const [axis, factor] of factors.entries()) {
      if (!factor) continue
      using others = await projected(x, factors.with(axis, undefined))
      factors[axis] = await leadingVectors(others, axis, factor.shape[1]!)
      factor.dispose()
    }
    core.dispose()
    core = await projected(x, factors)
    relativeError = await errorOf(x, { core, factors })
    fit.push(1 - relativeError)
    converged = Math.abs(fit.at(-1)! - fit.at(-2)!) < tolerance
  }
  return { core, factors, relativeError, fit, reason: converged ? 'converged' : 'iterations' }
}

/** X̂ as a traced tensor, multiplied out in the cheapest order. */
export const tuckerToDense = ({ core, factors }: Tucker): Sym =>
  modeProducts(
    read(core),
    factors.map((factor) => factor && read(factor)),
  )

/** Numbers in the core and the factors. */
export const tuckerParameterCount = ({ core, factors }: Tucker): number =>
  factors.reduce((count, factor) => count + (factor?.size ?? 0), core.size)

/** Frees the core and the factors. */
export function disposeTucker({ core, factors }: Tucker): void {
  core.dispose()
  for (const factor of factors) factor?.dispose()
}

const only = <T>(list: readonly (T | undefined)[], axis: number): (T | undefined)[] =>
  list.map((each, i) => (i === axis ? each : undefined))

/** X ×ₙ Aₙᵀ over all factors that are there. */
const projected = (x: Tensor, factors: readonly (Tensor | undefined)[]): Promise<Tensor> =>
  computed(() => {
    const matrices = factors.map((factor) => factor && read(factor))
    return matrices.some((matrix) => matrix) ? modeProducts(read(x), matrices, { transpose: true }) : copy(read(x))
  })

/** The unfolding along an axis: `[size, all others]`. */
const unfolded = (x: Sym, axis: number): Sym => reshape(moveAxis(x, axis, 0), [x.shape[axis]!, -1])

async function leadingVectors(x: Tensor, axis: number, keep: Keep): Promise<Tensor> {
  // Without the right vectors the SVD of a wide unfolding needs no more than the triangle of its QR.
  const vectors = (u: Sym, count: number): Sym => copy(slice(u, [{ axis: 1, start: 0, end: count }]))
  if (typeof keep === 'number')
    return await computed(() => vectors(svd(unfolded(read(x), axis)).u, Math.min(keep, mostOf(x, axis))))
  const { u, s } = await computed(() => {
    const factors = svd(unfolded(read(x), axis))
    return { u: factors.u, s: factors.s }
  })
  try {
    const values = Array.from(await s.data(), Number)
    return await computed(() => vectors(read(u), keep(values)))
  } finally {
    for (const each of [u, s]) each.dispose()
  }
}

async function errorOf(x: Tensor, tucker: Tucker): Promise<number> {
  const norms = await computed(() => {
    const norm = (value: Sym): Sym => sqrt(sum(square(cast(value, 'f64'))))
    return { whole: norm(read(x)), rest: norm(sub(read(x), tuckerToDense(tucker))) }
  })
  const [whole, rest] = [norms.whole.item(), norms.rest.item()]
  norms.whole.dispose()
  norms.rest.dispose()
  return whole === 0 ? 0 : rest / whole
}

/** What to keep of each axis; undefined for one that stays as it is. */
async function keepsOf(
  place: string,
  x: Tensor,
  { ranks, error, axes }: z.infer<typeof schema>,
): Promise<(Keep | undefined)[]> {
  const refuse = (expected: string, got: string): never => {
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
  }
  if ((ranks === undefined) === (error === undefined)) refuse('either ranks or error', ranks ? 'both' : 'neither')
  const chosen = axes?.map((axis) => (axis < 0 ? axis + x.shape.length : axis)) ?? [...x.shape.keys()]
  if (chosen.some((axis) => !(axis in x.shape))) refuse(`axes of ${shapeText(x.shape)}`, `[${axes}]`)
  if (Array.isArray(ranks)) {
    if (ranks.length !== x.shape.length || axes)
      refuse(`a rank for each of ${x.shape.length} axes and no axes`, `[${ranks}]`)
    for (const [axis, each] of ranks.entries())
      if (each !== undefined && each > mostOf(x, axis))
        refuse(`ranks of at most ${mostOf(x, axis)} along axis ${axis}`, `${each}`)
    return ranks
  }
  const keep = error === undefined ? undefined : within(error, await normOf(x), chosen.length)
  return x.shape.map((_, axis) => (chosen.includes(axis) ? (keep ?? (ranks as number)) : undefined))
}

/** The most directions that an unfolding can have. */
const mostOf = (x: Tensor, axis: number): number => Math.min(x.shape[axis]!, elementCount(x.shape) / x.shape[axis]!)

/** The fewest values whose rest is at most an axis's share of the squared error. */
const within =
  (error: number, norm: number, axes: number): Keep =>
  (values) => {
    let rest = 0
    let kept = values.length
    while (kept > 1 && rest + values[kept - 1]! ** 2 <= (error * norm) ** 2 / axes) rest += values[--kept]! ** 2
    return kept
  }

async function normOf(x: Tensor): Promise<number> {
  using norm = await computed(() => sqrt(sum(square(cast(read(x), 'f64')))))
  return norm.item()
}
