/** What every kind of loaded model shares: a network with its adapters, merged, written and let go. */
import type { ActiveAdapter } from './adapters/active.js'
import { Adapter, type AttachOptions } from './adapters/adapter.js'
import type { Parametrization } from './adapters/parametrization.js'
import { HeddleError } from './errors.js'
import type { Precision } from './graph/ops/matmul.js'
import { disposeWeights, type SaveModelOptions, saveNetwork } from './models/save.js'
import type { Network } from './nn/network.js'
import type { Tokenizer } from './tokenize/tokenizer.js'

/** What an {@link AdaptedModel} is made of. */
export interface ModelParts<N extends Network> {
  readonly source: string
  readonly network: N
  readonly precision: Precision
  readonly tokenizer?: Tokenizer | undefined
}

/** A network and the adapters attached to it. */
export abstract class AdaptedModel<N extends Network = Network> {
  /** Folder, file or hub id that the model came from. */
  readonly source: string
  readonly network: N
  /** How frozen weights are stored and multiplied. */
  readonly precision: Precision
  readonly #tokenizer: Tokenizer | undefined
  readonly #adapters: Adapter[] = []

  protected constructor({ source, network, precision, tokenizer }: ModelParts<N>) {
    this.source = source
    this.network = network
    this.precision = precision
    this.#tokenizer = tokenizer
  }

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

  /** Merges an adapter into the weights; {@link unmerge} takes it out again exactly. */
  async merge(adapter: Adapter): Promise<void> {
    await adapter.merge()
    this.forget()
  }

  /** Undoes {@link merge}. */
  unmerge(adapter: Adapter): void {
    this.forget()
    adapter.unmerge()
  }

  /**
   * Writes the model with its current weights as a Hugging Face folder: config.json, model.safetensors, and the tokenizer
   * of a model of texts.
   * @throws ERR_HEDDLE_IO
   */
  async save(folder: string, options: SaveModelOptions = {}): Promise<void> {
    await saveNetwork(this.network, this.#tokenizer, folder, options)
  }

  /** Frees weights, what was compiled for them, and adapters, and ends the tokenizer's worker. */
  async dispose(): Promise<void> {
    this.forget()
    for (const adapter of this.#adapters) adapter.dispose()
    await disposeWeights(this.network)
    await this.#tokenizer?.close()
  }

  /** Lets go of what was compiled or computed with the current weights. */
  protected abstract forget(): void

  /** @throws ERR_HEDDLE_ARGUMENT when the adapter cannot take part in a forward pass of this network */
  protected expectUsable(place: string, adapter: ActiveAdapter | undefined): void {
    if (adapter && adapter.model !== this.network) throw misuse(place, 'an adapter of this model', "another model's")
    if (adapter?.isMerged) throw misuse(place, 'none, as its weights are merged into the model', 'a merged adapter')
  }

  #keep(adapter: Adapter): Adapter {
    this.#adapters.push(adapter)
    return adapter
  }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
