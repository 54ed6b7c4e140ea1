/** Systems of equations, least squares, and what follows from singular values: inverses, ranks, norms. */
import { computed } from '../graph/computed.js'
import { misuse, typeText } from '../graph/operator.js'
import { abs, add, cast, div, greater, maximum, mul, sqrt, square, sub } from '../graph/ops/elementwise.js'
import { pseudoinverseOf } from '../graph/ops/factorise.js'
import { expandDims, squeeze } from '../graph/ops/gather.js'
import { transpose } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { scaleColumns } from '../graph/ops/matrices.js'
import { max, sum } from '../graph/ops/reduce.js'
import { solveOf, solveTriangularOf, type TriangularOptions } from '../graph/ops/solve.js'
import { stopGradient } from '../graph/ops/stop_gradient.js'
import type { RunOptions } from '../graph/program.js'
import { isSym, type Sym } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'
import { svd, svdvals } from './factorise.js'

export type { TriangularOptions }

/** b as columns, and the way back for what has b's form: `b [..., n]` are vectors, `b [..., n, k]` matrices. */
function asColumns(op: string, a: Sym, b: Sym): { readonly columns: Sym; readonly back: (x: Sym) => Sym } {
  if (b.rank === a.rank) return { columns: b, back: (x) => x }
  if (b.rank !== a.rank - 1) misuse(op, `b of rank ${a.rank} or ${a.rank - 1}`, typeText(b))
  return { columns: expandDims(b, -1), back: (x) => squeeze(x, [x.rank - 1]) }
}

/**
 * x with a x = b, for `a [..., n, n]` and `b [..., n, k]` or `[..., n]` with the same leading dimensions.
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when a pivot is zero or an element not finite
 */
export function solve(a: Tensor, b: Tensor, options?: RunOptions): Promise<Tensor>
export function solve(a: Sym, b: Sym): Sym
export function solve(a: Tensor | Sym, b: Tensor | Sym, options: RunOptions = {}): Promise<Tensor> | Sym {
  if (!isSym(a)) return computed((x, y) => solve(x!, y!), [a, b as Tensor], options)
  const { columns, back } = asColumns('solve', a, b as Sym)
  return back(solveOf(a, columns))
}

/**
 * x with op(a) x = b for triangular a, shapes as in {@link solve}; the other triangle is not read.
 * @throws as {@link solve}
 */
export function solveTriangular(a: Tensor, b: Tensor, options?: TriangularOptions & RunOptions): Promise<Tensor>
export function solveTriangular(a: Sym, b: Sym, options?: TriangularOptions): Sym
export function solveTriangular(
  a: Tensor | Sym,
  b: Tensor | Sym,
  options: TriangularOptions & RunOptions = {},
): Promise<Tensor> | Sym {
  if (!isSym(a)) return computed((x, y) => solveTriangular(x!, y!, options), [a, b as Tensor], options)
  const { columns, back } = asColumns('solve_triangular', a, b as Sym)
  return back(solveTriangularOf(a, columns, options))
}

/** Which singular values count as zero. */
export interface CutoffOptions {
  /** Those at most this times the largest; default max(m, n) · the dtype's epsilon, as in PyTorch. */
  readonly rtol?: number
}

const epsilon = (a: Sym): number => (a.dtype === 'f64' ? 2 ** -52 : 2 ** -23)

/** 1 where a singular value counts, else 0. */
function counted(a: Sym, s: Sym, { rtol }: CutoffOptions): Sym {
  const [m, n] = a.shape.slice(-2) as [number, number]
  if (s.shape.at(-1) === 0) return s
  const cutoff = mul(max(s, { axes: [-1], keepDims: true }), rtol ?? Math.max(m, n) * epsilon(a))
  return stopGradient(greater(s, cutoff))
}

/** 1 / s where it counts, else 0. */
const invertedValues = (s: Sym, keep: Sym): Sym => div(keep, add(s, sub(1, keep)))

/**
 * The Moore–Penrose inverse `[..., n, m]`. Its derivative, of any order, is that among matrices of a's rank; singular
 * values that the cutoff drops count as zero in it, as in PyTorch.
 * @throws as {@link svd}
 */
export function pinv(a: Tensor, options?: CutoffOptions & RunOptions): Promise<Tensor>
export function pinv(a: Sym, options?: CutoffOptions): Sym
export function pinv(a: Tensor | Sym, options: CutoffOptions & RunOptions = {}): Promise<Tensor> | Sym {
  if (!isSym(a)) return computed((x) => pinv(x!, options), [a], options)
  return inverted(a, options).inverse
}

/** The pseudoinverse, and what it is made of. */
function inverted(a: Sym, options: CutoffOptions): { readonly inverse: Sym; readonly s: Sym; readonly keep: Sym } {
  const { u, s, vh } = svd(a)
  const keep = counted(a, s, options)
  const value = matmul(scaleColumns(transpose(vh), invertedValues(s, keep)), transpose(u))
  return { inverse: pseudoinverseOf(a, value), s, keep }
}

/** What {@link lstsq} gives. */
export interface LeastSquares<T = Tensor> {
  /** The solution of least norm, `[..., n, k]` or `[..., n]`. */
  readonly x: T
  /** Rank of a, `f32 [...]` (f64 for f64). */
  readonly rank: T
  /** Singular values of a. */
  readonly s: T
}

/**
 * x that makes ‖a x − b‖ least, and of those the shortest: {@link pinv} of a, times b.
 * @param b `[..., m, k]` or `[..., m]`
 * @throws as {@link svd}
 */
export function lstsq(a: Tensor, b: Tensor, options?: CutoffOptions & RunOptions): Promise<LeastSquares>
export function lstsq(a: Sym, b: Sym, options?: CutoffOptions): LeastSquares<Sym>
export function lstsq(
  a: Tensor | Sym,
  b: Tensor | Sym,
  options: CutoffOptions & RunOptions = {},
): Promise<LeastSquares> | LeastSquares<Sym> {
  if (!isSym(a)) return computed((x, y) => lstsq(x!, y!, options), [a, b as Tensor], options)
  const { columns, back } = asColumns('lstsq', a, b as Sym)
  const { inverse, s, keep } = inverted(a, options)
  return { x: back(matmul(inverse, columns)), rank: sum(keep, { axes: [-1] }), s }
}

/**
 * The number of singular values above the cutoff, i32 `[...]`.
 * @throws as {@link svd}
 */
export function matrixRank(a: Tensor, options?: CutoffOptions & RunOptions): Promise<Tensor>
export function matrixRank(a: Sym, options?: CutoffOptions): Sym
export function matrixRank(a: Tensor | Sym, options: CutoffOptions & RunOptions = {}): Promise<Tensor> | Sym {
  if (!isSym(a)) return computed((x) => matrixRank(x!, options), [a], options)
  return cast(sum(counted(a, svdvals(a), options), { axes: [-1] }), 'i32')
}

/**
 * `fro`: √Σ a². `spectral`: the largest singular value. `nuclear`: their sum. `l1,2`: the sum of the lengths of the
 * columns (the group lasso's norm).
 */
export type MatrixNorm = 'fro' | 'spectral' | 'nuclear' | 'l1,2'

/**
 * A norm of each matrix, `[...]`.
 * @throws as {@link svd}
 */
export function matrixNorm(a: Tensor, kind?: MatrixNorm, options?: RunOptions): Promise<Tensor>
export function matrixNorm(a: Sym, kind?: MatrixNorm): Sym
export function matrixNorm(a: Tensor | Sym, kind: MatrixNorm = 'fro', options: RunOptions = {}): Promise<Tensor> | Sym {
  if (!isSym(a)) return computed((x) => matrixNorm(x!, kind), [a], options)
  switch (kind) {
    case 'fro':
      return squeeze(lengths(a, [-2, -1]), [a.rank - 2, a.rank - 1])
    case 'l1,2':
      return sum(lengths(a, [-2]), { axes: [-2, -1] })
    case 'spectral':
      return max(svdvals(a), { axes: [-1] })
    case 'nuclear':
      return sum(svdvals(a), { axes: [-1] })
  }
}

/** √Σ a² over axes, which stay; squares of huge and tiny elements neither overflow nor vanish. */
function lengths(a: Sym, axes: readonly number[]): Sym {
  const scale = stopGradient(maximum(max(abs(a), { axes, keepDims: true }), 1e-37))
  return mul(scale, sqrt(sum(square(div(a, scale)), { axes, keepDims: true })))
}
