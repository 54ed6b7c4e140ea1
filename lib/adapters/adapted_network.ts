/** The adapters of one loaded network: what every kind of model shares. */
import { HeddleError } from '../errors.js'
import type { Network } from '../nn/network.js'
import type { ActiveAdapter } from './active.js'
import { Adapter, type AttachOptions } from './adapter.js'
import type { Parametrization } from './parametrization.js'

/** A network and the adapters attached to it. */
export class AdaptedNetwork {
  readonly #adapters: Adapter[] = []

  constructor(
    readonly network: Network,
    /** Folder, file or hub id that it came from. */
    readonly source: string,
  ) {}

  get adapters(): readonly Adapter[] {
    return this.#adapters
  }

  /** @throws ERR_HEDDLE_ARGUMENT when no module matches */
  async attach(method: Parametrization, options: AttachOptions = {}): Promise<Adapter> {
    return this.#keep(await Adapter.attach(this.network, method, { baseModel: this.source, ...options }))
  }

  /** @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT */
  async load(folder: string): Promise<Adapter> {
    return this.#keep(await Adapter.load(this.network, folder, { baseModel: this.source }))
  }

  /** @throws ERR_HEDDLE_ARGUMENT when the adapter cannot take part in a forward pass of this network */
  expectUsable(place: string, adapter: ActiveAdapter | undefined): void {
    if (adapter && adapter.model !== this.network) throw misuse(place, 'an adapter of this model', "another model's")
    if (adapter?.isMerged) throw misuse(place, 'none, as its weights are merged into the model', 'a merged adapter')
  }

  dispose(): void {
    for (const adapter of this.#adapters) adapter.dispose()
  }

  #keep(adapter: Adapter): Adapter {
    this.#adapters.push(adapter)
    return adapter
  }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
