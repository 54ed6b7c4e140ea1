/** Factorisations of one matrix, computed by LAPACK off the event loop. */
import { addon } from '../native.js'
import { Tensor } from '../tensor/tensor.js'

/** a = u · diag(s) · vh, with s descending. */
export interface Svd {
  /** `f32 [m, k]` with orthonormal columns; `[m, m]` when full. */
  readonly u: Tensor
  /** `f32 [k]` */
  readonly s: Tensor
  /** `f32 [k, n]` with orthonormal rows; `[n, n]` when full. */
  readonly vh: Tensor
}

/** a = q · r. */
export interface Qr {
  /** `f32 [m, k]` with orthonormal columns. */
  readonly q: Tensor
  /** `f32 [k, n]`, upper triangular. */
  readonly r: Tensor
}

/**
 * Singular value decomposition of `a f32 [m, n]`, k = min(m, n); with `full` all m left and n right vectors.
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when an element is not finite
 */
export async function svd(a: Tensor, { full = false }: { readonly full?: boolean } = {}): Promise<Svd> {
  const { u, s, vh } = await addon.svd(a.native, full)
  return { u: new Tensor(u), s: new Tensor(s), vh: new Tensor(vh) }
}

/**
 * QR decomposition of `a f32 [m, n]`, k = min(m, n), with the signs of LAPACK's reflectors, as PyTorch has them.
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when an element is not finite
 */
export async function qr(a: Tensor): Promise<Qr> {
  const { q, r } = await addon.qr(a.native)
  return { q: new Tensor(q), r: new Tensor(r) }
}
