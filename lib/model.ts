/** The front door: a pretrained model with its tokenizer and adapters, to be trained, asked, merged and saved. */
import { AdaptedNetwork } from './adapters/adapted_network.js'
import type { Adapter, AttachOptions } from './adapters/adapter.js'
import type { Parametrization } from './adapters/parametrization.js'
import { HeddleError } from './errors.js'
import { openCheckpoint } from './formats/checkpoint.js'
import type { HubOptions } from './formats/hub.js'
import { generateText } from './generate/generate.js'
import { type GenerateOptions, parseGenerateOptions } from './generate/options.js'
import { Session } from './generate/session.js'
import type { Precision } from './graph/ops/matmul.js'
import { buildNetwork } from './models/build.js'
import type { CausalLm } from './models/causal_lm.js'
import { decoders } from './models/registry.js'
import { disposeWeights, type SavedDType, saveNetwork } from './models/save.js'
import { type ChatMessage, Tokenizer } from './tokenize/tokenizer.js'

/** Options of {@link loadModel}. */
export interface LoadOptions extends HubOptions {
  /**
   * How frozen weights are stored and multiplied; default `f32`. `bf16` halves their memory. `stored` is for generation
   * from a quantised `.gguf`: single tokens are computed from its own blocks, long prompts in bf16.
   */
  readonly precision?: Precision
}

export type { GenerateOptions } from './generate/options.js'

/** Idle caches kept for the next text, one per text that was made at the same time. */
const idleSessions = 4

/**
 * Loads a model: a folder in Hugging Face layout, a `.gguf` file, or a Hugging Face id. Weights are memory-mapped and
 * decoded when first used.
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK
 */
export async function loadModel(source: string, options: LoadOptions = {}): Promise<Model> {
  const { precision = 'f32', ...hub } = options
  if (precision !== 'f32' && precision !== 'bf16' && precision !== 'stored')
    throw misuse('loadModel.precision', '"f32", "bf16" or "stored"', JSON.stringify(precision))
  const checkpoint = await openCheckpoint(source, hub)
  try {
    const network = buildNetwork(decoders, checkpoint)
    return new Model(checkpoint.modelId, network, await Tokenizer.load(checkpoint.tokenizerSource), precision)
  } finally {
    checkpoint.close()
  }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })

interface SessionEntry {
  readonly capacity: number
  readonly adapter: Adapter | undefined
  readonly session: Session
}

/** A causal language model; made by {@link loadModel}. */
export class Model {
  readonly #adapted: AdaptedNetwork
  readonly #idle: SessionEntry[] = []
  #disposed = false

  constructor(
    /** Folder, file or hub id that the model came from. */
    readonly source: string,
    readonly network: CausalLm,
    readonly tokenizer: Tokenizer,
    readonly precision: Precision,
  ) {
    this.#adapted = new AdaptedNetwork(network, source)
  }

  /** Adapters attached or loaded so far. */
  get adapters(): readonly Adapter[] {
    return this.#adapted.adapters
  }

  /** Attaches a fresh adapter, e.g. `lora({ r: 16 })`. @throws ERR_HEDDLE_ARGUMENT when no module matches */
  attach(method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    return this.#adapted.attach(method, options)
  }

  /** Attaches an adapter from a PEFT folder. @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT */
  loadAdapter(folder: string): Promise<Adapter> {
    return this.#adapted.load(folder)
  }

  /** Yields text as it is made. @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED */
  async *generate(
    prompt: string | readonly ChatMessage[],
    options: GenerateOptions = {},
  ): AsyncGenerator<string, void, void> {
    const settings = parseGenerateOptions(options)
    const { adapter, chat, maxTokens } = settings
    this.#adapted.expectUsable('generate.adapter', adapter)
    const ids = await this.#promptIds(prompt, chat ?? this.tokenizer.hasChatTemplate)
    const entry = await this.#session(ids.length + maxTokens, adapter)
    try {
      yield* generateText(entry.session, this.tokenizer, ids, settings)
    } finally {
      this.#release(entry)
    }
  }

  /** Merges an adapter into the weights; {@link unmerge} takes it out again exactly. */
  async merge(adapter: Adapter): Promise<void> {
    await adapter.merge()
    this.#dropSessions()
  }

  /** Undoes {@link merge}. */
  unmerge(adapter: Adapter): void {
    this.#dropSessions()
    adapter.unmerge()
  }

  /**
   * Writes the model with its current weights as a Hugging Face folder: config.json, model.safetensors, tokenizer.
   * @param dtype element type in the file; default `f32`
   * @throws ERR_HEDDLE_IO
   */
  async save(folder: string, { dtype = 'f32' }: { readonly dtype?: SavedDType } = {}): Promise<void> {
    await saveNetwork(this.network, this.tokenizer, folder, dtype)
  }

  /** Frees weights, caches and adapters, and ends the tokenizer's worker. */
  async dispose(): Promise<void> {
    this.#disposed = true
    this.#dropSessions()
    this.#adapted.dispose()
    await disposeWeights(this.network)
    await this.tokenizer.close()
  }

  /** @throws ERR_HEDDLE_ARGUMENT when there is nothing to go on from, or too much */
  async #promptIds(prompt: string | readonly ChatMessage[], chat: boolean): Promise<Int32Array> {
    const ids = await this.#encode(prompt, chat)
    const { maxPositions } = this.network
    if (ids.length === 0 || ids.length > maxPositions)
      throw misuse('generate.prompt', `1 to ${maxPositions} tokens, the model's maximum`, `${ids.length}`)
    return ids
  }

  async #encode(prompt: string | readonly ChatMessage[], chat: boolean): Promise<Int32Array> {
    if (typeof prompt === 'string' && !chat) return this.tokenizer.encode(prompt)
    const messages = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt
    if (!Array.isArray(messages) || messages.length === 0)
      throw misuse('generate.prompt', 'a string or an array of messages', JSON.stringify(prompt) ?? 'nothing')
    const text = await this.tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true })
    return this.tokenizer.encode(text, { addSpecialTokens: false })
  }

  /** An idle session for texts of this length, or a new one. */
  async #session(tokens: number, adapter: Adapter | undefined): Promise<SessionEntry> {
    const capacity = Math.min(this.network.maxPositions, 2 ** Math.ceil(Math.log2(Math.max(256, tokens))))
    this.#dropSessions(({ session }) => !session.isCurrent)
    const index = this.#idle.findIndex((entry) => entry.capacity === capacity && entry.adapter === adapter)
    if (index >= 0) return this.#idle.splice(index, 1)[0]!
    const forward = { precision: this.precision, hook: adapter?.hook }
    return { capacity, adapter, session: await Session.create(this.network, forward, capacity) }
  }

  #release(entry: SessionEntry): void {
    if (this.#disposed) entry.session.dispose()
    else this.#idle.push(entry)
    if (this.#idle.length > idleSessions) this.#idle.shift()?.session.dispose()
  }

  #dropSessions(which: (entry: SessionEntry) => boolean = () => true): void {
    const dropped = this.#idle.filter(which)
    for (const entry of dropped) {
      this.#idle.splice(this.#idle.indexOf(entry), 1)
      entry.session.dispose()
    }
  }
}
