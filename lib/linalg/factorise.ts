/**
 * Factorisations of matrices and of batches of them, `a [..., m, n]` of f32 or f64: of tensors, computed off the event
 * loop and abortable between matrices, or of values in a program, with derivatives. k stands for min(m, n).
 */
import { computed } from '../graph/computed.js'
import { add, div, equal, mul } from '../graph/ops/elementwise.js'
import { eighOf, qrOf, qrPivotedOf, svdOf } from '../graph/ops/factorise.js'
import { identityLike, scaleRows } from '../graph/ops/matrices.js'
import { sum } from '../graph/ops/reduce.js'
import { choleskyOf, luOf } from '../graph/ops/solve.js'
import type { RunOptions } from '../graph/program.js'
import { isSym, type Sym } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'

/** a = u · diag(s) · vh, with s descending. */
export interface Svd<T = Tensor> {
  /** `[..., m, k]` with orthonormal columns; `[..., m, m]` when full. */
  readonly u: T
  /** `[..., k]` */
  readonly s: T
  /** `[..., k, n]` with orthonormal rows; `[..., n, n]` when full. */
  readonly vh: T
}

/** Which vectors {@link svd} and {@link qr} give. */
export interface FactorOptions {
  /** All m (and n) vectors instead of k. */
  readonly full?: boolean
}

/**
 * Singular value decomposition. Batches of small matrices are computed side by side in vector lanes, others by LAPACK.
 *
 * In a program its gradient is finite for all matrices. Where singular values are equal the part that would turn their
 * vectors into each other is zero, for these have no derivative (that of u · vh and of the singular values is exact
 * there too). Through full vectors of a rectangular matrix a gradient is refused.
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when an element is not finite; ERR_HEDDLE_ABORTED
 */
export function svd(a: Tensor, options?: FactorOptions & RunOptions): Promise<Svd>
export function svd(a: Sym, options?: FactorOptions): Svd<Sym>
export function svd(a: Tensor | Sym, options: FactorOptions & RunOptions = {}): Promise<Svd> | Svd<Sym> {
  if (!isSym(a)) return computed((x) => svd(x!, options), [a], options)
  const [u, s, vh] = svdOf(a, options.full ?? false)
  return { u: u!, s: s!, vh: vh! }
}

/**
 * Singular values `[..., k]` alone, descending.
 * @throws as {@link svd}
 */
export function svdvals(a: Tensor, options?: RunOptions): Promise<Tensor>
export function svdvals(a: Sym): Sym
export function svdvals(a: Tensor | Sym, options: RunOptions = {}): Promise<Tensor> | Sym {
  return isSym(a) ? svdOf(a, false)[1]! : computed((x) => svdvals(x!), [a], options)
}

/** a = q · r. */
export interface Qr<T = Tensor> {
  /** `[..., m, k]` with orthonormal columns; `[..., m, m]` when full. */
  readonly q: T
  /** `[..., k, n]`, upper triangular; `[..., m, n]` when full. */
  readonly r: T
}

/**
 * QR decomposition with the signs of LAPACK's reflectors, as PyTorch has them. Its gradient needs full column rank (of
 * the first m columns, if there are more) and is refused through a full q of a tall matrix.
 * @throws as {@link svd}
 */
export function qr(a: Tensor, options?: FactorOptions & RunOptions): Promise<Qr>
export function qr(a: Sym, options?: FactorOptions): Qr<Sym>
export function qr(a: Tensor | Sym, options: FactorOptions & RunOptions = {}): Promise<Qr> | Qr<Sym> {
  if (!isSym(a)) return computed((x) => qr(x!, options), [a], options)
  const [q, r] = qrOf(a, options.full ?? false)
  return { q: q!, r: r! }
}

/** a[..., pivots] = q · r, the diagonal of r descending in magnitude. */
export interface PivotedQr<T = Tensor> extends Qr<T> {
  /** i32 `[..., n]`: which column of a stands where. */
  readonly pivots: T
}

/**
 * QR decomposition with column pivoting (LAPACK's geqp3), thin. It has no gradient.
 * @throws as {@link svd}
 */
export function qrPivoted(a: Tensor, options?: RunOptions): Promise<PivotedQr>
export function qrPivoted(a: Sym): PivotedQr<Sym>
export function qrPivoted(a: Tensor | Sym, options: RunOptions = {}): Promise<PivotedQr> | PivotedQr<Sym> {
  if (!isSym(a)) return computed((x) => qrPivoted(x!), [a], options)
  const [q, r, pivots] = qrPivotedOf([a])
  return { q: q!, r: r!, pivots: pivots! }
}

/** a = v · diag(w) · vᵀ, with w ascending. */
export interface Eigh<T = Tensor> {
  /** `[..., n]` */
  readonly w: T
  /** `[..., n, n]`, an eigenvector in each column. */
  readonly v: T
}

/**
 * Eigenvalues and eigenvectors of symmetric matrices `a [..., n, n]`, of which the lower triangle is read. Its gradient is
 * symmetric, and near equal eigenvalues what {@link svd} says of its own.
 * @throws as {@link svd}
 */
export function eigh(a: Tensor, options?: RunOptions): Promise<Eigh>
export function eigh(a: Sym): Eigh<Sym>
export function eigh(a: Tensor | Sym, options: RunOptions = {}): Promise<Eigh> | Eigh<Sym> {
  if (!isSym(a)) return computed((x) => eigh(x!), [a], options)
  const [w, v] = eighOf([a])
  return { w: w!, v: v! }
}

/** a[permutation] = l · u (rows of a in another order). */
export interface Lu<T = Tensor> {
  /** i32 `[..., m]`: which row of a stands where. */
  readonly permutation: T
  /** `[..., m, k]`, lower triangular with ones on its diagonal. */
  readonly l: T
  /** `[..., k, n]`, upper triangular. */
  readonly u: T
}

/**
 * LU decomposition with row pivoting; of singular matrices too. Its gradient needs an invertible matrix.
 * @throws as {@link svd}
 */
export function lu(a: Tensor, options?: RunOptions): Promise<Lu>
export function lu(a: Sym): Lu<Sym>
export function lu(a: Tensor | Sym, options: RunOptions = {}): Promise<Lu> | Lu<Sym> {
  if (!isSym(a)) return computed((x) => lu(x!), [a], options)
  const [permutation, l, u] = luOf([a])
  return { permutation: permutation!, l: l!, u: u! }
}

/** a[permutation] = l · diag(d) · u, with ones on the diagonals of both l and u. */
export interface Ldu<T = Tensor> extends Lu<T> {
  /** `[..., k]` */
  readonly d: T
}

/**
 * LDU decomposition with row pivoting. A row of u whose pivot is zero is that of LU.
 * @throws as {@link svd}
 */
export function ldu(a: Tensor, options?: RunOptions): Promise<Ldu>
export function ldu(a: Sym): Ldu<Sym>
export function ldu(a: Tensor | Sym, options: RunOptions = {}): Promise<Ldu> | Ldu<Sym> {
  if (!isSym(a)) return computed((x) => ldu(x!), [a], options)
  const { permutation, l, u } = lu(a)
  const d = diagonalOf(u)
  const divisor = add(d, equal(d, 0))
  return { permutation, l, d, u: scaleRows(u, div(1, divisor)) }
}

/**
 * The main diagonal of `a [..., k, n]`, k ≤ n.
 * @internal
 */
export function diagonalOf(a: Sym): Sym {
  const [k, n] = [a.shape.at(-2)!, a.shape.at(-1)!]
  return sum(mul(a, identityLike(k, a, n)), { axes: [-1] })
}

/**
 * l with a = l lᵀ, lower triangular, of symmetric positive definite `a [..., n, n]`, of which the lower triangle is read.
 * @throws as {@link svd}; ERR_HEDDLE_ARGUMENT when a matrix is not positive definite
 */
export function cholesky(a: Tensor, options?: RunOptions): Promise<Tensor>
export function cholesky(a: Sym): Sym
export function cholesky(a: Tensor | Sym, options: RunOptions = {}): Promise<Tensor> | Sym {
  return isSym(a) ? choleskyOf(a) : computed((x) => cholesky(x!), [a], options)
}
