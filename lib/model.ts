/** The front door: a pretrained model with its tokenizer and adapters, to be trained, asked, merged and saved. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { Adapter, type AttachOptions } from './adapters/adapter.js'
import type { Parametrization } from './adapters/parametrization.js'
import { loadAdapter, saveAdapter } from './adapters/peft_folder.js'
import { HeddleError } from './errors.js'
import { writeJsonAtomic } from './formats/atomic_file.js'
import { openCheckpoint } from './formats/checkpoint.js'
import type { HubOptions } from './formats/hub.js'
import { generateText } from './generate/generate.js'
import type { SamplingOptions } from './generate/options.js'
import { Session } from './generate/session.js'
import type { Precision } from './graph/ops/matmul.js'
import type { CausalLm } from './models/causal_lm.js'
import { llama } from './models/llama.js'
import { addon } from './native.js'
import { Tensor } from './tensor/tensor.js'
import { type ChatMessage, Tokenizer } from './tokenize/tokenizer.js'

export interface LoadOptions extends HubOptions {
  /** How frozen weights are stored and multiplied; default `f32`. `bf16` halves their memory. */
  readonly precision?: Precision
}

export interface GenerateOptions extends SamplingOptions {
  /** Adapter to use; default: none. */
  readonly adapter?: Adapter | undefined
  /**
   * Wrap a plain string into the model's chat template as the user's message. Default: true when the model has one.
   */
  readonly chat?: boolean
  readonly signal?: AbortSignal | undefined
}

/**
 * Loads a model: a folder in Hugging Face layout, a `.gguf` file, or a Hugging Face id. Weights are memory-mapped and
 * decoded when first used.
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK
 */
export async function loadModel(source: string, options: LoadOptions = {}): Promise<Model> {
  const { precision = 'f32', ...hub } = options
  const checkpoint = await openCheckpoint(source, hub)
  try {
    const network = llama(checkpoint.config, (name) => {
      const stored = checkpoint.tensors.get(name)
      if (stored) return new Tensor(stored.load('f32'))
      throw new HeddleError('ERR_HEDDLE_FORMAT', {
        place: checkpoint.path,
        expected: `a tensor "${name}" as config.json asks for`,
        got: 'none',
      })
    })
    return new Model(checkpoint.modelId, network, await Tokenizer.load(checkpoint.tokenizerSource), precision)
  } finally {
    checkpoint.close()
  }
}

/** A causal language model; made by {@link loadModel}. */
export class Model {
  readonly #adapters: Adapter[] = []
  readonly #idle: { readonly key: string; readonly session: Session }[] = []

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
    return this.#keep(await Adapter.attach(this.network, method, options))
  }

  /** Attaches an adapter from a PEFT folder. @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT */
  async loadAdapter(folder: string): Promise<Adapter> {
    return this.#keep(await loadAdapter(this.network, folder))
  }

  /** Writes an adapter as a PEFT folder. @throws ERR_HEDDLE_IO */
  async saveAdapter(adapter: Adapter, folder: string): Promise<void> {
    await saveAdapter(adapter, folder, { baseModel: this.source })
  }

  /** Yields text as it is made. @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED */
  async *generate(
    prompt: string | readonly ChatMessage[],
    options: GenerateOptions = {},
  ): AsyncGenerator<string, void, void> {
    const { adapter, chat, ...request } = options
    const ids = await this.#promptIds(prompt, chat ?? this.tokenizer.hasChatTemplate)
    const { key, session } = this.#session(ids.length + (request.maxTokens ?? 256), adapter)
    try {
      yield* generateText(session, this.tokenizer, { ...request, prompt: ids })
    } finally {
      this.#idle.push({ key, session })
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
    await writeJsonAtomic(join(folder, 'config.json'), {
      architectures: ['LlamaForCausalLM'],
      model_type: 'llama',
      ...this.network.config,
      torch_dtype: torchName,
    })
  }

  /** Frees weights, caches and adapters, and ends the tokenizer's worker. */
  async dispose(): Promise<void> {
    this.#dropSessions()
    for (const adapter of this.#adapters) adapter.dispose()
    for (const { tensor } of this.network.weights()) tensor.dispose()
    await this.tokenizer.close()
  }

  #keep(adapter: Adapter): Adapter {
    this.#adapters.push(adapter)
    return adapter
  }

  async #promptIds(prompt: string | readonly ChatMessage[], chat: boolean): Promise<Int32Array> {
    if (typeof prompt === 'string' && !chat) return this.tokenizer.encode(prompt)
    const messages = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt
    const text = await this.tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true })
    return this.tokenizer.encode(text, { addSpecialTokens: false })
  }

  /** An idle session that is large enough, or a new one. */
  #session(tokens: number, adapter: Adapter | undefined): { readonly key: string; readonly session: Session } {
    const { maxPositions } = this.network
    const wanted = Math.min(maxPositions, 2 ** Math.ceil(Math.log2(Math.max(256, tokens))))
    const key = `${wanted}:${adapter ? this.#adapters.indexOf(adapter) : 'base'}`
    const index = this.#idle.findIndex((entry) => entry.key === key)
    if (index >= 0) return this.#idle.splice(index, 1)[0]!
    const forward = { precision: this.precision, hook: adapter?.hook }
    return { key, session: new Session(this.network, forward, wanted) }
  }

  #dropSessions(): void {
    for (const { session } of this.#idle.splice(0)) session.dispose()
  }
}
