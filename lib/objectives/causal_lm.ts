/** Next-token prediction as an objective: the loss of pretraining and of supervised fine-tuning. */
import { type Batch, positionsOf } from '../data/collate.js'
import { Dataset } from '../data/dataset.js'
import type { ColumnNames } from '../data/shapes.js'
import { add, cast, equal, greaterEqual, mul } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { argmax, reshape, sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'
import { hiddenLoss, type LossInputs } from './causal_lm_loss.js'
import type { EvaluationResult, Objective, Syms } from './objective.js'

/** What scoring a language model gives. */
export interface Evaluation extends EvaluationResult {
  /** Mean −log p per target token, in nats. */
  readonly loss: number
  /** e to the loss. */
  readonly perplexity: number
  /** Targets that were scored. */
  readonly tokens: number
  /** Share of the targets that are the most likely token; only with `causalLm({ accuracy: true })`. */
  readonly accuracy?: number
}

/** Options of {@link causalLm}. */
export interface CausalLmOptions {
  /** Evaluations also say how often the target is the most likely token, which takes the logits a second time. */
  readonly accuracy?: boolean
  /** Several sequences in one row of a data file's batches, as `packing` of {@link Dataset.open} says. Default false. */
  readonly packing?: boolean
  /** For a data file: parts of an example by the columns that hold them, as `columns` of {@link Dataset.open} says. */
  readonly columns?: ColumnNames | undefined
}

/** Mean −log p(next token) over all positions that have a target. */
export function causalLm(given: CausalLmOptions = {}): Objective<CausalLm, Batch, Evaluation> {
  const { accuracy = false, packing = false, columns } = given
  return {
    name: 'causal-lm',
    config: {},
    inputs: ['ids', 'targets', 'segments', 'positions'],
    arrays({ rows, length, inputIds, targets, segments, positions = positionsOf(segments, length) }) {
      const shape = [rows, length]
      return {
        ids: { data: inputIds, shape },
        targets: { data: targets, shape },
        segments: { data: segments, shape },
        positions: { data: positions, shape },
      }
    },
    weight: ({ tokens }) => tokens,
    tokens: ({ segments }) => segments.reduce((count, id) => count + (id >= 0 ? 1 : 0), 0),
    async loss(network, inputs, forward) {
      const { targets, ...decoder } = lossInputs(inputs)
      return hiddenLoss(network, await network.hidden(decoder, forward), targets, forward)
    },
    async scores(network, inputs, forward) {
      const { targets, ...decoder } = lossInputs(inputs)
      const hidden = await network.hidden(decoder, forward)
      const loss = hiddenLoss(network, hidden, targets, forward)
      return accuracy ? { loss, correct: correctTargets(network, hidden, targets, forward) } : { loss }
    },
    scoreboard() {
      let total = 0
      let correct = 0
      let tokens = 0
      return {
        add(batch, outputs) {
          total += outputs.loss![0]!
          correct += outputs.correct?.[0] ?? 0
          tokens += batch.tokens
        },
        result() {
          const loss = total / Math.max(1, tokens)
          const scored = { loss, perplexity: Math.exp(loss), tokens }
          return accuracy ? { ...scored, accuracy: correct / Math.max(1, tokens) } : scored
        },
      }
    },
    open: (path, { tokenizer, network: _, ...options }) =>
      Dataset.open(path, tokenizer, { ...options, packing, columns }),
  }
}

const lossInputs = ({ ids, targets, segments, positions }: Syms): LossInputs & { readonly positions: Sym } => ({
  ids: ids!,
  targets: targets!,
  segments: segments!,
  positions: positions!,
})

/** Rows whose logits are held at a time: 50 MB with a vocabulary of 49,152. */
const chunkRows = 256

/** Number of targets that are the most likely token, `f32 []`, from `hidden [n, d]`. */
function correctTargets(network: CausalLm, hidden: Sym, targets: Sym, forward: Forward): Sym {
  const flat = reshape(targets, [-1])
  const rows = hidden.shape[0]!
  const counts: Sym[] = []
  for (let start = 0; start < rows; start += chunkRows) {
    const range = [{ axis: 0, start, end: Math.min(rows, start + chunkRows) }]
    const target = slice(flat, range)
    const predicted = argmax(network.logits(slice(hidden, range), forward))
    counts.push(sum(mul(greaterEqual(target, 0), equal(cast(predicted, 'f32'), cast(target, 'f32')))))
  }
  return counts.reduce((total, count) => add(total, count))
}
