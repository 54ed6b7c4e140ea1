/**
 * Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), with the losses of IPO (Azar et al. 2023,
 * arXiv 2310.12036) and SLiC's hinge (Zhao et al. 2023, arXiv 2305.10425). The reference is the same network without
 * its adapter: there is no second copy of the model.
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { abs, add, div, exp, greater, log, minimum, mul, neg, relu, square, sub } from '../graph/ops/elementwise.js'
import { concat } from '../graph/ops/index.js'
import { sum } from '../graph/ops/reduce.js'
import { program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'
import { tensor } from '../tensor/tensor.js'
import type { EvaluationResult, Objective, Scoreboard, Syms, TrainingData } from './objective.js'
import {
  type AnswerScores,
  answerScores,
  halves,
  openPairs,
  type PreferenceBatch,
  pairArrays,
  pairCount,
  pairInputs,
  pairTokens,
} from './preference_pairs.js'

/** How the margin between the answers becomes a loss. */
export type DpoLoss = 'sigmoid' | 'hinge' | 'ipo'

/** Options of {@link dpo}, with trl's names and defaults. */
export interface DpoOptions {
  /** How far the model may go from the reference: higher stays closer. Default 0.1. */
  readonly beta?: number
  /** Default `sigmoid`. */
  readonly lossType?: DpoLoss
  /** Share of pairs that are assumed to be the wrong way round, 0 (default) to below 0.5; for `sigmoid`. */
  readonly labelSmoothing?: number
  /**
   * Computes the reference's log-probabilities once, before training, instead of in every step; default false. Needed
   * when all weights are trained.
   */
  readonly precomputeReference?: boolean
}

/** What scoring preferences gives; rewards are β (log p − log p of the reference). */
export interface PreferenceEvaluation extends EvaluationResult {
  readonly loss: number
  readonly rewardChosen: number
  readonly rewardRejected: number
  /** Mean of chosen − rejected. */
  readonly rewardMargin: number
  /** Share of pairs whose chosen answer has the higher reward. */
  readonly rewardAccuracy: number
  readonly pairs: number
}

const schema = z.strictObject({
  beta: z.number().positive({ error: 'a number above 0' }).default(0.1),
  lossType: z.enum(['sigmoid', 'hinge', 'ipo']).default('sigmoid'),
  labelSmoothing: z.number().min(0).lt(0.5).default(0),
  precomputeReference: z.boolean().default(false),
})

/**
 * With h = (log π(y⁺) − log π(y⁻)) − (log ρ(y⁺) − log ρ(y⁻)), π the model and ρ the reference: sigmoid
 * −(1−ε) log σ(βh) − ε log σ(−βh); hinge max(0, 1 − βh); ipo (h − 1/(2β))², where log π is a mean over tokens.
 * @throws ERR_HEDDLE_ARGUMENT on an option that is unknown or out of range
 */
export function dpo(options: DpoOptions = {}): Objective<CausalLm, PreferenceBatch, PreferenceEvaluation> {
  const config = parseConfig('dpo', schema, options)
  const { precomputeReference } = config

  const rewards = async (network: CausalLm, inputs: Syms, forward: Forward): Promise<DpoTerms> => {
    const policy = await answerScores(network, inputs, forward)
    const reference = precomputeReference
      ? { ...policy, ...namedHalves(inputs.reference!) }
      : await answerScores(network, inputs, { ...forward, training: false, hook: undefined })
    return dpoTerms(policy, reference, config)
  }

  return {
    name: 'dpo',
    config,
    inputs: precomputeReference ? [...pairInputs, 'reference'] : pairInputs,
    arrays: (batch) =>
      precomputeReference ? { ...pairArrays(batch), reference: referenceArray(batch) } : pairArrays(batch),
    weight: pairCount,
    tokens: pairTokens,
    async loss(network, inputs, forward) {
      if (!forward.hook && forward.training && !precomputeReference)
        throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
          place: 'dpo',
          expected: 'an adapter, without which the model is the reference',
          got: 'training of all weights',
          hint: 'Use dpo({ precomputeReference: true })',
        })
      const { losses } = await rewards(network, inputs, forward)
      return sum(mul(losses, inputs.isPair!))
    },
    async scores(network, inputs, forward) {
      const { losses, chosen, rejected } = await rewards(network, inputs, forward)
      return rewardScores(inputs.isPair!, { losses, chosen, rejected })
    },
    scoreboard: preferenceScoreboard,
    open: openPairs,
    ...(precomputeReference && { prepare: noteReference }),
  }
}

/** Loss and rewards of each pair, `f32 [n]`. */
export interface DpoTerms {
  readonly losses: Sym
  readonly chosen: Sym
  readonly rejected: Sym
}

/** The formulas of {@link dpo} on log-probabilities of whole answers. */
export function dpoTerms(
  policy: AnswerScores,
  reference: Pick<AnswerScores, 'chosen' | 'rejected'>,
  { beta, lossType, labelSmoothing: smoothing }: Required<Omit<DpoOptions, 'precomputeReference'>>,
): DpoTerms {
  const gain = { chosen: sub(policy.chosen, reference.chosen), rejected: sub(policy.rejected, reference.rejected) }
  const [chosen, rejected] = [mul(beta, gain.chosen), mul(beta, gain.rejected)]
  const margin = sub(chosen, rejected)
  const losses = {
    sigmoid: () =>
      neg(add(mul(1 - smoothing, logSigmoid(margin)), smoothing === 0 ? 0 : mul(smoothing, logSigmoid(neg(margin))))),
    hinge: () => relu(sub(1, margin)),
    ipo: () => {
      const perToken = sub(div(gain.chosen, policy.chosenLength), div(gain.rejected, policy.rejectedLength))
      return square(sub(perToken, 1 / (2 * beta)))
    },
  }[lossType]()
  return { losses, chosen, rejected }
}

/** log σ(x) = min(x, 0) − log(1 + e^−|x|) */
export const logSigmoid = (x: Sym): Sym => sub(minimum(x, 0), log(add(1, exp(neg(abs(x))))))

/** What {@link preferenceScoreboard} adds up, each a sum over the pairs of a batch. */
export function rewardScores(isPair: Sym, { losses, chosen, rejected }: DpoTerms): Syms {
  const total = (each: Sym): Sym => sum(mul(each, isPair))
  return {
    loss: total(losses),
    chosen: total(chosen),
    rejected: total(rejected),
    right: total(greater(chosen, rejected)),
  }
}

/** Means over all pairs of what {@link rewardScores} traced. */
export function preferenceScoreboard(): Scoreboard<PreferenceBatch, PreferenceEvaluation> {
  const sums = { loss: 0, chosen: 0, rejected: 0, right: 0 }
  let pairs = 0
  return {
    add(batch, outputs) {
      for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += outputs[name]![0]!
      pairs += pairCount(batch)
    },
    result() {
      const [loss, rewardChosen, rewardRejected, rewardAccuracy] = Object.values(sums).map(
        (total) => total / Math.max(1, pairs),
      ) as [number, number, number, number]
      return { loss, rewardChosen, rewardRejected, rewardMargin: rewardChosen - rewardRejected, rewardAccuracy, pairs }
    },
  }
}

const namedHalves = (all: Sym): Pick<AnswerScores, 'chosen' | 'rejected'> => {
  const [chosen, rejected] = halves(all)
  return { chosen, rejected }
}

function referenceArray({ pairs }: PreferenceBatch) {
  const part = (index: 0 | 1): number[] => pairs.map((pair) => (pair ? pair.reference![index] : 0))
  return { data: Float32Array.from([...part(0), ...part(1)]), shape: [2 * pairs.length] }
}

/** Writes the reference's log-probabilities into the pairs. */
async function noteReference(
  network: CausalLm,
  data: TrainingData<PreferenceBatch>,
  { batchSize, precision, signal }: Parameters<NonNullable<Objective['prepare']>>[2],
): Promise<void> {
  const score = program(
    async (ids, targets, segments) => {
      const inputs = { ids: ids!, targets: targets!, segments: segments! }
      const { chosen, rejected } = await answerScores(network, inputs, { precision, training: false })
      return concat([chosen, rejected])
    },
    { device: network.device },
  )
  try {
    for await (const batch of data.batches({ batchSize, shuffle: false })) {
      const shape = [batch.rows, batch.length]
      using ids = tensor(batch.inputIds, shape)
      using targets = tensor(batch.targets, shape)
      using segments = tensor(batch.segments, shape)
      using result = await score.run([ids, targets, segments], { signal })
      const values = (await result.data()) as Float32Array
      const n = batch.pairs.length
      for (const [i, pair] of batch.pairs.entries()) if (pair) pair.reference = [values[i]!, values[n + i]!]
    }
  } finally {
    score.dispose()
  }
}
