/** What an engine can be told when it is made, and with each request. */
import type { GenerateTokensOptions } from '../generate/options.js'

/** Options of `createEngine`. */
export interface EngineOptions {
  /** Most texts that are made at the same time; default 32. */
  readonly maxBatch?: number
  /** Most requests that wait for a place; those beyond are refused with ERR_HEDDLE_BUSY. Default 256. */
  readonly maxQueue?: number
  /** Most tokens of one step, by which long prompts are cut into pieces; default 256. */
  readonly stepTokens?: number
  /** Bytes that the engine may take beside the model's weights. */
  readonly memory?: EngineMemory
  /** A folder whose subfolders are adapters by name, loaded when they are first asked for. */
  readonly adapters?: string
}

/** See {@link EngineOptions.memory}. */
export interface EngineMemory {
  /** Of keys and values; default 512 MiB. */
  readonly cache?: number
  /** Of adapters; default 256 MiB. */
  readonly adapters?: number
}

/** What one request can be asked for. */
export interface EngineRequestOptions extends Omit<GenerateTokensOptions, 'adapter'> {
  /** Name of an adapter; default: the model alone. */
  readonly adapter?: string | undefined
}
