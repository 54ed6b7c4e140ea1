/** Next-token cross-entropy of a decoder language model. */
import { add, cast, exp, greaterEqual, log, maximum, mul, sub } from '../graph/ops/elementwise.js'
import { gatherLast } from '../graph/ops/index.js'
import { linearCrossEntropy } from '../graph/ops/loss.js'
import { max, reshape, sum } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'

export interface LossInputs {
  /** `i32 [b, t]` */
  readonly ids: Sym
  /** Next token of each position, `i32 [b, t]`; -100 where no loss is taken. */
  readonly targets: Sym
  /** `i32 [b, t]` */
  readonly segments: Sym
  /** Position of each token in its own sequence, `i32 [b, t]`; default: in its row. */
  readonly positions?: Sym | undefined
}

/** Sum of −log p(target) over all positions with a target, `f32 []`; divide by their number for the mean. */
export async function causalLmLoss(model: CausalLm, inputs: LossInputs, forward: Forward): Promise<Sym> {
  const { targets, ...rest } = inputs
  return hiddenLoss(model, await model.hidden(rest, forward), targets, forward)
}

/** The same from the final hidden states `[n, d]` and their targets, `i32` of n elements. */
export const hiddenLoss = (model: CausalLm, hidden: Sym, targets: Sym, forward: Forward): Sym =>
  sum(targetLosses(model, hidden, targets, forward))

/** −log p(target) of each position, `f32 [n]`, from `hidden [n, d]`; 0 where the target is negative. */
export function targetLosses(model: CausalLm, hidden: Sym, targets: Sym, forward: Forward): Sym {
  const flat = reshape(targets, [-1])
  const { outputSite } = model
  // An adapter on the output projection needs the logits themselves; without one they are never kept.
  if (!model.hasPlainLogits || forward.hook?.targets(outputSite))
    return crossEntropy(model.logits(hidden, forward), flat)
  return linearCrossEntropy(hidden, read(outputSite.weight), flat, { precision: forward.precision })
}

/** −log softmax(logits)[target] for `logits [n, v]`, `targets i32 [n]`; 0 where the target is negative. */
export function crossEntropy(logits: Sym, targets: Sym): Sym {
  const peak = max(logits, { axes: [-1], keepDims: true })
  const logSum = add(log(sum(exp(sub(logits, peak)), { axes: [-1] })), reshape(peak, [-1]))
  const chosen = gatherLast(logits, cast(maximum(targets, 0), 'i32'))
  return mul(greaterEqual(targets, 0), sub(logSum, chosen))
}
