/** The leading singular vectors of a matrix without its whole decomposition (Halko et al. 2011, arXiv 0909.4061). */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { computed } from '../graph/computed.js'
import { misuse, typeText } from '../graph/operator.js'
import { cast, mul, sqrt, square, sub } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { matrixSize, scaleColumns, transposedTimes, withSizes } from '../graph/ops/matrices.js'
import { randomNormal } from '../graph/ops/random.js'
import { max, sum } from '../graph/ops/reduce.js'
import type { RunOptions } from '../graph/program.js'
import { isSym, read, type Sym } from '../graph/sym.js'
import { seedWords } from '../tensor/seed.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import { qr, type Svd, svd } from './factorise.js'

/** Options of {@link svdLowRank}. */
export interface LowRankOptions {
  /** Number of singular values, at most min(m, n). */
  readonly rank: number
  /** Subspace iterations; more make the vectors more exact. Default 2. */
  readonly iterations?: number
  /** Seed of the random start; default 0. */
  readonly seed?: number
  /** Random stream; default 0. */
  readonly stream?: number
}

/** Options of {@link truncatedSvd}. */
export interface TruncatedSvdOptions extends LowRankOptions {
  /** Further vectors that are iterated and then dropped; default 10, fewer where the matrix has no more. */
  readonly oversampling?: number
}

/** The leading part of a singular value decomposition. */
export interface TruncatedSvd<T = Tensor> extends Svd<T> {
  /**
   * `[...]`: ‖a − u diag(s) vh‖₂ is at most this with a probability above 1 − 10⁻⁵, whatever a is. It is about ten times
   * the error itself.
   */
  readonly error: T
}

const schema = z.strictObject({
  rank: z.int().min(1),
  iterations: z.int().min(0).default(2),
  seed: z.int().min(0).default(0),
  stream: z.int().min(0).default(0),
  oversampling: z.int().min(0).default(10),
  signal: z.instanceof(AbortSignal).optional(),
})

/**
 * u `[..., m, rank]`, s `[..., rank]`, vh `[..., rank, n]` with u diag(s) vh close to the best approximation of
 * `a [..., m, n]` of that rank: a random sketch of a's range, refined by subspace iterations that are orthonormalised
 * after each product. Reads a 2 · iterations + 3 times.
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when an element is not finite; ERR_HEDDLE_ABORTED
 */
export function truncatedSvd(a: Tensor, options: TruncatedSvdOptions & RunOptions): Promise<TruncatedSvd>
export function truncatedSvd(a: Sym, options: TruncatedSvdOptions): TruncatedSvd<Sym>
export function truncatedSvd(
  a: Tensor | Sym,
  options: TruncatedSvdOptions & RunOptions,
): Promise<TruncatedSvd> | TruncatedSvd<Sym> {
  if (!isSym(a)) return computed((x) => truncatedSvd(x!, options), [a], options)
  const { rank, iterations, seed, stream, oversampling } = parseConfig('truncatedSvd', schema, options)
  const [m, n] = matrixSize('truncated_svd', a)
  const size = Math.min(rank + oversampling, m, n)
  if (rank > size) misuse('truncated_svd', `a rank of at most ${size}`, `${rank} for ${typeText(a)}`)
  const basis = rangeOf(a, gaussian(a, size, seedWords(seed), stream), iterations)
  const { u, s, vh } = svd(transposedTimes(basis, a))
  const kept = { u: matmul(basis, firstOf(u, -1, rank)), s: firstOf(s, -1, rank), vh: firstOf(vh, -2, rank) }
  const [low, high] = seedWords(seed)
  return { ...kept, error: errorBound(a, kept, gaussian(a, probes, [low, high ^ 0x80000000], stream)) }
}

/**
 * {@link truncatedSvd} as PyTorch's `svd_lowrank` has it: no further vectors, no error.
 * @throws as {@link truncatedSvd}
 */
export function svdLowRank(a: Tensor, options: LowRankOptions): Promise<Svd>
export function svdLowRank(a: Sym, options: LowRankOptions): Svd<Sym>
export function svdLowRank(a: Tensor | Sym, options: LowRankOptions): Promise<Svd> | Svd<Sym> {
  if (!isSym(a)) return computed((x) => svdLowRank(x!, options), [a])
  const { u, s, vh } = truncatedSvd(a, { ...options, oversampling: 0 })
  return { u, s, vh }
}

/** Gaussian probes of the error; the bound fails with probability 10^−probes. */
const probes = 5

/** An orthonormal basis of about the range of a, from its product with a sketch. */
function rangeOf(a: Sym, sketch: Sym, iterations: number): Sym {
  let basis = qr(matmul(a, sketch)).q
  for (let i = 0; i < iterations; i += 1) basis = qr(matmul(a, qr(transposedTimes(a, basis)).q)).q
  return basis
}

/** 10 √(2/π) max ‖(a − u diag(s) vh) ω‖ over Gaussian ω (Halko et al., lemma 4.1). */
function errorBound(a: Sym, { u, s, vh }: Svd<Sym>, probe: Sym): Sym {
  const missed = sub(matmul(a, probe), matmul(scaleColumns(u, s), matmul(vh, probe)))
  const lengths = sqrt(sum(square(missed), { axes: [-2] }))
  return mul(10 * Math.sqrt(2 / Math.PI), max(lengths, { axes: [-1] }))
}

const firstOf = (x: Sym, axis: number, size: number): Sym => slice(x, [{ axis, start: 0, end: size }])

/** Normal numbers `[..., n, count]` for a's columns, the same on any number of threads. */
function gaussian(a: Sym, count: number, words: readonly number[], stream: number): Sym {
  const drawn = randomNormal(read(tensor(Uint32Array.from(words), [2])), stream, withSizes(a, a.shape.at(-1)!, count))
  return a.dtype === 'f64' ? cast(drawn, 'f64') : drawn
}
