/** A server of its own: model, engine and app, made and closed together. */
import { mkdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import fastify, { type FastifyInstance } from 'fastify'
import type { LoggerOptions } from 'pino'
import { createEngine, type Engine } from '../engine/engine.js'
import type { EngineOptions } from '../engine/options.js'
import { HeddleError } from '../errors.js'
import { type LoadOptions, loadModel, type Model } from '../model.js'
import { isLoopback, KeyRing, refusePublicAddress } from './keys.js'
import { parseLimits } from './limits.js'
import { serverOptions } from './log.js'
import { answerNotFound } from './openai/error.js'
import { heddle, type ServeOptions } from './plugin.js'
import { shutDown, watchConnections } from './shutdown.js'

const defaultHost = '127.0.0.1'
const loopbackHosts = ['localhost', '127.0.0.1', '[::1]', '::1']

/** Options of {@link startServer}. */
export interface ServerOptions
  extends Omit<ServeOptions, 'engine' | 'modelName' | 'folders' | 'keys' | 'page' | 'warmUp'> {
  /** A model, which stays the caller's; or what `loadModel` takes, loaded and disposed of by the server. */
  readonly model: Model | string
  /** How a model that is loaded here is loaded. */
  readonly load?: LoadOptions
  /** The name under which the model alone is asked for; default: the last part of where it came from. */
  readonly modelName?: string
  /** Folder of uploaded files, jobs and their database, made when there is none; default `heddle-data`. */
  readonly data?: string
  /** Folder of adapters by name, made when there is none; default: `adapters` in the data folder. */
  readonly adapters?: string
  readonly engine?: Omit<EngineOptions, 'adapters'>
  /** File of keys that clients must have (`heddle serve keys`); default: none are asked for. */
  readonly keys?: string | undefined
  /** Allows an address that others reach without keys. */
  readonly insecure?: boolean
  /** Default `127.0.0.1`: only this machine reaches it. */
  readonly host?: string
  /** Default 8000; 0 takes a free one. */
  readonly port?: number
  /** Shows a page at `/`; default true. */
  readonly page?: boolean | undefined
  /** Options of pino, or false for no log; default: `{ level: 'info' }`. */
  readonly logger?: LoggerOptions | false
}

/** A server that listens. */
export interface RunningServer {
  readonly app: FastifyInstance
  /** Where it listens, e.g. `http://127.0.0.1:8000`. */
  readonly url: string
  /** The name under which the model alone is asked for. */
  readonly modelName: string
  /** Closed with the server. */
  readonly engine: Engine
  /** Stops listening, lets requests that run end (or aborts them once the signal is set), and frees what it made. */
  close(signal?: AbortSignal): Promise<void>
}

/**
 * Loads a model and serves it.
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK, ERR_HEDDLE_OOM
 */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const { keys, host = defaultHost, insecure = false } = options
  refusePublicAddress(host, { hasKeys: keys !== undefined, insecure })
  const { model: given, load = {}, data = 'heddle-data', adapters = join(data, 'adapters') } = options
  await mkdir(adapters, { recursive: true })
  await mkdir(data, { recursive: true })
  const model = typeof given === 'string' ? await loadModel(given, load) : given
  const stopModel = async (): Promise<void> => (model === given ? undefined : model.dispose())
  try {
    return await serve(model, { ...options, data, adapters }, stopModel)
  } catch (error) {
    await stopModel()
    throw error
  }
}

async function serve(
  model: Model,
  options: ServerOptions & { readonly data: string; readonly adapters: string },
  stopModel: () => Promise<void>,
): Promise<RunningServer> {
  const { engine: engineOptions, data, adapters, host = defaultHost, port, logger, page = true, ...rest } = options
  const limits = parseLimits(options.limits)
  const keys = options.keys === undefined ? undefined : await KeyRing.open(options.keys)
  const app = fastify(serverOptions(limits, logger))
  app.server.maxConnections = limits.connections
  watchConnections(app.server)
  app.setNotFoundHandler(answerNotFound)
  const engine = await createEngine(model, { ...engineOptions, adapters })
  try {
    const hosts = isLoopback(host) && keys === undefined && !options.insecure ? loopbackHosts : undefined
    const modelName = options.modelName ?? basename(model.source)
    const folders = { data, adapters }
    const warmUp = (): Promise<void> => firstStep(engine)
    await app.register(heddle, { hosts, ...rest, page, keys, engine, modelName, folders, warmUp })
    const url = await listen(app, host, port ?? 8000)
    const close = once((signal) => shutDown(app, engine, signal).finally(stopModel))
    return { app, url, modelName, engine, close }
  } catch (error) {
    await Promise.all([app.close(), engine.close()])
    throw error
  }
}

/** Ends a server once, however often it is told to; it makes haste as soon as any of the signals is set. */
function once(end: (signal: AbortSignal) => Promise<void>): RunningServer['close'] {
  const haste = new AbortController()
  let ended: Promise<void> | undefined
  return (signal) => {
    const hurry = (): void => haste.abort(signal?.reason)
    if (signal?.aborted) hurry()
    signal?.addEventListener('abort', hurry, { once: true })
    ended ??= end(haste.signal)
    return ended
  }
}

/** Packs the weights and compiles a step, which the first request would have to wait for. */
async function firstStep(engine: Engine): Promise<void> {
  for await (const _ of engine.generateTokens(Int32Array.of(0), { maxTokens: 1 }));
}

/** @throws ERR_HEDDLE_IO when the address cannot be had */
async function listen(app: FastifyInstance, host: string, port: number): Promise<string> {
  try {
    return await app.listen({ host, port })
  } catch (cause) {
    const { code, syscall } = cause as NodeJS.ErrnoException
    if (syscall === undefined) throw cause
    throw new HeddleError('ERR_HEDDLE_IO', {
      place: `${host}:${port}`,
      expected: 'an address that is free and this machine has',
      got: code ?? 'neither',
      hint: 'Choose another --port or --host.',
      cause,
    })
  }
}
