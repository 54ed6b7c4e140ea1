/** What every text encoder offers, whatever its architecture, and how its hidden states become one vector for a text. */
import { add, cast, div, maximum, mul, sub } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { max, reshape, sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward, Site } from '../nn/site.js'

/** Inputs of one forward pass. */
export interface EncoderInputs {
  /** Token ids `i32 [b, t]`. */
  readonly ids: Sym
  /** `i32 [b, t]`: 1 for a token, 0 for padding, which no token sees. Padding comes last. */
  readonly mask: Sym
  /** `i32 [b, t]`; default all 0. Only for architectures that know token types. */
  readonly tokenTypes?: Sym | undefined
}

/** A bidirectional text encoder. */
export interface Encoder extends Network {
  readonly hiddenSize: number
  /** Most tokens of a text, special ones included. */
  readonly maxPositions: number
  /** What BERT's checkpoints keep behind the encoder for a classifier to use: `tanh(W h[0] + b)`. */
  readonly pooler?: Site | undefined
  /** Final hidden states `[b, t, hidden]`. */
  hidden(inputs: EncoderInputs, forward: Forward): Promise<Sym>
}

/** How hidden states become one vector: the mean over tokens, the first token's, or the largest of each element. */
export type Pooling = 'mean' | 'cls' | 'max'

/** Hidden states `[b, t, h]` of the tokens where `mask i32 [b, t]` is 1 → `[b, h]`. */
export function pool(hidden: Sym, mask: Sym, pooling: Pooling): Sym {
  const [b, t, h] = hidden.shape as [number, number, number]
  if (pooling === 'cls') return reshape(slice(hidden, [{ axis: 1, start: 0, end: 1 }]), [b, h])
  const isToken = reshape(cast(mask, 'f32'), [b, t, 1])
  if (pooling === 'max') return max(add(hidden, mul(sub(isToken, 1), 1e9)), { axes: [1] })
  // A row without tokens has the mean 0.
  return div(sum(mul(hidden, isToken), { axes: [1] }), maximum(sum(isToken, { axes: [1] }), 1))
}
