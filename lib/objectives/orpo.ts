/**
 * ORPO (Hong et al. 2024, arXiv 2403.07691): fine-tuning on the chosen answers with a penalty on the odds of the rejected
 * ones. It needs no reference.
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { add, div, exp, log, mul, neg, sub } from '../graph/ops/elementwise.js'
import { sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'
import { type DpoTerms, logSigmoid, type PreferenceEvaluation, preferenceScoreboard, rewardScores } from './dpo.js'
import type { Objective, Syms } from './objective.js'
import {
  answerScores,
  openPairs,
  type PreferenceBatch,
  pairArrays,
  pairCount,
  pairInputs,
  pairTokens,
} from './preference_pairs.js'

/** Options of {@link orpo}. */
export interface OrpoOptions {
  /** Weight of the odds' part, λ in the paper; default 0.1. */
  readonly beta?: number
}

const schema = z.strictObject({ beta: z.number().positive({ error: 'a number above 0' }).default(0.1) })

/**
 * −m(y⁺) − β log σ(log odds(y⁺) − log odds(y⁻)), with m the mean log-probability per token of an answer and
 * odds = e^m / (1 − e^m). Rewards are β m.
 * @throws ERR_HEDDLE_ARGUMENT on an option that is unknown or out of range
 */
export function orpo(options: OrpoOptions = {}): Objective<CausalLm, PreferenceBatch, PreferenceEvaluation> {
  const config = parseConfig('orpo', schema, options)
  const terms = async (network: CausalLm, inputs: Syms, forward: Forward): Promise<DpoTerms> => {
    const scores = await answerScores(network, inputs, forward)
    // Filling has no tokens, and odds of certainty: any mean below 0 keeps it finite.
    const filling = sub(inputs.isPair!, 1)
    const chosen = add(div(scores.chosen, scores.chosenLength), filling)
    const rejected = add(div(scores.rejected, scores.rejectedLength), filling)
    const odds = sub(logOdds(chosen), logOdds(rejected))
    const losses = neg(add(chosen, mul(config.beta, logSigmoid(odds))))
    return { losses, chosen: mul(config.beta, chosen), rejected: mul(config.beta, rejected) }
  }
  return {
    name: 'orpo',
    config,
    inputs: pairInputs,
    arrays: pairArrays,
    weight: pairCount,
    tokens: pairTokens,
    loss: async (network, inputs, forward) => sum(mul((await terms(network, inputs, forward)).losses, inputs.isPair!)),
    scores: async (network, inputs, forward) => rewardScores(inputs.isPair!, await terms(network, inputs, forward)),
    scoreboard: preferenceScoreboard,
    open: openPairs,
  }
}

/** log(e^m / (1 − e^m)) for m < 0. */
const logOdds = (m: Sym): Sym => sub(m, log(sub(1, exp(m))))
