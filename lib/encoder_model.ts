/** A pretrained text encoder with its tokenizer and adapters: texts in, one vector for each out. */
import { z } from 'zod'
import { AdaptedModel } from './adapted_model.js'
import type { Adapter, AttachOptions } from './adapters/adapter.js'
import { AdapterPrograms } from './adapters/adapter_programs.js'
import type { Parametrization } from './adapters/parametrization.js'
import { parseConfig } from './config.js'
import { HeddleError } from './errors.js'
import { openCheckpoint } from './formats/checkpoint.js'
import type { HubOptions } from './formats/hub.js'
import { readSentenceTransformer } from './formats/sentence_transformer.js'
import { add, div, sqrt, square } from './graph/ops/elementwise.js'
import type { Precision } from './graph/ops/matmul.js'
import { sum } from './graph/ops/reduce.js'
import type { Sym } from './graph/sym.js'
import { buildNetwork, siteStructures } from './models/build.js'
import { type Encoder, type Pooling, pool } from './models/encoder.js'
import { encoders } from './models/registry.js'
import { encodedText } from './objectives/text_batches.js'
import { tensor } from './tensor/tensor.js'
import { Tokenizer } from './tokenize/tokenizer.js'

/** Options of {@link loadEncoder}. */
export interface LoadEncoderOptions extends HubOptions {
  /** How frozen weights are stored and multiplied; default `f32`. */
  readonly precision?: Precision
  /** How hidden states become one vector; default: as the folder's sentence-transformers files say, else `mean`. */
  readonly pooling?: Pooling
  /** Scale vectors to length 1; default: as those files say, else false. */
  readonly normalize?: boolean
  /** Longer texts are cut to this many tokens, special ones included; default: as those files say, else all that fit. */
  readonly maxLength?: number
}

/** Options of {@link EncoderModel.embed}. */
export interface EmbedOptions {
  /** Default: none. */
  readonly adapter?: Adapter | undefined
  /** Most texts in one forward pass; default 32. */
  readonly batchSize?: number
  readonly signal?: AbortSignal | undefined
}

const loadSchema = z.strictObject({
  precision: z.enum(['f32', 'bf16']).default('f32'),
  pooling: z.enum(['mean', 'cls', 'max']).optional(),
  normalize: z.boolean().optional(),
  maxLength: z.int().positive().optional(),
})

const embedSchema = z.strictObject({ batchSize: z.int().positive().max(4096).default(32) })

/**
 * Loads a text encoder (BERT, RoBERTa, XLM-RoBERTa, DistilBERT): a folder in Hugging Face or sentence-transformers
 * layout, or a Hugging Face id.
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK
 */
export async function loadEncoder(source: string, options: LoadEncoderOptions = {}): Promise<EncoderModel> {
  const { precision, pooling, normalize, maxLength, ...hub } = options
  const given = parseConfig('loadEncoder', loadSchema, { precision, pooling, normalize, maxLength })
  const checkpoint = await openCheckpoint(source, hub)
  try {
    const stored = await readSentenceTransformer(checkpoint.path)
    const network = buildNetwork(encoders, checkpoint, await siteStructures(checkpoint))
    const settings = {
      pooling: given.pooling ?? stored.pooling,
      normalize: given.normalize ?? stored.normalize,
      maxLength: Math.min(given.maxLength ?? stored.maxLength ?? network.maxPositions, network.maxPositions),
    }
    const tokenizer = await Tokenizer.load(checkpoint.tokenizerSource)
    return new EncoderModel(checkpoint.modelId, network, tokenizer, given.precision, settings)
  } finally {
    checkpoint.close()
  }
}

/** How texts become vectors. */
export interface EncoderSettings {
  /** How hidden states become one vector. */
  readonly pooling: Pooling
  /** Vectors are scaled to length 1. */
  readonly normalize: boolean
  /** Longer texts are cut to this many tokens, special ones included. */
  readonly maxLength: number
}

/** A text encoder; made by {@link loadEncoder}. */
export class EncoderModel extends AdaptedModel<Encoder> {
  readonly #programs: AdapterPrograms

  constructor(
    source: string,
    network: Encoder,
    readonly tokenizer: Tokenizer,
    precision: Precision,
    readonly settings: EncoderSettings,
  ) {
    super({ source, network, precision, tokenizer })
    this.#programs = new AdapterPrograms(network, { precision }, async ([ids, mask], forward) => {
      const hidden = await network.hidden({ ids: ids!, mask: mask! }, forward)
      const pooled = pool(hidden, mask!, settings.pooling)
      return settings.normalize ? unitLength(pooled) : pooled
    })
  }

  /** Length of the vectors. */
  get dimensions(): number {
    return this.network.hiddenSize
  }

  /** Attaches a fresh adapter, e.g. `lora({ r: 16 })`. @throws ERR_HEDDLE_ARGUMENT when no module matches */
  override attach(method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    return super.attach(method, { taskType: 'FEATURE_EXTRACTION', ...options })
  }

  /**
   * One vector for each text, `f32 [dimensions]`, in the order given; texts may be given as tokens, special ones
   * included. Texts of about equal length share a forward pass, so that little of it is padding.
   * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED
   */
  async embed(texts: readonly (string | Int32Array)[], options: EmbedOptions = {}): Promise<Float32Array[]> {
    const { adapter, signal, ...rest } = options
    const { batchSize } = parseConfig('embed', embedSchema, rest)
    this.expectUsable('embed.adapter', adapter)
    const { maxLength } = this.settings
    const encoded = await Promise.all(texts.map((text) => this.#tokensOf(text)))
    const vectors = new Array<Float32Array>(texts.length)
    for (const batch of batchesOf(encoded, batchSize, maxLength)) {
      const rows = await this.#run(batch, adapter, signal)
      for (const [row, index] of batch.indices.entries())
        vectors[index] = rows.slice(row * this.dimensions, (row + 1) * this.dimensions)
    }
    return vectors
  }

  async #tokensOf(text: string | Int32Array): Promise<Int32Array> {
    const { maxLength } = this.settings
    if (typeof text === 'string') return encodedText(this.tokenizer, text, maxLength)
    const { vocabSize } = this.tokenizer
    if (text.length > 0 && text.length <= maxLength && text.every((id) => id >= 0 && id < vocabSize)) return text
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'embed.texts',
      expected: `1 to ${maxLength} tokens below ${vocabSize}`,
      got: `${text.length}, the highest ${text.reduce((most, id) => Math.max(most, id), -1)}`,
    })
  }

  async #run(batch: Batch, adapter: Adapter | undefined, signal: AbortSignal | undefined): Promise<Float32Array> {
    const inputs = [tensor(batch.ids, batch.shape), tensor(batch.mask, batch.shape)]
    try {
      const result = await this.#programs.for(adapter).run(inputs, { signal })
      const rows = (await result.data()) as Float32Array
      result.dispose()
      return rows
    } finally {
      for (const input of inputs) input.dispose()
    }
  }

  protected override forget(): void {
    this.#programs.dispose()
  }
}

/** x / |x| over the last axis; a zero vector stays zero. */
const unitLength = (x: Sym): Sym => div(x, add(sqrt(sum(square(x), { axes: [-1], keepDims: true })), 1e-12))

interface Batch {
  /** Which text each row is; rows beyond are empty. */
  readonly indices: readonly number[]
  readonly shape: readonly [number, number]
  readonly ids: Int32Array
  readonly mask: Int32Array
}

/** Lengths and row counts are rounded up to few sizes, so that few programs are ever traced. */
const lengthStep = 16

/** Texts sorted by length and cut into batches; each batch is as long as its longest text, rounded up. */
function* batchesOf(encoded: readonly Int32Array[], batchSize: number, maxLength: number): Generator<Batch> {
  const padded = (ids: Int32Array): number => Math.min(maxLength, Math.ceil(ids.length / lengthStep) * lengthStep)
  const order = [...encoded.keys()].sort((a, b) => encoded[a]!.length - encoded[b]!.length)
  let start = 0
  while (start < order.length) {
    const time = padded(encoded[order[start]!]!)
    let end = start
    while (end < order.length && end - start < batchSize && padded(encoded[order[end]!]!) === time) end++
    const indices = order.slice(start, end)
    const rows = Math.min(batchSize, 2 ** Math.ceil(Math.log2(indices.length)))
    const ids = new Int32Array(rows * time)
    const mask = new Int32Array(rows * time)
    for (const [row, index] of indices.entries()) {
      ids.set(encoded[index]!, row * time)
      mask.fill(1, row * time, row * time + encoded[index]!.length)
    }
    yield { indices, shape: [rows, time], ids, mask }
    start = end
  }
}
