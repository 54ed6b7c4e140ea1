/**
 * The engine: takes requests in, runs one step after the other over all that are being made, and hands tokens out. Who
 * takes part in a step is the scheduler's business, what a step computes the step runner's.
 */
import { HeddleError, throwIfAborted } from '../errors.js'
import { type GenerateSettings, parseTokenOptions } from '../generate/options.js'
import { type Drawn, weightsOf } from '../generate/session.js'
import { biasOf, constraintOf, tokenLimit } from '../generate/text_options.js'
import type { OperatorTime } from '../graph/program.js'
import type { GeneratedToken, Model, Prompt } from '../model.js'
import type { Tensor } from '../tensor/tensor.js'
import { AdapterPool, rowBytes } from './adapter_pool.js'
import { AdapterStore, adaptersIn, checkName, expectAdapter, type Lease } from './adapter_store.js'
import type { Engine } from './engine.js'
import type { EngineListener, EngineState, EngineStep, RequestEnd } from './events.js'
import type { EngineRequestOptions, EngineSettings } from './options.js'
import { PageTable } from './page_table.js'
import { PagedCache, type PagedCacheOptions, pageBytes } from './paged_cache.js'
import { EngineRequest, type RequestParts } from './request.js'
import { type Feed, Scheduler } from './scheduler.js'
import { type StepDraw, type StepOptions, StepRunner } from './step.js'
import { TextPages } from './text_pages.js'

const pageTokens = 16

/** A part of a step, and how its text goes on. */
interface Planned {
  readonly feed: Feed<EngineRequest>
  readonly draw: StepDraw | undefined
}

export class BatchingEngine implements Engine {
  readonly #settings: EngineSettings
  readonly #pageBytes: number
  readonly #table: PageTable
  readonly #cache: PagedCache
  readonly #pool: AdapterPool
  readonly #adapters: AdapterStore
  readonly #scheduler: Scheduler<EngineRequest>
  readonly #stepOptions: StepOptions
  readonly #listeners = new Set<EngineListener>()
  /** Requests that are not with the scheduler yet: each ends there with its caller's signal, or with the engine. */
  readonly #entering = new Set<AbortController>()
  /** Called when the engine has nothing to do any more. */
  readonly #onIdle: (() => void)[] = []
  #runner: StepRunner
  /** The weights that the runner's programs and the cache's contents are of. */
  #weights: readonly Tensor[]
  #weightVersions = 0
  #arrivals = 0
  /** The weights have changed since the last step. */
  #isStale = false
  /** The last step's tokens on their way to the callers. */
  #telling: Promise<void> = Promise.resolve()
  #isTelling = false
  #isWorking = false
  #isClosed = false

  private constructor(
    readonly model: Model,
    settings: EngineSettings,
    layout: PagedCacheOptions,
    cache: PagedCache,
    pool: AdapterPool,
  ) {
    const { network, precision } = model
    this.#settings = settings
    this.#pageBytes = pageBytes(network.keyValues, layout)
    this.#table = new PageTable(layout.pages, layout.pageTokens)
    this.#cache = cache
    this.#pool = pool
    this.#adapters = new AdapterStore({
      rowBytes: rowBytes(network, layout),
      bytes: settings.memory.adapters,
      read: (folder) => pool.read(folder),
      onEvict: (name) => this.#tell('onEvict', { name }),
    })
    this.#scheduler = new Scheduler(settings)
    const { maxBatch, stepTokens } = settings
    const textPages = Math.min(layout.pages, Math.ceil(network.maxPositions / pageTokens))
    const forward = { precision, training: false }
    this.#stepOptions = { network, forward, cache, adapters: pool, maxBatch, stepTokens, textPages }
    this.#runner = new StepRunner(this.#stepOptions)
    this.#weights = weightsOf(network)
    this.#weightVersions = versionsOf(this.#weights)
  }

  /** @throws ERR_HEDDLE_ARGUMENT for a network that cannot be served, and when no page fits into the cache's memory */
  static async create(model: Model, settings: EngineSettings): Promise<BatchingEngine> {
    const { network, precision } = model
    if (network.lengthDependence?.renewsKeys)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: 'createEngine',
        expected: 'a network whose keys stay as they are while a text grows',
        got: `${network.architecture} with longrope scaling, which turns all keys anew at some length`,
        hint: 'Use model.generate, one text after the other.',
      })
    const format = { pageTokens, dtype: precision === 'f32' ? 'f32' : 'bf16' } as const
    const bytes = pageBytes(network.keyValues, format)
    const pages = Math.floor(settings.memory.cache / bytes)
    if (pages < 1) throw misuse('createEngine.memory.cache', `at least ${bytes} bytes, one page`, settings.memory.cache)
    const layout = { ...format, pages }
    const found = await adaptersIn(settings.adapters)
    const rows = Math.max(1, Math.floor(settings.memory.adapters / rowBytes(network, format)))
    const pool = await AdapterPool.create(network, { rows, dtype: format.dtype })
    const cache = await PagedCache.create(network.keyValues, layout)
    const engine = new BatchingEngine(model, settings, layout, cache, pool)
    for (const [name, folder] of found) engine.#adapters.add(name, folder)
    return engine
  }

  get adapterNames(): readonly string[] {
    return this.#adapters.names
  }

  async *generate(prompt: Prompt, options: EngineRequestOptions = {}): AsyncGenerator<string, void, void> {
    for await (const { text } of this.generateTokens(prompt, options)) if (text) yield text
  }

  async *generateTokens(
    prompt: Prompt,
    options: EngineRequestOptions = {},
  ): AsyncGenerator<GeneratedToken, void, void> {
    const request = await this.#enter(prompt, options)
    try {
      for (let token = await request.next(); token; token = await request.next()) yield token
    } finally {
      this.#abort(request, undefined)
    }
  }

  promptTokens(prompt: Prompt, { chat }: Pick<EngineRequestOptions, 'chat'> = {}): Promise<Int32Array> {
    return this.model.promptTokens(prompt, chat === undefined ? {} : { chat })
  }

  async addAdapter(name: string, folder: string): Promise<void> {
    checkName(name)
    await expectAdapter(folder)
    this.#adapters.add(name, folder)
  }

  removeAdapter(name: string): void {
    this.#adapters.remove(name)
  }

  state(): EngineState {
    const { memory, maxBatch } = this.#settings
    const { usedBytes, loaded, mostRank } = this.#adapters
    return {
      isClosed: this.#isClosed,
      running: this.#scheduler.running,
      waiting: this.#waiting,
      maxBatch,
      // The last token of a text is never fed.
      maxTokens: Math.min(this.model.network.maxPositions, this.#room) + 1,
      cache: { usedBytes: this.#table.used * this.#pageBytes, bytes: memory.cache },
      adapters: { usedBytes, bytes: memory.adapters, loaded, mostRank },
    }
  }

  watch(listener: EngineListener): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Time per operator so far. */
  profile(): readonly OperatorTime[] {
    return this.#runner.profile()
  }

  async close(signal?: AbortSignal): Promise<void> {
    this.#isClosed = true
    const stop = (): void => {
      for (const entering of this.#entering) entering.abort(signal?.reason)
      for (const request of [...this.#scheduler.tasks]) this.#abort(request, abortedBy(signal))
    }
    signal?.addEventListener('abort', stop, { once: true })
    if (signal?.aborted) stop()
    if (!this.#isIdle) await new Promise<void>((resolve) => this.#onIdle.push(resolve))
    signal?.removeEventListener('abort', stop)
    this.#runner.dispose()
    this.#cache.dispose()
    this.#pool.dispose()
  }

  get #waiting(): number {
    return this.#entering.size + this.#scheduler.waiting
  }

  get #isIdle(): boolean {
    return !this.#isWorking && this.#waiting + this.#scheduler.running === 0
  }

  /** Checks a request, prepares what it needs, and gives it to the scheduler. */
  async #enter(prompt: Prompt, { adapter, ...options }: EngineRequestOptions): Promise<EngineRequest> {
    const started = performance.now()
    const settings = parseTokenOptions(options)
    const { signal } = settings
    this.#expectPlace(adapter)
    throwIfAborted(signal, 'generate')
    const entering = new AbortController()
    const leave = (): void => entering.abort(signal?.reason)
    signal?.addEventListener('abort', leave, { once: true })
    this.#entering.add(entering)
    try {
      const tokens = await this.promptTokens(prompt, options)
      const request = await this.#prepared(tokens, { adapter, settings, started }, entering.signal)
      this.#admit(request)
      if (entering.signal.aborted) this.#abort(request, abortedBy(entering.signal))
      else this.#work()
      return request
    } finally {
      signal?.removeEventListener('abort', leave)
      this.#entering.delete(entering)
      this.#settle()
    }
  }

  /** With its adapter in memory and its form known. */
  async #prepared(
    prompt: Int32Array,
    { adapter, ...given }: Pick<RequestParts, 'settings' | 'started'> & { readonly adapter: string | undefined },
    signal: AbortSignal,
  ): Promise<EngineRequest> {
    const { network, tokenizer } = this.model
    const { settings } = given
    const bias = biasOf(settings, network)
    this.#expectRoom(prompt.length, settings)
    this.#isStale ||= !this.#hasSameWeights()
    const lease = await this.#lease(adapter, signal)
    try {
      const constraint = await constraintOf(settings, network, tokenizer, prompt.length)
      const root = `${lease?.version ?? 'model'}/${network.lengthDependence?.regime(prompt.length) ?? 0}`
      const pages = new TextPages(this.#table)
      const parts = { ...given, adapter: lease, prompt, constraint, bias, arrival: this.#arrivals++, root, pages }
      return new EngineRequest(parts, network, tokenizer)
    } catch (error) {
      lease?.release()
      throw error
    }
  }

  /** The adapter's rows, once it is in memory. */
  async #lease(name: string | undefined, signal: AbortSignal): Promise<Lease | undefined> {
    if (name === undefined) return undefined
    this.#tell('onAdapter', { name, isLoaded: this.#adapters.has(name) })
    return await this.#adapters.acquire(name, signal)
  }

  /** @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_BUSY */
  #expectPlace(adapter: string | undefined): void {
    if (this.#isClosed) throw misuse('generate', 'an engine that is open', 'a closed one')
    if (adapter !== undefined && !this.adapterNames.includes(adapter))
      throw misuse('generate.adapter', `one of ${this.adapterNames.join(', ') || 'no adapters'}`, adapter)
    const { maxQueue, maxBatch } = this.#settings
    if (this.#waiting >= maxQueue + Math.max(0, maxBatch - this.#scheduler.running))
      throw new HeddleError('ERR_HEDDLE_BUSY', {
        place: 'generate',
        expected: `at most ${maxQueue} waiting requests`,
        got: 'one more',
        hint: 'Try again in a moment.',
      })
  }

  /** @throws ERR_HEDDLE_OOM for a text that would not fit even if it were the only one */
  #expectRoom(promptLength: number, settings: GenerateSettings): void {
    // The last token of a text is never fed.
    const most = promptLength + tokenLimit(settings, this.model.network, promptLength) - 1
    if (most > this.#room)
      throw new HeddleError('ERR_HEDDLE_OOM', {
        place: 'generate',
        expected: `a prompt and maxTokens of together at most ${this.#room + 1} tokens, which the cache has room for`,
        got: `${promptLength} and ${most - promptLength + 1}`,
        hint: 'Lower maxTokens, or raise memory.cache.',
      })
  }

  /** Tokens that the cache has room for. */
  get #room(): number {
    return this.#table.pages * pageTokens
  }

  #admit(request: EngineRequest): void {
    const { signal } = request.parts.settings
    const onAbort = (): void => this.#abort(request, abortedBy(signal))
    signal?.addEventListener('abort', onAbort, { once: true })
    request.onEnd = () => {
      signal?.removeEventListener('abort', onAbort)
      request.parts.adapter?.release()
      // Closing waits for the worker, which may be gone.
      request.parts.constraint?.close().catch(() => {})
    }
    request.onRead = () => {
      this.#scheduler.wake(request)
      this.#work()
    }
    this.#scheduler.add(request)
  }

  /** Runs steps until no text wants one. */
  async #work(): Promise<void> {
    if (this.#isWorking) return
    this.#isWorking = true
    try {
      for (;;) {
        if (this.#isStale) this.#renew()
        const feeds = this.#scheduler.plan()
        if (feeds.length > 0) await this.#step(feeds)
        // Telling may have ended a rest.
        else if (this.#isTelling) await this.#telling
        else break
      }
    } catch (error) {
      for (const request of [...this.#scheduler.tasks]) this.#end(request, 'failed', error)
    }
    this.#isWorking = false
    this.#settle()
  }

  async #step(feeds: readonly Feed<EngineRequest>[]): Promise<void> {
    const started = performance.now()
    const planned = await this.#withDraws(feeds)
    if (planned.length === 0) return
    try {
      const drawn = await this.#runner.run(planned.map(({ feed, draw }) => feed.task.part(feed, draw)))
      const seconds = (performance.now() - started) / 1000
      this.#tell('onStep', { ...this.#advance(planned, drawn), texts: planned.length, seconds })
      // Tokens become text while the next step runs, but never more than one step behind.
      await this.#telling
      this.#isTelling = true
      this.#telling = Promise.all(planned.map(({ feed }, index) => this.#deliver(feed.task, drawn[index]))).then(() => {
        this.#isTelling = false
      })
    } catch (error) {
      for (const { feed } of planned) this.#end(feed.task, 'failed', error)
    }
  }

  /** How each text draws; one that cannot ends alone. */
  async #withDraws(feeds: readonly Feed<EngineRequest>[]): Promise<Planned[]> {
    if (feeds.some(({ task }) => task.text.isConstrained)) await this.#telling
    const planned = await Promise.all(
      feeds.map(async (feed) => {
        try {
          return { feed, draw: feed.isLast ? await feed.task.draw() : undefined }
        } catch (error) {
          this.#end(feed.task, 'failed', error)
          return { feed, draw: undefined }
        }
      }),
    )
    return planned.filter(({ feed }) => !feed.task.isEnded)
  }

  /** Texts go on by what was computed and drawn; those that want no more leave. */
  #advance(
    planned: readonly Planned[],
    drawn: readonly (Drawn | undefined)[],
  ): Pick<EngineStep, 'promptTokens' | 'newTokens'> {
    let [promptTokens, newTokens] = [0, 0]
    for (const [index, { feed }] of planned.entries()) {
      const { task } = feed
      promptTokens += task.fed(feed)
      if (drawn[index]) newTokens += 1
      if (task.isEnded) continue
      this.#scheduler.advance(feed)
      if (!drawn[index]) continue
      task.text.accept(drawn[index])
      if (!task.text.wantsMore) this.#scheduler.remove(task)
    }
    return { promptTokens, newTokens }
  }

  /** What was drawn for a text, if anything, goes to its caller. */
  async #deliver(request: EngineRequest, drawn: Drawn | undefined): Promise<void> {
    if (!drawn || request.isEnded) return
    try {
      const token = await request.text.tell(drawn)
      if (request.isEnded) return
      const { adapter, started } = request.parts
      if (request.newTokens === 0)
        this.#tell('onFirstToken', { adapter: adapter?.name, seconds: (performance.now() - started) / 1000 })
      request.push(token)
      if (token.finishReason) this.#end(request, token.finishReason)
      else if (request.isFull) this.#scheduler.rest(request)
    } catch (error) {
      this.#end(request, 'failed', error)
    }
  }

  /** A request has come to its end, or to an error that its caller gets behind what it has not read. */
  #end(request: EngineRequest, reason: RequestEnd, error?: unknown): void {
    if (request.isEnded) return
    request.end(error)
    this.#forget(request, reason)
  }

  /** Nobody wants the request any more, or nobody is to get it: what is not read is dropped. */
  #abort(request: EngineRequest, error: unknown): void {
    if (request.isEnded) return
    request.abort(error)
    this.#forget(request, 'aborted')
  }

  #forget(request: EngineRequest, reason: RequestEnd): void {
    this.#scheduler.remove(request)
    request.onEnd()
    const { cachedTokens, newTokens } = request
    const { adapter, prompt, started } = request.parts
    const seconds = (performance.now() - started) / 1000
    this.#tell('onEnd', {
      adapter: adapter?.name,
      reason,
      promptTokens: prompt.length,
      cachedTokens,
      newTokens,
      seconds,
    })
    this.#settle()
  }

  /** False once a weight was replaced, as merging does, or written, as training does. */
  #hasSameWeights(): boolean {
    const weights = weightsOf(this.model.network)
    return versionsOf(weights) === this.#weightVersions && this.#isCurrent(weights)
  }

  #isCurrent(weights: readonly Tensor[]): boolean {
    return weights.every((weight, index) => weight === this.#weights[index])
  }

  /** Starts all over with the weights that the model has now; texts that are being made go on with them. */
  #renew(): void {
    const weights = weightsOf(this.model.network)
    if (!this.#isCurrent(weights)) {
      this.#runner.dispose()
      this.#runner = new StepRunner(this.#stepOptions)
    }
    this.#weights = weights
    this.#weightVersions = versionsOf(weights)
    this.#table.clear()
    this.#scheduler.preemptAll()
    this.#isStale = false
  }

  /** Tells those who wait for it that the engine has nothing to do. */
  #settle(): void {
    if (this.#isIdle) for (const done of this.#onIdle.splice(0)) done()
  }

  #tell<K extends keyof EngineListener>(what: K, event: Parameters<NonNullable<EngineListener[K]>>[0]): void {
    for (const listener of this.#listeners) (listener[what] as ((event: unknown) => void) | undefined)?.(event)
  }
}

const versionsOf = (weights: readonly Tensor[]): number => weights.reduce((sum, { native }) => sum + native.version, 0)

const abortedBy = (signal: AbortSignal | undefined): HeddleError =>
  new HeddleError('ERR_HEDDLE_ABORTED', {
    place: 'generate',
    expected: 'to run to its end',
    got: 'an abort signal',
    cause: signal?.reason,
  })

const misuse = (place: string, expected: string, got: unknown): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got: `${got}` })
