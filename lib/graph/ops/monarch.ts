/** Products with Monarch matrices (Dao et al. 2022, arXiv 2204.00595), in the layout of HazyResearch/fly. */
import { elementCount } from '../../tensor/dtype.js'
import { floatType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { perBlock } from './block_diagonal.js'
import { type ChainOptions, defineChain } from './chain.js'
import { placeInZeros, slice, transpose } from './index.js'
import type { Precision } from './matmul.js'
import { reshape } from './reduce.js'

const apply = defineChain({
  name: 'monarch',
  attributes: { out: 'i64' },
  weights: 2,
  types: ([x, w1, w2], { out }) => {
    const [blocks, middle, inner] = w1!.shape as [number, number, number]
    const [phases, rows, units] = w2!.shape as [number, number, number]
    const fits = x!.rank >= 1 && w1!.rank === 3 && w2!.rank === 3 && blocks * middle === phases * units
    if (!fits || x!.shape.at(-1)! > blocks * inner || (out as number) > phases * rows || (out as number) < 1)
      misuse(
        'monarch',
        'x [..., ≤ K·p], w1 [K, q, p] and w2 [L, s, r] with K·q = L·r and at most L·s outputs',
        `${[x, w1, w2].map(typeText).join(', ')} and ${out} outputs`,
      )
    return [{ shape: [...x!.shape.slice(0, -1), out as number], dtype: floatType('monarch', [x, w1, w2]) }]
  },
  flops: ([x, w1, w2]) => 2 * elementCount(x!.shape.slice(0, -1)) * (elementCount(w1!.shape) + elementCount(w2!.shape)),
  decompose: ([x, w1, w2], { out, precision }) => {
    const [blocks, , inner] = w1!.shape as [number, number, number]
    const [phases, rows, units] = w2!.shape as [number, number, number]
    const count = elementCount(x!.shape.slice(0, -1))
    const flat = reshape(x!, [count, x!.shape.at(-1)!])
    const padded = flat.shape[1] === blocks * inner ? flat : placeInZeros(flat, [0, 0], [count, blocks * inner])
    const middle = perBlock(reshape(padded, [count, blocks, inner]), w1!, precision as Precision)
    const permuted = transpose(reshape(middle, [count, units, phases]), [0, 2, 1])
    const y = transpose(perBlock(permuted, w2!, precision as Precision), [0, 2, 1])
    const whole = reshape(y, [count, phases * rows])
    const kept = out === phases * rows ? whole : slice(whole, [{ axis: 1, start: 0, end: out as number }])
    return [reshape(kept, [...x!.shape.slice(0, -1), out as number])]
  },
})

/** Options of {@link monarch}. */
export interface MonarchOptions extends ChainOptions {
  /** Leading outputs that are wanted; default all L·s. */
  readonly out?: number
}

/**
 * x times the Monarch matrix P₂ diag(w2) P₁ diag(w1): h[k·q + j] = Σᵢ w1[k, j, i] x[k·p + i], then
 * y[i·L + l] = Σⱼ w2[l, i, j] h[j·L + l]. Features that x lacks to K·p count as zero.
 * @param x `[..., in ≤ K·p]`
 * @param w1 `[K, q, p]`
 * @param w2 `[L, s, r]` with K·q = L·r
 * @returns `[..., out]`
 * @throws ERR_HEDDLE_SHAPE
 */
export function monarch(x: Sym, w1: Sym, w2: Sym, options: MonarchOptions = {}): Sym {
  const { out = (w2.shape[0] ?? 0) * (w2.shape[1] ?? 0), precision = 'f32' } = options
  return apply(x, [w1, w2], { out, precision })
}
