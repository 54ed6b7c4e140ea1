/** A pretrained text network with a classification head, its tokenizer and adapters: texts in, labels out. */
import { z } from 'zod'
import { AdaptedModel } from './adapted_model.js'
import type { Adapter, AttachOptions } from './adapters/adapter.js'
import { AdapterPrograms } from './adapters/adapter_programs.js'
import type { Parametrization } from './adapters/parametrization.js'
import { parametrizations } from './adapters/registry.js'
import { parseConfig } from './config.js'
import { HeddleError } from './errors.js'
import { openCheckpoint } from './formats/checkpoint.js'
import type { HubOptions } from './formats/hub.js'
import type { Precision } from './graph/ops/matmul.js'
import { softmax } from './graph/ops/softmax.js'
import { buildNetwork, siteStructures } from './models/build.js'
import { decoders, encoders } from './models/registry.js'
import { type ClassifierNetwork, decoderClassifier, encoderClassifier } from './models/sequence_classifier.js'
import { checkpointWeights } from './models/weights.js'
import { encodedText, textBatch } from './objectives/text_batches.js'
import { tensor } from './tensor/tensor.js'
import { Tokenizer } from './tokenize/tokenizer.js'

/** Options of {@link loadSequenceClassifier}. */
export interface LoadClassifierOptions extends HubOptions {
  /** The classes, in the order of the logits; default: the checkpoint's own, where it is a classifier already. */
  readonly labels?: readonly string[]
  /** How frozen weights are stored and multiplied; default `f32`. */
  readonly precision?: Precision
  /** Seed of a new head; default 0. */
  readonly seed?: number
}

/** What {@link SequenceClassifier.classify} says of a text. */
export interface Classification {
  readonly label: string
  /** Probability of that label. */
  readonly score: number
  /** Probability of every label. */
  readonly scores: Readonly<Record<string, number>>
}

/** Options of {@link SequenceClassifier.classify}. */
export interface ClassifyOptions {
  /** Default: none. */
  readonly adapter?: Adapter | undefined
  /** Texts in one forward pass; default 16. */
  readonly batchSize?: number
  /** Longer texts are cut to this many tokens; default 256, or the model's maximum if that is less. */
  readonly maxLength?: number
  readonly signal?: AbortSignal | undefined
}

const labelsSchema = z.array(z.string().min(1)).min(2, { error: 'at least two labels' })
const loadSchema = z.strictObject({
  labels: labelsSchema.optional(),
  precision: z.enum(['f32', 'bf16']).default('f32'),
  seed: z.int().min(0).default(0),
})
const classifySchema = z.strictObject({
  batchSize: z.int().min(1).max(4096).default(16),
  maxLength: z.int().min(1).optional(),
})

/**
 * Loads an encoder (BERT, RoBERTa, DistilBERT, …) or a decoder and puts a classification head on it; a checkpoint of an
 * encoder that has the head already keeps it.
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK
 */
export async function loadSequenceClassifier(
  source: string,
  options: LoadClassifierOptions = {},
): Promise<SequenceClassifier> {
  const { labels: wanted, precision, seed, ...hub } = options
  const given = parseConfig('loadSequenceClassifier', loadSchema, { labels: wanted, precision, seed })
  const checkpoint = await openCheckpoint(source, hub)
  try {
    const { config, path, tensors } = checkpoint
    const stored = storedLabels(config)
    const labels = given.labels ?? stored
    if (!labels)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: 'loadSequenceClassifier.labels',
        expected: 'the names of the classes, as the checkpoint has none',
        got: 'nothing',
      })
    const isEncoder = encoders.some(({ modelType }) => modelType === config.model_type)
    const head = {
      labels,
      seed: given.seed,
      source: stored?.length === labels.length ? checkpointWeights(tensors, path) : undefined,
    }
    const network = isEncoder
      ? await encoderClassifier(buildNetwork(encoders, checkpoint, await siteStructures(checkpoint)), head)
      : await decoderClassifier(buildNetwork(decoders, checkpoint, await siteStructures(checkpoint)), head)
    const tokenizer = await Tokenizer.load(checkpoint.tokenizerSource)
    return new SequenceClassifier(checkpoint.modelId, network, tokenizer, given.precision)
  } finally {
    checkpoint.close()
  }
}

/** The labels of a config.json whose `id2label` names them. */
export function storedLabels(config: Readonly<Record<string, unknown>>): readonly string[] | undefined {
  const { id2label } = config
  if (typeof id2label !== 'object' || id2label === null) return undefined
  const labels = Object.keys(id2label).map((_, id) => Reflect.get(id2label, String(id)) as unknown)
  return labelsSchema.safeParse(labels).data
}

/** A text classifier; made by {@link loadSequenceClassifier}. */
export class SequenceClassifier extends AdaptedModel<ClassifierNetwork> {
  readonly #programs: AdapterPrograms

  constructor(
    source: string,
    network: ClassifierNetwork,
    readonly tokenizer: Tokenizer,
    precision: Precision,
  ) {
    super({ source, network, precision, tokenizer })
    this.#programs = new AdapterPrograms(network, { precision }, async ([ids, mask], forward) =>
      softmax(await network.logits({ ids: ids!, mask: mask! }, forward), -1),
    )
  }

  /** The classes, in the order of the logits. */
  get labels(): readonly string[] {
    return this.network.labels
  }

  /**
   * Attaches a fresh adapter, e.g. `lora({ r: 16 })`. As PEFT does for this task, the head is trained with it and saved
   * in the adapter's folder. @throws ERR_HEDDLE_ARGUMENT when no module matches
   */
  override attach(method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    return super.attach(withHead(method, this.network.headModules), { taskType: 'SEQ_CLS', ...options })
  }

  /** The most likely label of each text, in the order given. @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED */
  async classify(texts: readonly string[], options: ClassifyOptions = {}): Promise<Classification[]> {
    const { adapter, signal, ...rest } = options
    const { batchSize, maxLength = 256 } = parseConfig('classify', classifySchema, rest)
    this.expectUsable('classify.adapter', adapter)
    const length = Math.min(maxLength, this.network.maxPositions)
    const encoded = await Promise.all(texts.map((text) => encodedText(this.tokenizer, text, length)))
    const results: Classification[] = []
    for (let start = 0; start < encoded.length; start += batchSize) {
      const rows = encoded.slice(start, start + batchSize)
      const batch = textBatch(
        Array.from({ length: batchSize }, (_, i) => rows[i]),
        length,
      )
      const shape = [batchSize, batch.length]
      using ids = tensor(batch.ids, shape)
      using mask = tensor(batch.mask, shape)
      using output = await this.#programs.for(adapter).run([ids, mask], { signal })
      const values = (await output.data()) as Float32Array
      results.push(...rows.map((_, row) => this.#classification(values, row)))
    }
    return results
  }

  #classification(values: Float32Array, row: number): Classification {
    const count = this.labels.length
    const own = values.subarray(row * count, (row + 1) * count)
    const scores = Object.fromEntries(this.labels.map((label, i) => [label, own[i]!]))
    const score = Math.max(...own)
    return { label: this.labels[own.indexOf(score)]!, score, scores }
  }

  protected override forget(): void {
    this.#programs.dispose()
  }
}

/** The method with the head's modules among those that are trained as they are. */
function withHead(method: Parametrization, head: readonly string[]): Parametrization {
  const type = parametrizations.find(({ name }) => name === method.name)!
  const saved = (method.config.modules_to_save ?? []) as readonly string[]
  return type.create({ ...method.config, modules_to_save: [...new Set([...saved, ...head])] })
}
