/** The front door: a pretrained model with its tokenizer and adapters, to be trained, asked, merged and saved. */

import { AdaptedModel } from './adapted_model.js'
import { type ActiveAdapters, activeOf } from './adapters/active.js'
import { HeddleError } from './errors.js'
import { openCheckpoint } from './formats/checkpoint.js'
import type { HubOptions } from './formats/hub.js'
import { bestOf, collectTexts, type GeneratedText } from './generate/batch.js'
import { DecoderEmbedder, type DecoderPooling } from './generate/embed.js'
import { generateTokens } from './generate/generate.js'
import {
  type GenerateBatchOptions,
  type GenerateOptions,
  type GenerateSettings,
  type GenerateTokensOptions,
  parseBatchOptions,
  parseGenerateOptions,
  parseTokenOptions,
} from './generate/options.js'
import { SessionPool } from './generate/session_pool.js'
import type { GeneratedToken } from './generate/text_in_progress.js'
import { biasOf, constraintOf } from './generate/text_options.js'
import { checkedDevice } from './graph/device.js'
import type { Precision } from './graph/ops/matmul.js'
import { buildNetwork, siteStructures } from './models/build.js'
import type { CausalLm } from './models/causal_lm.js'
import { expectRoom } from './models/memory.js'
import { decoders } from './models/registry.js'
import { addon, type Device } from './native.js'
import { tensor } from './tensor/tensor.js'
import type { Constraint } from './tokenize/constraint.js'
import { type ChatMessage, Tokenizer } from './tokenize/tokenizer.js'

/** Options of {@link loadModel}. */
export interface LoadOptions extends HubOptions {
  /**
   * How frozen weights are stored and multiplied; default `f32`. `bf16` halves their memory. `stored` is for generation
   * from a quantised `.gguf`: single tokens are computed from its own blocks, long prompts in bf16.
   */
  readonly precision?: Precision
  /** Most bytes of keys and values of earlier texts that are kept for later ones; default 512 MiB. */
  readonly cacheBytes?: number
  /** Most bytes that the weights may take; default: what the system and the process's control group have left. */
  readonly memoryLimit?: number
  /** Where the model is computed, by training too; default: what {@link setDevice} says. */
  readonly device?: Device
}

export type {
  GenerateBatchOptions,
  GenerateOptions,
  GenerateTokensOptions,
  JsonSchema,
  ResponseFormat,
  SamplingOptions,
} from './generate/options.js'
export type { FinishReason } from './generate/text_in_progress.js'
export type { DecoderPooling, GeneratedText, GeneratedToken }

/** What can be asked: a text, a conversation, or tokens as they are. */
export type Prompt = string | readonly ChatMessage[] | Int32Array

/** What `model.embed` can be asked for. */
export interface DecoderEmbedOptions {
  /** The mean of the last hidden states (default), or the last token's. */
  readonly pooling?: DecoderPooling
  /** Scale vectors to length 1; default true. */
  readonly normalize?: boolean
  readonly adapter?: ActiveAdapters | undefined
  readonly signal?: AbortSignal | undefined
}

const defaultCacheBytes = 2 ** 29

/**
 * Loads a model: a folder in Hugging Face layout, a `.gguf` file, or a Hugging Face id. Weights are memory-mapped and
 * decoded when first used. A model whose weights cannot fit into memory is refused before any of it is allocated.
 * @throws ERR_HEDDLE_OOM, ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK; ERR_HEDDLE_DEVICE, which
 * says what is missing, where the device cannot be used
 */
export async function loadModel(source: string, options: LoadOptions = {}): Promise<Model> {
  const { precision = 'f32', cacheBytes = defaultCacheBytes, memoryLimit, device, ...hub } = options
  if (precision !== 'f32' && precision !== 'bf16' && precision !== 'stored')
    throw misuse('loadModel.precision', '"f32", "bf16" or "stored"', JSON.stringify(precision))
  if (memoryLimit !== undefined && !(memoryLimit > 0))
    throw misuse('loadModel.memoryLimit', 'a positive number of bytes', String(memoryLimit))
  if (device !== undefined && checkedDevice(device, 'loadModel.device') === 'cuda') addon.cudaInfo()
  const checkpoint = await openCheckpoint(source, hub)
  try {
    await expectRoom(checkpoint, precision, memoryLimit)
    const network = buildNetwork(decoders, checkpoint, await siteStructures(checkpoint))
    network.device = device
    const tokenizer = await Tokenizer.load(checkpoint.tokenizerSource)
    return new Model(checkpoint.modelId, network, tokenizer, precision, cacheBytes)
  } finally {
    checkpoint.close()
  }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })

/** A causal language model; made by {@link loadModel}. */
export class Model extends AdaptedModel<CausalLm> {
  readonly #sessions: SessionPool
  readonly #embedders = new Map<string, DecoderEmbedder>()

  constructor(
    source: string,
    network: CausalLm,
    readonly tokenizer: Tokenizer,
    precision: Precision,
    cacheBytes: number = defaultCacheBytes,
  ) {
    super({ source, network, precision, tokenizer })
    this.#sessions = new SessionPool(network, precision, cacheBytes)
  }

  /** Yields text as it is made. @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED */
  async *generate(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<string, void, void> {
    for await (const { text } of this.#tokens([prompt], parseGenerateOptions(options))) if (text) yield text
  }

  /**
   * Yields every token as it is made, with its text and, on request, log-probabilities; the last one says why the text
   * ended. An end token is yielded too.
   * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED
   */
  async *generateTokens(
    prompt: Prompt,
    options: GenerateTokensOptions = {},
  ): AsyncGenerator<GeneratedToken, void, void> {
    yield* this.#tokens([prompt], parseTokenOptions(options))
  }

  /**
   * Makes the texts of several prompts at once: one forward pass per token serves them all. Each text is what its prompt
   * would give alone, up to the rounding of sums.
   * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED
   */
  async generateBatch(prompts: readonly Prompt[], options: GenerateBatchOptions = {}): Promise<GeneratedText[]> {
    const { bestOf: candidates, ...given } = parseBatchOptions(options)
    if (prompts.length === 0) return []
    const settings = candidates > 1 ? { ...given, logProbabilities: given.logProbabilities ?? 1 } : given
    const texts = await collectTexts(this.#tokens(prompts, settings, candidates), prompts.length * candidates)
    return prompts.map((_, index) => bestOf(texts.slice(index * candidates, (index + 1) * candidates)))
  }

  /**
   * One vector per text from the last hidden states, `[hidden size]` each; texts go in as they are, without a template,
   * or as tokens.
   * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED
   */
  async embed(texts: readonly (string | Int32Array)[], options: DecoderEmbedOptions = {}): Promise<Float32Array[]> {
    const { pooling = 'mean', normalize = true, signal } = options
    const adapter = activeOf(options.adapter)
    if (pooling !== 'mean' && pooling !== 'last')
      throw misuse('embed.pooling', '"mean" or "last"', JSON.stringify(pooling))
    this.expectUsable('embed.adapter', adapter)
    const embedder = this.#embedder(pooling, normalize)
    const vectors: Float32Array[] = []
    for (const text of texts)
      vectors.push(await embedder.embed(await this.#promptIds('embed', text, false), { adapter, signal }))
    return vectors
  }

  #embedder(pooling: DecoderPooling, normalize: boolean): DecoderEmbedder {
    const name = `${pooling} ${normalize}`
    const known = this.#embedders.get(name)
    if (known) return known
    const made = new DecoderEmbedder(this.network, { precision: this.precision }, pooling, normalize)
    this.#embedders.set(name, made)
    return made
  }

  /**
   * The tokens that a prompt is for the model; a plain string is wrapped into the chat template as `generate` does.
   * @throws ERR_HEDDLE_ARGUMENT when there are none, or more than the model can read
   */
  promptTokens(
    prompt: Prompt,
    { chat = this.tokenizer.hasChatTemplate }: Pick<GenerateOptions, 'chat'> = {},
  ): Promise<Int32Array> {
    return this.#promptIds('promptTokens', prompt, chat)
  }

  /** Frees weights, caches and adapters, and ends the tokenizer's worker. */
  override async dispose(): Promise<void> {
    this.#sessions.close()
    await super.dispose()
  }

  protected override forget(): void {
    this.#sessions.forget()
    for (const embedder of this.#embedders.values()) embedder.dispose()
  }

  /** Tokens of `streams` texts per prompt, as they are made. */
  async *#tokens(
    given: readonly Prompt[],
    settings: GenerateSettings,
    streams = 1,
  ): AsyncGenerator<GeneratedToken, void, void> {
    const { adapter, maxTokens } = settings
    this.expectUsable('generate.adapter', adapter)
    const chat = settings.chat ?? this.tokenizer.hasChatTemplate
    const encoded = await Promise.all(given.map((prompt) => this.#promptIds('generate', prompt, chat)))
    const prompts = encoded.flatMap((tokens) => Array.from({ length: streams }, (_, stream) => ({ tokens, stream })))
    const longest = Math.max(...encoded.map(({ length }) => length))
    const added = biasOf(settings, this.network)
    const bias = added && tensor(added)
    const constraints = await this.#constraintsOf(settings, prompts.length, longest)
    const request = { tokens: longest + maxTokens, batch: prompts.length, adapter }
    try {
      const lease = await this.#sessions.take(prompts.length === 1 ? { ...request, prompt: encoded[0]! } : request)
      const { session } = lease
      const { vocabularySize } = this.network
      try {
        yield* generateTokens({
          session,
          tokenizer: this.tokenizer,
          vocabularySize,
          prompts,
          settings,
          bias,
          constraints,
        })
      } finally {
        this.#sessions.release(lease)
      }
    } finally {
      bias?.dispose()
      // Closing waits for the worker, which may be gone.
      for (const constraint of constraints ?? []) constraint.close().catch(() => {})
    }
  }

  async #constraintsOf(settings: GenerateSettings, count: number, longest: number): Promise<Constraint[] | undefined> {
    if (!settings.responseFormat) return undefined
    const made = Array.from({ length: count }, () => constraintOf(settings, this.network, this.tokenizer, longest))
    return (await Promise.all(made)) as Constraint[]
  }

  /** @throws ERR_HEDDLE_ARGUMENT when there is nothing to go on from, or too much */
  async #promptIds(place: string, prompt: Prompt, chat: boolean): Promise<Int32Array> {
    const ids = await this.#encode(place, prompt, chat)
    const { maxPositions } = this.network
    if (ids.length === 0 || ids.length > maxPositions)
      throw misuse(`${place}.prompt`, `1 to ${maxPositions} tokens, the model's maximum`, `${ids.length}`)
    return ids
  }

  #expectWords(place: string, tokens: Int32Array): Int32Array {
    const { vocabularySize } = this.network
    const stranger = tokens.find((token) => token < 0 || token >= vocabularySize)
    if (stranger !== undefined) throw misuse(`${place}.prompt`, `token ids below ${vocabularySize}`, `${stranger}`)
    return tokens
  }

  async #encode(place: string, prompt: Prompt, chat: boolean): Promise<Int32Array> {
    if (prompt instanceof Int32Array) return this.#expectWords(place, prompt)
    if (typeof prompt === 'string' && !chat) return this.tokenizer.encode(prompt)
    const messages = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt
    if (!Array.isArray(messages) || messages.length === 0)
      throw misuse(`${place}.prompt`, 'a string or an array of messages', JSON.stringify(prompt) ?? 'nothing')
    const text = await this.tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true })
    return this.tokenizer.encode(text, { addSpecialTokens: false })
  }
}
