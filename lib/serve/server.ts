/** A server of its own: model, engine and app, made and closed together. */
import { mkdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import fastify, { type FastifyInstance } from 'fastify'
import type { LoggerOptions } from 'pino'
import { createEngine } from '../engine/engine.js'
import type { EngineOptions } from '../engine/options.js'
import { type LoadOptions, loadModel, type Model } from '../model.js'
import { answerNotFound } from './openai_error.js'
import { heddle, type ServeOptions } from './plugin.js'

/** Options of {@link startServer}. */
export interface ServerOptions extends Omit<ServeOptions, 'engine' | 'modelName' | 'folders'> {
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
  /** Default `127.0.0.1`: only this machine reaches it. */
  readonly host?: string
  /** Default 8000; 0 takes a free one. */
  readonly port?: number
  /** Options of pino, or false for no log; default: `{ level: 'info' }`. */
  readonly logger?: LoggerOptions | false
}

/** A server that listens. */
export interface RunningServer {
  readonly app: FastifyInstance
  /** Where it listens, e.g. `http://127.0.0.1:8000`. */
  readonly url: string
  /** Stops listening, lets requests that run end (or aborts them once the signal is set), and frees what it made. */
  close(signal?: AbortSignal): Promise<void>
}

/**
 * Loads a model and serves it.
 * @throws ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_NETWORK, ERR_HEDDLE_OOM; errors of Node's
 *   sockets when the port is taken
 */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
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
  const { engine: engineOptions, load: _, model: __, data, adapters, host, port, logger, ...rest } = options
  const engine = await createEngine(model, { ...engineOptions, adapters })
  const app = fastify({ logger: logger ?? { level: 'info' } })
  app.setNotFoundHandler(answerNotFound)
  const close = async (signal?: AbortSignal): Promise<void> => {
    await Promise.all([app.close(), engine.close(signal)])
    await stopModel()
  }
  try {
    const modelName = options.modelName ?? basename(model.source)
    await app.register(heddle, { ...rest, engine, modelName, folders: { data, adapters } })
    const url = await app.listen({ host: host ?? '127.0.0.1', port: port ?? 8000 })
    return { app, url, close }
  } catch (error) {
    await Promise.all([app.close(), engine.close()])
    throw error
  }
}
