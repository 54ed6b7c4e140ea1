/** The front door: a pretrained model with its tokenizer and adapters, to be trained, asked, merged and saved. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { Adapter, type AttachOptions } from './adapters/adapter.js'
import type { Parametrization } from './adapters/parametrization.js'
import { HeddleError } from './errors.js'
import { writeJsonAtomic } from './formats/atomic_file.js'
import { type Checkpoint, openCheckpoint } from './formats/checkpoint.js'
import type { HubOptions } from './formats/hub.js'
import { generateText } from './generate/generate.js'
import { type GenerateOptions, parseGenerateOptions } from './generate/options.js'
import { Session } from './generate/session.js'
import type { Precision } from './graph/ops/matmul.js'
import { pause } from './graph/pause.js'
import type { CausalLm, WeightSource } from './models/causal_lm.js'
import { architectureOf } from './models/registry.js'
import { addon } from './native.js'
import { Tensor } from './tensor/tensor.js'
import { type ChatMessage, Tokenizer } from './tokenize/tokenizer.js'

/** Options of {@link loadModel}. */
export interface LoadOptions extends HubOptions {
  /** How frozen weights are stored and multiplied; default `f32`. `bf16` halves their memory. */
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
  if (precision !== 'f32' && precision !== 'bf16')
    throw misuse('loadModel.precision', '"f32" or "bf16"', JSON.stringify(precision))
  const checkpoint = await openCheckpoint(source, hub)
  try {
    const network = networkOf(checkpoint)
    return new Model(checkpoint.modelId, network, await Tokenizer.load(checkpoint.tokenizerSource), precision)
  } finally {
    checkpoint.close()
  }
}

/** Derived values that some checkpoints store beside their parameters. */
const isDerived = (name: string): boolean => name.endsWith('.rotary_emb.inv_freq')

function networkOf({ config, path, tensors }: Checkpoint): CausalLm {
  const used = new Set<string>()
  const weight: WeightSource = (name) => {
    const stored = tensors.get(name)
    if (!stored) throw misfit(path, `a tensor "${name}" as config.json asks for`, 'none')
    used.add(name)
    return new Tensor(stored.load('f32'))
  }
  const network = architectureOf(config, path).build(config, weight, path)
  if (network.embeddingTied) used.add(`${network.outputSite.path}.weight`)
  // A tensor that is left over would be a part of the model that is silently not computed.
  const unused = [...tensors.keys()].find((name) => !used.has(name) && !isDerived(name))
  if (unused !== undefined) throw misfit(path, 'no tensors but those that config.json asks for', `"${unused}"`)
  return network
}

const misfit = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })

interface SessionEntry {
  readonly capacity: number
  readonly adapter: Adapter | undefined
  readonly session: Session
}

/** A causal language model; made by {@link loadModel}. */
export class Model {
  readonly #adapters: Adapter[] = []
  readonly #idle: SessionEntry[] = []
  #disposed = false

  constructor(
    /** Folder, file or hub id that the model came from. */
    readonly source: string,
    readonly network: CausalLm,
    readonly tokenizer: Tokenizer,
    readonly precision: Precision,
  ) {}

  /** Adapters attached or loaded so far. */
  get adapters(): readonly Adapter[] {
    return this.#adapters
  }

  /** Attaches a fresh adapter, e.g. `lora({ r: 16 })`. @throws ERR_HEDDLE_ARGUMENT when no module matches */
  async attach(method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    return this.#keep(await Adapter.attach(this.network, method, { baseModel: this.source, ...options }))
  }

  /** Attaches an adapter from a PEFT folder. @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT */
  async loadAdapter(folder: string): Promise<Adapter> {
    return this.#keep(await Adapter.load(this.network, folder, { baseModel: this.source }))
  }

  /** Yields text as it is made. @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED */
  async *generate(
    prompt: string | readonly ChatMessage[],
    options: GenerateOptions = {},
  ): AsyncGenerator<string, void, void> {
    const settings = parseGenerateOptions(options)
    const { adapter, chat, maxTokens } = settings
    if (adapter && adapter.model !== this.network)
      throw misuse('generate.adapter', 'an adapter of this model', "another model's")
    if (adapter?.isMerged)
      throw misuse('generate.adapter', 'none, as its weights are merged into the model', 'a merged adapter')
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
  async save(folder: string, { dtype = 'f32' }: { readonly dtype?: 'f32' | 'bf16' | 'f16' } = {}): Promise<void> {
    await mkdir(folder, { recursive: true })
    const entries = this.network.weights().map(({ name, tensor }) => ({ name, tensor: tensor.native, dtype }))
    await addon.writeSafetensors(join(folder, 'model.safetensors'), entries, { format: 'pt' })
    await this.tokenizer.save(folder)
    const torchName = { f32: 'float32', bf16: 'bfloat16', f16: 'float16' }[dtype]
    // Transformers 5 reads `dtype`, earlier ones `torch_dtype`.
    const config = { ...this.network.config, dtype: torchName, torch_dtype: torchName }
    await writeJsonAtomic(join(folder, 'config.json'), config)
  }

  /** Frees weights, caches and adapters, and ends the tokenizer's worker. */
  async dispose(): Promise<void> {
    this.#disposed = true
    this.#dropSessions()
    for (const adapter of this.#adapters) adapter.dispose()
    for (const { tensor } of this.network.weights()) {
      tensor.dispose()
      await pause()
    }
    await this.tokenizer.close()
  }

  #keep(adapter: Adapter): Adapter {
    this.#adapters.push(adapter)
    return adapter
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
