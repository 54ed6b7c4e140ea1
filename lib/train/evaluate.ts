/** Held-out loss and perplexity of a model, with or without an adapter. */
import type { Adapter } from '../adapters/adapter.js'
import { Dataset } from '../data/dataset.js'
import type { Precision } from '../graph/ops/matmul.js'
import { program } from '../graph/program.js'
import type { Model } from '../model.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { SiteHook } from '../nn/site.js'
import { causalLmLoss } from '../objectives/causal_lm_loss.js'
import { tensor } from '../tensor/tensor.js'

/** Result of {@link evaluate}. */
export interface Evaluation {
  /** Mean −log p per target token, in nats. */
  readonly loss: number
  /** e to the loss. */
  readonly perplexity: number
  /** Targets that were scored. */
  readonly tokens: number
}

/** Options of {@link evaluate}. */
export interface EvaluateOptions {
  /** Default: the base model alone. */
  readonly adapter?: Adapter | undefined
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
 * Scores a data file or {@link Dataset}; the result does not depend on the batch size beyond rounding.
 * @throws ERR_HEDDLE_ABORTED, and what reading the file throws
 */
export async function evaluate(
  model: Model,
  data: string | Dataset,
  options: EvaluateOptions = {},
): Promise<Evaluation> {
  const { adapter, precision = model.precision, signal, ...rest } = options
  const maxLength = options.maxLength ?? defaultLength(model)
  const dataset = typeof data === 'string' ? await Dataset.open(data, model.tokenizer, { maxLength, signal }) : data
  const score = evaluator(model.network, { hook: adapter?.hook, precision })
  try {
    return await score.run(dataset, { ...rest, signal })
  } finally {
    score.dispose()
  }
}

/** Sequence length where the user names none. */
export const defaultLength = (model: Model): number => Math.min(256, model.network.maxPositions)

export interface Evaluator {
  run(dataset: Dataset, options?: Pick<EvaluateOptions, 'batchSize' | 'signal' | 'onProgress'>): Promise<Evaluation>
  dispose(): void
}

/** A compiled evaluation, for use again and again while parameters change. */
export function evaluator(
  network: CausalLm,
  { hook, precision = 'f32' }: { readonly hook?: SiteHook | undefined; readonly precision?: Precision } = {},
): Evaluator {
  const total = program((ids, targets, segments) =>
    causalLmLoss(network, { ids: ids!, targets: targets!, segments: segments! }, { precision, training: false, hook }),
  )
  return {
    async run(dataset, { batchSize = 8, signal, onProgress } = {}) {
      const count = dataset.batchCount(batchSize)
      let sum = 0
      let tokens = 0
      let done = 0
      for await (const batch of dataset.batches({ batchSize, shuffle: false })) {
        const shape = [batch.rows, batch.length]
        using ids = tensor(batch.inputIds, shape)
        using targets = tensor(batch.targets, shape)
        using segments = tensor(batch.segments, shape)
        using loss = await total.run([ids, targets, segments], { signal })
        sum += loss.item()
        tokens += batch.tokens
        done += 1
        onProgress?.(done / count)
      }
      const loss = sum / Math.max(1, tokens)
      return { loss, perplexity: Math.exp(loss), tokens }
    },
    dispose: () => total.dispose(),
  }
}
