/** Scaled dot-product attention without a kept score matrix (Dao 2023, arXiv 2307.08691); grouped-query heads. */
import { elementCount, sameShape, shapeText } from '../../tensor/dtype.js'
import { pullbackOf } from '../grad.js'
import { type Decomposition, defineOperator, misuse } from '../operator.js'
import type { Attributes, Sym, SymType } from '../sym.js'
import { add, equal, mul } from './elementwise.js'
import { explicitAttention, inReach } from './explicit_attention.js'
import { arange } from './gather.js'
import { reshape } from './reduce.js'

/** Masking and scale of {@link attention}. */
export interface AttentionOptions {
  readonly causal?: boolean
  /** Factor on the scores; default 1/√d. */
  readonly scale?: number
  /** Scores are bent to softcap · tanh(score / softcap), as Gemma 2 does; default: not. */
  readonly softcap?: number | undefined
  /** A query sees itself and the `window - 1` keys before it; needs `causal`. Default: all. */
  readonly window?: number | undefined
  /** `i32 [b, s]`: a query sees only keys of its own segment (documents in a packed row, padding). */
  readonly segments?: Sym | undefined
}

function checkHeads(op: string, q: Sym, k: Sym, v: Sym): void {
  const [b, , h, d] = q.shape
  const [, , kvHeads] = k.shape
  const fits = q.rank === 4 && k.rank === 4 && sameShape(k.shape, v.shape) && k.shape[0] === b && k.shape[3] === d
  if (!fits || h! % kvHeads! !== 0)
    misuse(
      op,
      'q [b, t, h, d] and k, v [b, s, hk, d] with h a multiple of hk',
      [q, k, v].map((x) => shapeText(x.shape)).join(', '),
    )
}

const decompose: Decomposition = ([q, k, v, segments], attributes) => {
  const [b, t] = q!.shape as [number, number]
  const s = k!.shape[1]!
  const { causal, window } = attributes
  const order = causal === 1 ? inReach(reshape(arange(t), [t, 1]), s, window as number) : undefined
  const alike = segments && equal(reshape(segments, [b, 1, 1, t, 1]), reshape(segments, [b, 1, 1, 1, s]))
  return explicitAttention([q!, k!, v!], attributes, order && alike ? mul(order, alike) : (order ?? alike))
}

/** Products of a query's element with a key's, over all visible pairs. */
const scorePairs = ([q, k]: readonly (SymType | undefined)[], { causal }: Attributes): number =>
  (elementCount(q!.shape) * k!.shape[1]!) / (causal === 1 ? 2 : 1)

const attentionOf = defineOperator({
  name: 'attention',
  attributes: { causal: 'i64', scale: 'f64', softcap: 'f64', window: 'i64' },
  types: ([q, k, v, segments], { causal, window }) => {
    checkHeads('attention', q!, k!, v!)
    const [b, t, h] = q!.shape
    const s = k!.shape[1]
    if (window !== 0 && causal !== 1) misuse('attention', 'a causal mask with a window', 'a window without one')
    if ((causal === 1 || segments) && t !== s) misuse('attention', 'as many queries as keys', `${t} and ${s}`)
    if (segments && !sameShape(segments.shape, [b!, s!]))
      misuse('attention', `segments [${b}, ${s}]`, shapeText(segments.shape))
    return [
      { shape: q!.shape, dtype: 'f32' },
      { shape: [b!, h!, t!], dtype: 'f32' },
    ]
  },
  optionalOutputs: [1],
  flops: (inputs, _, attributes) => 4 * scorePairs(inputs, attributes),
  decompose,
  vjp: ({ inputs: [q, k, v, segments], outputs: [o, lse], attributes, gradients: [g] }) => [
    ...attentionVjpOf([q, k, v, segments, o, lse, g], attributes),
    undefined,
  ],
})

const attentionVjpOf = defineOperator({
  name: 'attention_vjp',
  attributes: { causal: 'i64', scale: 'f64', softcap: 'f64', window: 'i64' },
  types: ([q, k, v]) => [q!, k!, v!],
  flops: (inputs, _, attributes) => 10 * scorePairs(inputs, attributes),
  decompose: ([q, k, v, segments, , , g], attributes) =>
    pullbackOf((inputs) => decompose([...inputs, segments], attributes), [q!, k!, v!], [g]),
  vjp: 'decomposition',
})

const attributesOf = ({ softcap = 0, window = 0 }: AttentionOptions): { softcap: number; window: number } => ({
  softcap,
  window,
})

/** softmax(scale · q kᵀ, masked) v for `q [b, t, h, d]`, `k, v [b, s, hk, d]` → `[b, t, h, d]`. */
export function attention(q: Sym, k: Sym, v: Sym, options: AttentionOptions = {}): Sym {
  const { causal = false, scale = 1 / Math.sqrt(q.shape.at(-1)!), segments } = options
  return attentionOf([q, k, v, segments], { causal: Number(causal), scale, ...attributesOf(options) })[0]!
}

const cachedOf = defineOperator({
  name: 'attention_cached',
  attributes: { scale: 'f64', softcap: 'f64', window: 'i64' },
  types: ([q, k, v]) => {
    checkHeads('attention_cached', q!, k!, v!)
    return [{ shape: q!.shape, dtype: 'f32' }]
  },
  decompose: ([q, k, v, position], attributes) => {
    const [b, t] = q!.shape as [number, number]
    const last = reshape(add(reshape(position!, [b, 1]), reshape(arange(t), [1, t])), [b, 1, 1, t, 1])
    const visible = inReach(last, k!.shape[1]!, attributes.window as number)
    return explicitAttention([q!, k!, v!], attributes, visible).slice(0, 1)
  },
  vjp: { none: 'the cached form is for inference only' },
})

/** Scale, cap and window of {@link attentionCached}, as in {@link attention}. */
export type CachedAttentionOptions = Pick<AttentionOptions, 'scale' | 'softcap' | 'window'>

/** Attention of `q [b, t, h, d]` to cache rows `j ≤ position[b] + i`, caches `[b, s, hk, d]`. */
export function attentionCached(q: Sym, k: Sym, v: Sym, position: Sym, options: CachedAttentionOptions = {}): Sym {
  const { scale = 1 / Math.sqrt(q.shape.at(-1)!) } = options
  return cachedOf([q, k, v, position], { scale, ...attributesOf(options) })[0]!
}
