/** Who makes the vectors of `/v1/embeddings`: an encoder of its own, or the served model with one of its adapters. */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Adapter } from '../../adapters/adapter.js'
import type { EncoderModel } from '../../encoder_model.js'
import { AdapterStore, type ReadAdapter } from '../../engine/adapter_store.js'
import type { Model } from '../../model.js'
import type { ServerContext } from '../context.js'
import { adapterOf } from './route.js'

/** An encoder that makes the vectors of requests with its name. */
export interface NamedEncoder {
  readonly name: string
  /** It stays the caller's. */
  readonly model: EncoderModel
}

/** Makes vectors of tokens. */
export interface Embedder {
  readonly tokenizer: Model['tokenizer']
  readonly vocabularySize: number
  /** Most tokens of a text. */
  readonly maxTokens: number
  embed(texts: readonly Int32Array[], signal: AbortSignal): Promise<Float32Array[]>
}

/** Adapters that are kept for vectors; the engine's own are in a form that only makes text. */
const keptAdapters = 4

export class Embedders {
  readonly #context: ServerContext
  readonly #encoder: NamedEncoder | undefined
  readonly #adapters: EmbeddingAdapters

  constructor(context: ServerContext, encoder: NamedEncoder | undefined) {
    this.#context = context
    this.#encoder = encoder
    this.#adapters = new EmbeddingAdapters(context.engine.model, context.folders.adapters)
  }

  /** @throws OpenAiError 404 */
  named(name: string): Embedder {
    if (name === this.#encoder?.name) return ofEncoder(this.#encoder.model)
    const adapter = adapterOf(this.#context, name)
    const { model } = this.#context.engine
    return {
      tokenizer: model.tokenizer,
      vocabularySize: model.network.vocabularySize,
      maxTokens: model.network.maxPositions,
      embed: (texts, signal) =>
        adapter === undefined ? model.embed(texts, { signal }) : this.#adapters.embed(adapter, texts, signal),
    }
  }

  dispose(): void {
    this.#adapters.dispose()
  }
}

const ofEncoder = (model: EncoderModel): Embedder => ({
  tokenizer: model.tokenizer,
  vocabularySize: model.tokenizer.vocabSize,
  maxTokens: model.settings.maxLength,
  embed: (texts, signal) => model.embed(texts, { signal }),
})

/** A place of the store is an adapter's: one row of one byte. */
class EmbeddingAdapters {
  readonly #model: Model
  readonly #folder: string
  readonly #store: AdapterStore
  readonly #places: (Adapter | undefined)[] = []
  /** When the files of each name were written. */
  readonly #written = new Map<string, number>()

  constructor(model: Model, folder: string) {
    this.#model = model
    this.#folder = folder
    this.#store = new AdapterStore({ rowBytes: 1, bytes: keptAdapters, read: (path) => this.#read(path) })
  }

  async embed(name: string, texts: readonly Int32Array[], signal: AbortSignal): Promise<Float32Array[]> {
    const folder = join(this.#folder, name)
    const { mtimeMs } = await stat(join(folder, 'adapter_config.json'))
    if (this.#written.get(name) !== mtimeMs) this.#store.add(name, folder)
    this.#written.set(name, mtimeMs)
    const lease = await this.#store.acquire(name, signal)
    try {
      return await this.#model.embed(texts, { adapter: this.#places[lease.first]!, signal })
    } finally {
      lease.release()
    }
  }

  async #read(folder: string): Promise<ReadAdapter> {
    const adapter = await Adapter.load(this.#model.network, folder, { baseModel: this.#model.source })
    let isPlaced = false
    return {
      rank: 1,
      write: async ({ first }) => {
        this.#places[first]?.dispose()
        this.#places[first] = adapter
        isPlaced = true
      },
      dispose: () => {
        if (!isPlaced) adapter.dispose()
      },
    }
  }

  dispose(): void {
    for (const adapter of this.#places) adapter?.dispose()
  }
}
