/** How AdaLoRA hands out ranks (Zhang et al. 2023, arXiv 2303.10512, section 3.2), in the order of PEFT's steps. */
import { HeddleError } from '../../errors.js'
import {
  abs,
  add,
  cast,
  constant,
  div,
  equal,
  floor,
  greater,
  less,
  maximum,
  mul,
  neg,
  pow,
  select,
  sub,
} from '../../graph/ops/elementwise.js'
import { concat, gatherRows } from '../../graph/ops/index.js'
import { mean, reshape } from '../../graph/ops/reduce.js'
import { sort } from '../../graph/ops/sort.js'
import { assign, read, type Sym } from '../../graph/sym.js'
import {
  type GradientTransform,
  mapParameters,
  numbered,
  type UpdateContext,
  wrapped,
  zerosLike,
} from '../../optim/gradient_transform.js'
import type { Tensor } from '../../tensor/tensor.js'
import type { OptimizerContext } from '../parametrization.js'
import type { AdaLoraConfig } from './adalora.js'

/**
 * The rule with E masked after its updates. With w the value after the update and g the gradient of the step:
 * I = |w g|, Ī ← β₁ Ī + (1 − β₁) I, U ← β₂ U + (1 − β₂) |I − Ī|, and the score of a triplet is Ī U of its E plus the means
 * of Ī U over its row of A and its column of B. At an allocation all triplets up to the k-th smallest score of all modules
 * have E ← 0, k being what the budget has fallen by; E goes on learning from there. After the last allocation, at
 * total_step − tfinal, those stay 0. An adapter that was loaded with ranks handed out keeps them.
 * @throws ERR_HEDDLE_ARGUMENT where the steps leave no room between `tinit` and `tfinal`
 */
export function allocating(
  inner: GradientTransform,
  context: OptimizerContext,
  config: AdaLoraConfig,
): GradientTransform {
  if (config.rank_pattern) return inner
  const triplets = tripletsOf(context.names)
  const { beta1, beta2, target_r, init_r } = config
  const schedule = { ...scheduleOf(config, context.totalSteps), ranks: triplets.length * init_r }
  const target = triplets.length * target_r
  return wrapped(inner, 'adalora', { ...schedule, target, beta1, beta2 }, async (parameters) => {
    const scored = triplets.flatMap(({ a, e, b }) => [a, e, b])
    const importance = await zerosLike(scored.map((i) => parameters[i]!))
    const uncertainty = await zerosLike(scored.map((i) => parameters[i]!))
    // 1 where E was set to 0 at the last allocation.
    const pruned = await zerosLike(triplets.map(({ e }) => parameters[e]!))
    const statistics = { importance, uncertainty, beta1, beta2, isScored: (step: Sym) => less(step, schedule.last) }
    return {
      tensors: {
        ...numbered('importance', importance),
        ...numbered('uncertainty', uncertainty),
        ...numbered('pruned', pruned),
      },
      async update(updates, gradients, given) {
        const moved = scored.map((i) => ({ value: add(given.parameters[i]!, updates[i]!), gradient: gradients[i]! }))
        const elements = await elementScores(moved, statistics, given)
        const scores = await mapParameters(triplets, (_, i) =>
          tripletScore(elements[3 * i]!, elements[3 * i + 1]!, elements[3 * i + 2]!),
        )
        const decision = decide(concat(scores), given.step, schedule, target)
        const result = [...updates]
        await mapParameters(triplets, ({ e }, i) => {
          const isOut = nextMask(scores[i]!, pruned[i]!, decision)
          assign(pruned[i]!, isOut)
          const isApplied = mul(isOut, decision.isMasked)
          result[e] = select(isApplied, neg(given.parameters[e]!), updates[e]!)
        })
        return result
      },
    }
  })
}

interface Triplet {
  readonly a: number
  readonly e: number
  readonly b: number
}

/** Where the three tensors of each module stand among all that is trained. */
function tripletsOf(names: readonly string[]): Triplet[] {
  const place = new Map(names.map((name, i) => [name, i]))
  return names.flatMap((name, e) => {
    if (!name.endsWith('.lora_E')) return []
    const path = name.slice(0, -'.lora_E'.length)
    return [{ e, a: place.get(`${path}.lora_A`)!, b: place.get(`${path}.lora_B`)! }]
  })
}

interface Schedule {
  /** The last step before ranks are taken. */
  readonly first: number
  /** The step of the last allocation. */
  readonly last: number
  readonly every: number
  /** Of all modules, at the start. */
  readonly ranks: number
}

function scheduleOf({ total_step, tinit, tfinal, deltaT }: AdaLoraConfig, steps: number): Omit<Schedule, 'ranks'> {
  const last = (total_step ?? steps) - tfinal
  if (tinit < last) return { first: tinit, last, every: deltaT }
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'adalora',
    expected: `more steps than tinit + tfinal, ${tinit + tfinal}`,
    got: `${total_step ?? steps}`,
    hint: 'Train for more steps, or lower tinit and tfinal.',
  })
}

interface Statistics {
  readonly importance: readonly Tensor[]
  readonly uncertainty: readonly Tensor[]
  readonly beta1: number
  readonly beta2: number
  /** False from the last allocation on: it uses the scores of the step before. */
  readonly isScored: (step: Sym) => Sym
}

/** Ī U of every element, after both have taken in this step. */
function elementScores(
  moved: readonly { readonly value: Sym; readonly gradient: Sym }[],
  { importance, uncertainty, beta1, beta2, isScored }: Statistics,
  { step }: UpdateContext,
): Promise<Sym[]> {
  const counts = isScored(step)
  return mapParameters(moved, ({ value, gradient }, i) => {
    const [before, doubt] = [read(importance[i]!), read(uncertainty[i]!)]
    const now = abs(mul(value, gradient))
    const smooth = select(counts, add(mul(beta1, before), mul(1 - beta1, now)), before)
    const unsure = select(counts, add(mul(beta2, doubt), mul(1 - beta2, abs(sub(now, smooth)))), doubt)
    assign(importance[i]!, smooth)
    assign(uncertainty[i]!, unsure)
    return mul(smooth, unsure)
  })
}

/** `[r]` of A's `[r, in]`, E's `[r, 1]` and B's `[out, r]`. */
const tripletScore = (a: Sym, e: Sym, b: Sym): Sym =>
  add(reshape(e, [-1]), add(mean(a, { axes: [1] }), mean(b, { axes: [0] })))

interface Decision {
  /** 1 at a step that hands out ranks. */
  readonly isAllocation: Sym
  /** 1 at a step after which the mask is put on E: an allocation, or any after the last one. */
  readonly isMasked: Sym
  /** Scores up to this one are out … */
  readonly threshold: Sym
  /** … unless the budget has not fallen yet. */
  readonly isFalling: Sym
}

/** The cubic budget b(t) and the k-th smallest score, k = b(0) − b(t); in f64, since the budget is cut to an integer. */
function decide(scores: Sym, step: Sym, { first, last, every, ranks }: Schedule, target: number): Decision {
  const t = cast(step, 'f64')
  // The budget stays where the last allocation has left it.
  const left = maximum(sub(constant(1, 'f64'), div(sub(t, first), last - first)), 0)
  const budget = floor(add(mul(pow(left, 3), ranks - target), target))
  const fallen = sub(ranks, budget)
  const isDue = equal(sub(step, mul(floor(div(step, every)), every)), 0)
  const isLast = equal(step, last)
  const isAllocation = maximum(mul(mul(greater(step, first), less(step, last)), isDue), isLast)
  const { values } = sort(scores)
  const place = cast(maximum(sub(fallen, 1), 0), 'i32')
  return {
    isAllocation,
    isMasked: maximum(isAllocation, greater(step, last)),
    threshold: gatherRows(values, reshape(place, [1])),
    isFalling: cast(greater(fallen, 0), 'f32'),
  }
}

/** `[r, 1]`: 1 where a triplet is out. */
function nextMask(scores: Sym, before: Tensor, { isAllocation, threshold, isFalling }: Decision): Sym {
  const isOut = mul(sub(1, greater(scores, threshold)), isFalling)
  return select(isAllocation, reshape(isOut, before.shape), read(before))
}
