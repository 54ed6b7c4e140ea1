/** What an engine can be told when it is made, and with each request. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import type { GenerateTokensOptions } from '../generate/options.js'

/** Options of `createEngine`. */
export interface EngineOptions {
  /** Most texts that are made at the same time; default 32. */
  readonly maxBatch?: number
  /** Most requests that wait for a place; those beyond are refused with ERR_HEDDLE_BUSY. Default 256. */
  readonly maxQueue?: number
  /** Most tokens of one step, by which long prompts are cut into pieces; at least `maxBatch`, default 256. */
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

const integer = (least: number, most: number) => {
  const error = `an integer from ${least} to ${most}`
  return z.int({ error }).min(least, { error }).max(most, { error })
}
const bytes = z.number({ error: 'a number of bytes' }).positive({ error: 'a positive number of bytes' })

const schema = z.strictObject({
  maxBatch: integer(1, 1024).default(32),
  maxQueue: integer(0, 1e6).default(256),
  stepTokens: integer(1, 65536).optional(),
  memory: z.strictObject({ cache: bytes.default(2 ** 29), adapters: bytes.default(2 ** 28) }).prefault({}),
  adapters: z.string({ error: 'the path of a folder' }).optional(),
})

/** Options of an engine with the defaults filled in. */
export type EngineSettings = Omit<z.output<typeof schema>, 'stepTokens'> & { readonly stepTokens: number }

/** @throws ERR_HEDDLE_ARGUMENT naming the option, and the nearest known one for a typo */
export function parseEngineOptions(options: EngineOptions): EngineSettings {
  const settings = parseConfig('createEngine', schema, options)
  const { maxBatch, stepTokens = Math.max(256, maxBatch) } = settings
  if (stepTokens < maxBatch)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'createEngine.stepTokens',
      expected: `at least maxBatch, ${maxBatch}`,
      got: `${stepTokens}`,
    })
  return { ...settings, stepTokens }
}
