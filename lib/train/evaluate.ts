/** Scores of a model on held-out data, with or without an adapter, by any objective. */
import { type ActiveAdapters, activeOf } from '../adapters/active.js'
import type { Batch } from '../data/dataset.js'
import type { Precision } from '../graph/ops/matmul.js'
import { program } from '../graph/program.js'
import type { Network } from '../nn/network.js'
import type { SiteHook } from '../nn/site.js'
import { batchTensors, namedInputs } from '../objectives/batch_tensors.js'
import { causalLm, type Evaluation } from '../objectives/causal_lm.js'
import type { EvaluationResult, Objective, ScoreArray, TrainingData } from '../objectives/objective.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Trainable } from './trainable.js'

/** Options of {@link evaluate}. */
export interface EvaluateOptions {
  /** Default: the base model alone. */
  readonly adapter?: ActiveAdapters | undefined
  /** Default 8. */
  readonly batchSize?: number
  /** For a path: most tokens that the model sees at once. Default: 256, or the model's maximum if that is less. */
  readonly maxLength?: number
  /** Default: the model's. */
  readonly precision?: Precision
  readonly signal?: AbortSignal | undefined
  /** Called with the share of the data that has been scored. */
  onProgress?(share: number): void
}

/**
 * Scores a data file or data that were opened before; the result does not depend on the batch size beyond rounding.
 * Default objective: `causalLm()`, which gives loss and perplexity.
 * @throws ERR_HEDDLE_ABORTED, and what reading the file throws
 */
export function evaluate<N extends Network, B, E extends EvaluationResult>(
  model: Trainable<N>,
  data: string | TrainingData<B>,
  options: EvaluateOptions & { readonly objective: Objective<N, B, E> },
): Promise<E>
export function evaluate(
  model: Trainable,
  data: string | TrainingData<Batch>,
  options?: EvaluateOptions,
): Promise<Evaluation>
export async function evaluate(
  model: Trainable,
  data: string | TrainingData<unknown>,
  options: EvaluateOptions & { readonly objective?: Objective } = {},
): Promise<EvaluationResult> {
  const { adapter, precision = model.precision, signal, objective = causalLm(), ...rest } = options
  const maxLength = options.maxLength ?? defaultLength(model)
  const { tokenizer, network } = model
  const open = { tokenizer, network, maxLength, evaluationFraction: 0, seed: 0, signal }
  const dataset = typeof data === 'string' ? await objective.open(data, open) : data
  await objective.prepare?.(network, dataset, { batchSize: options.batchSize ?? 8, precision, signal })
  const score = evaluator(network, { objective, hook: activeOf(adapter)?.hook, precision })
  try {
    return await score.run(dataset, { ...rest, signal })
  } finally {
    score.dispose()
  }
}

/** Sequence length where the user names none. */
export const defaultLength = (model: Trainable): number => Math.min(256, model.network.maxPositions)

export interface Evaluator<B = unknown, E extends EvaluationResult = EvaluationResult> {
  run(data: TrainingData<B>, options?: Pick<EvaluateOptions, 'batchSize' | 'signal' | 'onProgress'>): Promise<E>
  dispose(): void
}

/** What {@link evaluator} compiles. */
export interface EvaluatorOptions<N extends Network, B, E extends EvaluationResult> {
  readonly objective: Objective<N, B, E>
  readonly hook?: SiteHook | undefined
  readonly precision?: Precision
}

/** A compiled evaluation, for use again and again while parameters change. */
export function evaluator<N extends Network, B, E extends EvaluationResult>(
  network: N,
  { objective, hook, precision = 'f32' }: EvaluatorOptions<N, B, E>,
): Evaluator<B, E> {
  const scores = program(
    (...arrays) => objective.scores(network, namedInputs(objective, arrays), { precision, training: false, hook }),
    { device: network.device },
  )
  return {
    async run(data, { batchSize = 8, signal, onProgress } = {}) {
      const count = data.batchCount(batchSize)
      const board = objective.scoreboard(network)
      let done = 0
      for await (const batch of data.batches({ batchSize, shuffle: false })) {
        const inputs = batchTensors(objective, batch)
        try {
          board.add(batch, await takenArrays(await scores.run(inputs, { signal })))
        } finally {
          for (const input of inputs) input.dispose()
        }
        done += 1
        onProgress?.(done / count)
      }
      return board.result()
    },
    dispose: () => scores.dispose(),
  }
}

/** The elements of results, which are freed. */
async function takenArrays(results: Readonly<Record<string, Tensor>>): Promise<Record<string, ScoreArray>> {
  const arrays: Record<string, ScoreArray> = {}
  for (const [name, result] of Object.entries(results)) {
    arrays[name] = (await result.data()) as ScoreArray
    result.dispose()
  }
  return arrays
}
