/** What a caller may ask of text generation. */
import { z } from 'zod'
import { Adapter } from '../adapters/adapter.js'
import { parseConfig } from '../config.js'

/** How the next token is chosen, and when to stop. */
export interface SamplingOptions {
  /** At most so many new tokens; default 256. */
  readonly maxTokens?: number
  /** 0 (default) always takes the most likely token; higher is more varied. */
  readonly temperature?: number
  /** Choose among the k most likely; 0 (default) among all. */
  readonly topK?: number
  /** Choose among the smallest set that has this probability; default 1: all. */
  readonly topP?: number
  /** The same seed gives the same text; default 0. */
  readonly seed?: number
  /** Ends the text before the first of these strings. */
  readonly stop?: string | readonly string[]
}

/** What `model.generate` can be asked for. */
export interface GenerateOptions extends SamplingOptions {
  /** Adapter to use; default: none. */
  readonly adapter?: Adapter | undefined
  /**
   * Wrap a plain string into the model's chat template as the user's message. Default: true when the model has one.
   */
  readonly chat?: boolean | undefined
  /** Stops between two instructions, within milliseconds: ERR_HEDDLE_ABORTED. */
  readonly signal?: AbortSignal | undefined
}

const integer = (least: number, most: number) => {
  const error = `an integer from ${least}${most < Number.MAX_SAFE_INTEGER ? ` to ${most}` : ''}`
  return z.int({ error }).min(least, { error }).max(most, { error })
}
const temperature = { error: 'a number of at least 0' }
const share = { error: 'a number above 0, up to 1' }
const stop = { error: 'a string, or an array of strings, none of them empty' }

const schema = z.strictObject({
  maxTokens: integer(1, Number.MAX_SAFE_INTEGER).default(256),
  temperature: z.number(temperature).min(0, temperature).default(0),
  topK: integer(0, 2 ** 31 - 1).default(0),
  topP: z.number(share).gt(0, share).max(1, share).default(1),
  seed: integer(0, Number.MAX_SAFE_INTEGER).default(0),
  stop: z
    .union([z.string().min(1), z.array(z.string().min(1))], stop)
    .transform((strings) => [strings].flat())
    .default([]),
  adapter: z.custom<Adapter>((value) => value instanceof Adapter, { error: 'an adapter of this model' }).optional(),
  chat: z.boolean({ error: 'a boolean' }).optional(),
  signal: z.custom<AbortSignal>((value) => value instanceof AbortSignal, { error: 'an AbortSignal' }).optional(),
})

/** Options with the defaults filled in. */
export type GenerateSettings = z.output<typeof schema>

/** @throws ERR_HEDDLE_ARGUMENT naming the option, and the nearest known one for a typo */
export const parseGenerateOptions = (options: GenerateOptions): GenerateSettings =>
  parseConfig('generate', schema, options)
