/** Attention with every score in memory: what the forms of attention mean. */
import type { Attributes, Sym } from '../sym.js'
import { cast, exp, greaterEqual, less, mul, select, softcap, sub } from './elementwise.js'
import { arange } from './gather.js'
import { transpose } from './index.js'
import { matmul } from './matmul.js'
import { reshape } from './reduce.js'
import { logSumExp } from './softmax.js'

/** Queries see the keys where `visible`, of a shape that broadcasts to [b, hk, h / hk, t, s], is not 0. */
export function explicitAttention(
  [q, k, v]: readonly [Sym, Sym, Sym],
  { scale, softcap: cap }: Attributes,
  visible: Sym | undefined,
): Sym[] {
  const [b, t, h, d] = q.shape as [number, number, number, number]
  const [, s, kvHeads] = k.shape as [number, number, number]
  const group = h / kvHeads
  const perHead = (x: Sym): Sym => transpose(cast(x, q.dtype), [0, 2, 1, 3])
  const queries = reshape(perHead(q), [b, kvHeads, group * t, d])
  const products = matmul(queries, perHead(k), { transposeB: true, alpha: scale as number })
  const capped = cap === 0 ? products : softcap(products, cap as number)
  const scores = reshape(capped, [b, kvHeads, group, t, s])
  const seen = visible ? select(visible, scores, -1e30) : scores
  const lse = logSumExp(seen)
  const weights = exp(sub(seen, reshape(lse, [b, kvHeads, group, t, 1])))
  const mixed = matmul(reshape(weights, [b, kvHeads, group * t, s]), perHead(v))
  return [transpose(reshape(mixed, [b, h, t, d]), [0, 2, 1, 3]), reshape(lse, [b, h, t])]
}

/** 1 where a key is at most `last`, and within the window that ends there. */
export function inReach(last: Sym, keys: number, window: number): Sym {
  const before = greaterEqual(last, arange(keys))
  return window === 0 ? before : mul(before, less(sub(last, window), arange(keys)))
}
