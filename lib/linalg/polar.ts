/** The polar decomposition. */
import { computed } from '../graph/computed.js'
import { add, div, maximum, mul, sub } from '../graph/ops/elementwise.js'
import { expandDims } from '../graph/ops/gather.js'
import { transpose } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { matrixSize, scaleRows, timesTransposed, transposedTimes } from '../graph/ops/matrices.js'
import type { RunOptions } from '../graph/program.js'
import { isSym, type Sym } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'
import { svd } from './factorise.js'
import { matrixNorm } from './solve.js'

/** a = u · p. */
export interface Polar<T = Tensor> {
  /** `[..., m, n]` with orthonormal columns (m ≥ n) or rows: the nearest such matrix to a. */
  readonly u: T
  /** `[..., n, n]`, symmetric and positive semidefinite. */
  readonly p: T
}

/** How {@link polar} is computed. */
export interface PolarOptions {
  /**
   * `svd` (default): exact for every matrix. `newton-schulz`: only products, x ← x (3 − xᵀ x) / 2 from a / ‖a‖. Each
   * iteration multiplies small singular values by 3/2 until they are near 1, then squares their distance to 1: about
   * log(‖a‖ / least singular value) / log 1.5 + 4 iterations. Singular values of zero stay zero.
   */
  readonly method?: 'svd' | 'newton-schulz'
  /** Of Newton–Schulz; default 30, enough for condition numbers (by ‖a‖) of 10⁴. */
  readonly iterations?: number
}

/**
 * The polar decomposition of `a [..., m, n]`.
 * @throws as svd
 */
export function polar(a: Tensor, options?: PolarOptions & RunOptions): Promise<Polar>
export function polar(a: Sym, options?: PolarOptions): Polar<Sym>
export function polar(a: Tensor | Sym, options: PolarOptions & RunOptions = {}): Promise<Polar> | Polar<Sym> {
  if (!isSym(a)) return computed((x) => polar(x!, options), [a], options)
  const { method = 'svd', iterations = 30 } = options
  if (method === 'newton-schulz') {
    const u = newtonSchulz(a, iterations)
    const p = transposedTimes(u, a)
    return { u, p: mul(0.5, add(p, transpose(p))) }
  }
  const { u, s, vh } = svd(a)
  return { u: matmul(u, vh), p: transposedTimes(vh, scaleRows(vh, s)) }
}

function newtonSchulz(a: Sym, iterations: number): Sym {
  const [m, n] = matrixSize('polar', a)
  let x = div(a, expandDims(expandDims(maximum(matrixNorm(a), 1e-37), -1), -1))
  for (let i = 0; i < iterations; i += 1) {
    const cube = m >= n ? matmul(x, transposedTimes(x, x)) : matmul(timesTransposed(x, x), x)
    x = sub(mul(1.5, x), mul(0.5, cube))
  }
  return x
}
