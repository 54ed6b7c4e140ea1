/** A small server around the operations plugin, and an engine whose tokens a test hands out. */
import { setImmediate as turn } from 'node:timers/promises'
import fastify, { type FastifyInstance } from 'fastify'
import type { EngineListener, EngineState } from '../../lib/engine/events.js'
import { type Engine, HeddleError, type Model } from '../../lib/index.js'
import { parseLimits } from '../../lib/serve/limits.js'
import { type LogLevel, serverOptions } from '../../lib/serve/log.js'
import { answerError, answerNotFound } from '../../lib/serve/openai/error.js'
import { type OperationsOptions, operations } from '../../lib/serve/operations.js'
import { deferred } from './deferred.js'
import { temporaryFolder } from './temporary_folder.js'

const idle: EngineState = {
  isClosed: false,
  running: 0,
  waiting: 0,
  maxBatch: 8,
  maxTokens: 1000,
  cache: { usedBytes: 0, bytes: 1000 },
  adapters: { usedBytes: 0, bytes: 100, loaded: [], mostRank: 100 },
}

/** Generates nothing by itself: each call of `push` gives every running text a token. */
export class HandEngine implements Engine {
  readonly model = {} as Model
  readonly adapterNames: readonly string[] = []
  shown: EngineState = idle
  running = 0
  readonly #listeners = new Set<EngineListener>()
  readonly #stop = new AbortController()
  #next = deferred<string>()

  push(text: string): void {
    const { resolve } = this.#next
    this.#next = deferred<string>()
    resolve(text)
  }

  tell(say: (listener: EngineListener) => void): void {
    for (const listener of this.#listeners) say(listener)
  }

  get listeners(): number {
    return this.#listeners.size
  }

  async *generateTokens(
    prompt: Parameters<Engine['generateTokens']>[0],
    { signal, maxTokens = 256 }: Parameters<Engine['generateTokens']>[1] = {},
  ): ReturnType<Engine['generateTokens']> {
    await this.promptTokens(prompt)
    const aborted = deferred<never>()
    aborted.promise.catch(() => {})
    const abort = (): void =>
      aborted.reject(new HeddleError('ERR_HEDDLE_ABORTED', { place: 'hand', expected: 'to go on', got: 'a signal' }))
    const either = AbortSignal.any([this.#stop.signal, ...(signal ? [signal] : [])])
    either.addEventListener('abort', abort)
    if (either.aborted) abort()
    this.running += 1
    try {
      for (let count = 1; count <= maxTokens; count += 1) {
        const text = await Promise.race([this.#next.promise, aborted.promise])
        yield { id: count, text, ...(count === maxTokens ? { finishReason: 'length' as const } : {}) } as never
      }
    } finally {
      this.running -= 1
    }
  }

  async *generate(...request: Parameters<Engine['generate']>): ReturnType<Engine['generate']> {
    for await (const { text } of this.generateTokens(...request)) yield text
  }

  async promptTokens(prompt: Parameters<Engine['promptTokens']>[0]): Promise<Int32Array> {
    return prompt instanceof Int32Array ? prompt : Int32Array.from(JSON.stringify(prompt), (c) => c.charCodeAt(0))
  }

  async addAdapter(): Promise<void> {}
  removeAdapter(): void {}
  state(): EngineState {
    return this.shown
  }
  watch(listener: EngineListener): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }
  async close(signal?: AbortSignal): Promise<void> {
    this.shown = { ...this.shown, isClosed: true }
    const stop = (): void => this.#stop.abort()
    signal?.addEventListener('abort', stop)
    if (signal?.aborted) stop()
    while (this.running > 0) await turn()
  }
}

export interface TestServer<E extends Engine> {
  readonly app: FastifyInstance
  readonly engine: E
  /** Its log, line by line. */
  readonly log: Record<string, unknown>[]
}

/** What {@link testServer} is told. */
export interface TestServerOptions<E extends Engine> extends Partial<Omit<OperationsOptions, 'engine'>> {
  readonly engine: E
  readonly routes?: (app: FastifyInstance) => void
  readonly level?: LogLevel
}

/** An app with the operations and what `routes` adds, around an engine, or a {@link HandEngine} of its own. */
export function testServer(options?: Partial<TestServerOptions<HandEngine>>): Promise<TestServer<HandEngine>>
export function testServer<E extends Engine>(options: TestServerOptions<E>): Promise<TestServer<E>>
export async function testServer({
  routes = () => {},
  engine = new HandEngine(),
  level = 'info',
  ...options
}: Partial<TestServerOptions<Engine>> = {}): Promise<TestServer<Engine>> {
  const log: Record<string, unknown>[] = []
  const stream = { write: (line: string) => void log.push(JSON.parse(line) as Record<string, unknown>) }
  const app: FastifyInstance = fastify(serverOptions(parseLimits(options.limits), { level, stream }))
  app.setErrorHandler(answerError)
  app.setNotFoundHandler(answerNotFound)
  const folder = temporaryFolder()
  await app.register(operations, {
    modelName: 'hand',
    folders: { data: folder, adapters: folder },
    ...options,
    engine,
  })
  routes(app)
  return { app, engine, log }
}
