/**
 * Products with H = Σᵢ Aᵢ ⊗ Bᵢ (parameterised hypercomplex multiplication; Zhang et al. 2021, arXiv 2102.08597) whose Bᵢ
 * may be of low rank.
 */

import { transpose } from '../../graph/ops/index.js'
import { kroneckerMatmul, kroneckerToDense } from '../../graph/ops/kronecker.js'
import { matmul, type Precision } from '../../graph/ops/matmul.js'
import { reshape } from '../../graph/ops/reduce.js'
import type { Sym } from '../../graph/sym.js'
import { elementCount } from '../../tensor/dtype.js'

/** The parts of H `[in, out]`; n divides both sizes. */
export interface PhmFactors {
  /** A `[n, n, n]`: Aᵢ[a, c] leads from part a of the input to part c of the output. */
  readonly rule: Sym
  /** B `[n, in / n, out / n]`, or both factors of Bᵢ = sᵢ tᵢ: s `[n, in / n, rank]` and t `[n, rank, out / n]`. */
  readonly fast: Sym | readonly [Sym, Sym]
}

/** Options of {@link phmProduct}. */
export interface PhmOptions {
  readonly precision?: Precision
  /** Default: the one with fewer multiplications. */
  readonly path?: 'stages' | 'dense'
}

/**
 * x H, without making H where that is cheaper. With low-rank Bᵢ, for a row of n parts x_a:
 * u[a, i] = x_a sᵢ, v[c, i] = Σ_a Aᵢ[a, c] u[a, i], y_c = Σᵢ v[c, i] tᵢ: rank · n (in + n² + out) multiplications.
 * @param x `[..., in]`
 * @returns `[..., out]`
 */
export function phmProduct(x: Sym, { rule, fast }: PhmFactors, { precision = 'f32', path }: PhmOptions = {}): Sym {
  if (!isFactored(fast)) {
    const forced = path && ({ stages: 'stages', dense: 'materialised' } as const)[path]
    return kroneckerMatmul(x, [turned(rule), turned(fast)], { precision, ...(forced ? { path: forced } : {}) })
  }
  const [left, right] = fast
  const [n, , rank] = left.shape as [number, number, number]
  const [inner, out] = [x.shape.at(-1)!, n * right.shape[2]!]
  const rows = elementCount(x.shape.slice(0, -1))
  const inStages = rows * rank * n * (inner + n * n + out)
  const chosen = path ?? (inStages <= (rows + n) * inner * out ? 'stages' : 'dense')
  if (chosen === 'dense') return matmul(x, phmToDense({ rule, fast }), { precision })
  const vectors = reshape(transpose(left, [1, 0, 2]), [inner / n, n * rank])
  const u = matmul(reshape(x, [rows * n, inner / n]), vectors, { precision })
  const byTerm = reshape(transpose(reshape(u, [rows, n, n, rank]), [2, 0, 3, 1]), [n, rows * rank, n])
  const v = transpose(reshape(matmul(byTerm, rule, { precision }), [n, rows, rank, n]), [1, 3, 0, 2])
  const y = matmul(reshape(v, [rows * n, n * rank]), reshape(right, [n * rank, out / n]), { precision })
  return reshape(y, [...x.shape.slice(0, -1), out])
}

/** H `[in, out]`, written out. */
export function phmToDense({ rule, fast }: PhmFactors): Sym {
  return kroneckerToDense([rule, isFactored(fast) ? matmul(fast[0], fast[1]) : fast])
}

const isFactored = (fast: PhmFactors['fast']): fast is readonly [Sym, Sym] => Array.isArray(fast)

/** All terms transposed. */
const turned = (terms: Sym): Sym => transpose(terms, [0, 2, 1])
