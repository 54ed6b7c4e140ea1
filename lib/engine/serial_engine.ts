/** The simplest engine: one request after the other. */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Adapter } from '../adapters/adapter.js'
import { HeddleError } from '../errors.js'
import type { GeneratedToken, Model, Prompt } from '../model.js'
import type { Engine } from './engine.js'
import type { EngineListener, EngineState, RequestEnd } from './events.js'
import type { EngineRequestOptions, EngineSettings } from './options.js'

/** Folders with an adapter_config.json below `folder`, by name. */
export async function adaptersIn(folder: string | undefined): Promise<Map<string, string>> {
  if (folder === undefined) return new Map()
  const found = new Map<string, string>()
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    if (!entry.isDirectory()) continue
    const path = join(folder, entry.name)
    if ((await readdir(path)).includes('adapter_config.json')) found.set(entry.name, path)
  }
  return found
}

export class SerialEngine implements Engine {
  readonly #folders: Map<string, string>
  readonly #loaded = new Map<string, Adapter>()
  readonly #listeners = new Set<EngineListener>()
  readonly #maxQueue: number
  readonly #memory: { readonly cache: number; readonly adapters: number }
  #turn: Promise<unknown> = Promise.resolve()
  #waiting = 0
  #running = 0
  #isClosed = false
  #stop = new AbortController()

  constructor(
    readonly model: Model,
    { maxQueue, memory }: EngineSettings,
    folders: Map<string, string>,
  ) {
    this.#folders = folders
    this.#maxQueue = maxQueue
    this.#memory = memory
  }

  get adapterNames(): readonly string[] {
    return [...this.#folders.keys()]
  }

  async *generate(prompt: Prompt, options: EngineRequestOptions = {}): AsyncGenerator<string, void, void> {
    for await (const { text } of this.generateTokens(prompt, options)) if (text) yield text
  }

  async *generateTokens(
    prompt: Prompt,
    { adapter: name, signal, ...options }: EngineRequestOptions = {},
  ): AsyncGenerator<GeneratedToken, void, void> {
    const started = performance.now()
    const tokens = await this.promptTokens(prompt, options)
    let reason: RequestEnd = 'failed'
    let count = 0
    const done = await this.#enter(name)
    try {
      const adapter = name === undefined ? undefined : await this.#adapter(name)
      const either = AbortSignal.any([this.#stop.signal, ...(signal ? [signal] : [])])
      for await (const token of this.model.generateTokens(tokens, { ...options, adapter, signal: either })) {
        count += 1
        if (count === 1) this.#tell('onFirstToken', { adapter: name, seconds: (performance.now() - started) / 1000 })
        reason = token.finishReason ?? 'aborted'
        yield token
      }
    } catch (error) {
      if (error instanceof HeddleError && error.code === 'ERR_HEDDLE_ABORTED') reason = 'aborted'
      throw error
    } finally {
      done()
      this.#tell('onEnd', {
        adapter: name,
        reason,
        promptTokens: tokens.length,
        cachedTokens: 0,
        newTokens: count,
        seconds: (performance.now() - started) / 1000,
      })
    }
  }

  async promptTokens(prompt: Prompt, { chat }: Pick<EngineRequestOptions, 'chat'> = {}): Promise<Int32Array> {
    return await this.model.promptTokens(prompt, chat === undefined ? {} : { chat })
  }

  async addAdapter(name: string, folder: string): Promise<void> {
    if (!/^[\w-][\w.-]*$/.test(name)) throw misuse('addAdapter.name', 'a plain file name', name)
    this.removeAdapter(name)
    this.#folders.set(name, folder)
  }

  removeAdapter(name: string): void {
    this.#folders.delete(name)
    this.#loaded.delete(name)
  }

  state(): EngineState {
    const { cache, adapters } = this.#memory
    const loaded = [...this.#loaded.keys()]
    return {
      isClosed: this.#isClosed,
      running: this.#running,
      waiting: this.#waiting,
      maxBatch: 1,
      cache: { usedBytes: 0, bytes: cache },
      adapters: { usedBytes: 0, bytes: adapters, loaded },
    }
  }

  watch(listener: EngineListener): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async close(signal?: AbortSignal): Promise<void> {
    this.#isClosed = true
    signal?.addEventListener('abort', () => this.#stop.abort())
    if (signal?.aborted) this.#stop.abort()
    await this.#turn
  }

  /** Waits for this request's turn. */
  async #enter(name: string | undefined): Promise<() => void> {
    if (this.#isClosed) throw misuse('generate', 'an engine that is open', 'a closed one')
    if (name !== undefined && !this.#folders.has(name))
      throw misuse('generate.adapter', `one of ${this.adapterNames.join(', ') || 'no adapters'}`, name)
    if (this.#waiting >= this.#maxQueue)
      throw new HeddleError('ERR_HEDDLE_BUSY', {
        place: 'generate',
        expected: `at most ${this.#maxQueue} waiting requests`,
        got: 'one more',
        hint: 'Try again in a moment.',
      })
    this.#waiting += 1
    const before = this.#turn
    let done = (): void => {}
    this.#turn = new Promise<void>((resolve) => {
      done = () => {
        this.#running -= 1
        resolve()
      }
    })
    await before
    this.#waiting -= 1
    this.#running += 1
    return done
  }

  async #adapter(name: string): Promise<Adapter> {
    const known = this.#loaded.get(name)
    this.#tell('onAdapter', { name, isLoaded: known !== undefined })
    if (known) return known
    const adapter = await this.model.loadAdapter(this.#folders.get(name)!)
    this.#loaded.set(name, adapter)
    return adapter
  }

  #tell<K extends keyof EngineListener>(what: K, event: Parameters<NonNullable<EngineListener[K]>>[0]): void {
    for (const listener of this.#listeners) (listener[what] as ((event: unknown) => void) | undefined)?.(event)
  }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
