/** W ≈ Q + L₁ L₂ with Q quantised and L₁ L₂ of low rank, each in turn made for what the other leaves (LQ-LoRA, algorithm 1). */
import { div, maximum, mul, sqrt, square, sub } from '../../graph/ops/elementwise.js'
import { matmul } from '../../graph/ops/matmul.js'
import { max, mean, reshape, sum } from '../../graph/ops/reduce.js'
import { type Program, program } from '../../graph/program.js'
import { read, type Sym } from '../../graph/sym.js'
import { svd } from '../../linalg/factorise.js'
import { truncatedSvd } from '../../linalg/low_rank.js'
import { dequantised, type NormalFloatConfig, quantised } from '../../quant/normal_float.js'
import { type Tensor, zeros } from '../../tensor/tensor.js'
import { firstOf } from '../spectrum.js'

/** Options of {@link decompose}. */
export interface DecompositionOptions {
  readonly rank: number
  readonly config: NormalFloatConfig
  /** Most iterations. */
  readonly iterations: number
  /** Singular vectors by a random sketch of rank + oversampling vectors, with 2 subspace iterations; exactly if undefined. */
  readonly oversampling?: number | undefined
  /** `[out, in]`, ≥ 0: the error's weights, see {@link decompose}. */
  readonly fisher?: Tensor | undefined
}

/** What {@link decompose} found; the caller owns the tensors. */
export interface Decomposition {
  readonly parts: {
    /** `[out, r]` */
    readonly l1: Tensor
    /** `[r, in]` */
    readonly l2: Tensor
    /** As {@link quantised} gives them. */
    readonly codes: Tensor
    readonly scales: Tensor
    readonly superScales: Tensor
    readonly offset: Tensor
    /** Q `[out, in]` */
    readonly q: Tensor
  }
  /** ‖√F ⊙ (W − Q − L₁ L₂)‖ of the best iterate. */
  readonly error: number
  /** Of every iteration, the last one of which rose or was the last allowed. */
  readonly errors: readonly number[]
}

/**
 * Q = 0, then in turn L₁ L₂ = SVD_r(W − Q) and Q = quantised(W − L₁ L₂), until the error rises. The best iterate is given (the
 * reference gives the last one, whose error rose). With F, whose weighted problem has no closed solution, the SVD is that of
 * D_row (W − Q) D_col, D the roots of F's means over rows and columns: exact where F has rank one. Means are at
 * least 1e-12 of the largest.
 * @param w f32 `[out, in]`
 */
export async function decompose(w: Tensor, options: DecompositionOptions): Promise<Decomposition> {
  const step = program((q) => iteration(read(w), q!, options))
  using start = zeros(w.shape)
  let best: Iterate | undefined
  const errors: number[] = []
  try {
    while (errors.length < options.iterations) {
      const next = await iterate(step, best?.parts.q ?? start)
      errors.push(next.error)
      const isBetter = !best || next.error < best.error
      const worse = isBetter ? best : next
      for (const each of Object.values(worse?.parts ?? {})) each.dispose()
      if (!isBetter) break
      best = next
    }
    return { ...best!, errors }
  } catch (error) {
    for (const each of Object.values(best?.parts ?? {})) each.dispose()
    throw error
  } finally {
    step.dispose()
  }
}

type Iterate = Pick<Decomposition, 'parts' | 'error'>

async function iterate(step: Program<ReturnType<typeof iteration>>, q: Tensor): Promise<Iterate> {
  const { error, ...parts } = await step(q)
  using missed = error
  return { parts, error: missed.item() }
}

function iteration(w: Sym, q: Sym, { rank, config, oversampling, fisher }: DecompositionOptions) {
  const f = fisher && read(fisher)
  const { l1, l2 } = lowRank(sub(w, q), f, rank, oversampling)
  const product = matmul(l1, l2)
  const { codes, scales, superScales, offset } = quantised(sub(w, product), config)
  const own = dequantised({ codes, scales, superScales, offset }, config, w.shape)
  const missed = square(sub(sub(w, product), own))
  return { l1, l2, codes, scales, superScales, offset, q: own, error: sqrt(sum(f ? mul(f, missed) : missed)) }
}

/** L₁ = D_row⁻¹ U √S, L₂ = √S Vᵀ D_col⁻¹. */
export function lowRank(
  a: Sym,
  fisher: Sym | undefined,
  rank: number,
  oversampling?: number,
): { readonly l1: Sym; readonly l2: Sym } {
  const [rows, columns] = fisher ? [rootMean(fisher, 1), rootMean(fisher, 0)] : []
  const scaled = rows ? mul(mul(a, rows), columns!) : a
  const { u, s, vh } =
    oversampling === undefined ? firstOf(svd(scaled), rank) : truncatedSvd(scaled, { rank, oversampling })
  const root = sqrt(s)
  const [l1, l2] = [mul(u, root), mul(reshape(root, [-1, 1]), vh)]
  return rows ? { l1: div(l1, rows), l2: div(l2, columns!) } : { l1, l2 }
}

function rootMean(fisher: Sym, axis: number): Sym {
  const means = mean(fisher, { axes: [axis], keepDims: true })
  return sqrt(maximum(means, mul(max(means), 1e-12)))
}
