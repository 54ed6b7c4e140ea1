/** What a caller may ask of text generation. */
import { z } from 'zod'
import { type ActiveAdapters, activeOf, isActiveAdapters } from '../adapters/active.js'
import { parseConfig } from '../config.js'

/** The form that the text must have. */
export type ResponseFormat =
  /** Any JSON object. */
  | { readonly type: 'json_object' }
  /** JSON that a schema allows; docs/guides/generation.md lists the keywords. */
  | { readonly type: 'json_schema'; readonly schema: JsonSchema }
  /** Text that a regular expression matches as a whole: literals, classes, groups, `|`, quantifiers. */
  | { readonly type: 'regex'; readonly pattern: string }

/** A JSON schema, draft 2020-12. */
export type JsonSchema = boolean | { readonly [keyword: string]: unknown }

/** How the next token is chosen, and when to stop. Processors work in the order in which they stand here. */
export interface SamplingOptions {
  /** Added to the logits of tokens, by token id. */
  readonly logitBias?: Readonly<Record<number, number>>
  /** Divides positive logits of tokens in the prompt or the text, and multiplies negative ones; default 1: none. */
  readonly repetitionPenalty?: number
  /** Taken off the logits of tokens that were generated already; default 0. */
  readonly presencePenalty?: number
  /** Taken off once for every time the token was generated; default 0. */
  readonly frequencyPenalty?: number
  /** No end token before so many new tokens; default 0. */
  readonly minTokens?: number
  /** What the text must look like; it is always finished within `maxTokens`. */
  readonly responseFormat?: ResponseFormat
  /** 0 (default) always takes the most likely token; higher is more varied. */
  readonly temperature?: number
  /** Choose among the k most likely; 0 (default) among all. */
  readonly topK?: number
  /** Choose among the smallest set that has this probability; default 1: all. */
  readonly topP?: number
  /** Choose among tokens of at least this share of the most likely one's probability; default 0: all. */
  readonly minP?: number
  /** The same seed gives the same text; default 0. */
  readonly seed?: number
  /** At most so many new tokens; default 256. */
  readonly maxTokens?: number
  /** Ends the text before the first of these strings. */
  readonly stop?: string | readonly string[]
}

/** What `model.generate` can be asked for. */
export interface GenerateOptions extends SamplingOptions {
  /** Adapter to use, or several whose updates add up; default: none. */
  readonly adapter?: ActiveAdapters | undefined
  /**
   * Wrap a plain string into the model's chat template as the user's message. Default: true when the model has one.
   */
  readonly chat?: boolean | undefined
  /** Stops between two instructions, within milliseconds: ERR_HEDDLE_ABORTED. */
  readonly signal?: AbortSignal | undefined
}

/** What `model.generateTokens` can be asked for. */
export interface GenerateTokensOptions extends GenerateOptions {
  /** Report log-probabilities, also of so many of the most likely tokens: 1 to 20. */
  readonly logProbabilities?: number
}

/** What `model.generateBatch` can be asked for. */
export interface GenerateBatchOptions extends GenerateTokensOptions {
  /** Makes so many texts per prompt and keeps the one with the highest mean log-probability per token; default 1. */
  readonly bestOf?: number
}

const integer = (least: number, most: number) => {
  const error = `an integer from ${least}${most < Number.MAX_SAFE_INTEGER ? ` to ${most}` : ''}`
  return z.int({ error }).min(least, { error }).max(most, { error })
}
const number = (error: string) => z.number({ error })
const temperature = 'a number of at least 0'
const share = 'a number above 0, up to 1'
const minP = 'a number from 0 to 1'
const repetition = 'a number above 0'
const stop = { error: 'a string, or an array of strings, none of them empty' }
const bias = 'token ids with a number each'
const format = 'a format of type "json_object", "json_schema" (with a schema) or "regex" (with a pattern)'

const responseFormat = z.union(
  [
    z.strictObject({ type: z.literal('json_object') }),
    z.strictObject({
      type: z.literal('json_schema'),
      schema: z.union([z.boolean(), z.record(z.string(), z.unknown())]),
    }),
    z.strictObject({ type: z.literal('regex'), pattern: z.string() }),
  ],
  { error: format },
)

const shape = {
  logitBias: z.record(z.string().regex(/^\d+$/, { error: bias }), number(bias), { error: bias }).optional(),
  repetitionPenalty: number(repetition).gt(0, { error: repetition }).default(1),
  presencePenalty: number('a number').default(0),
  frequencyPenalty: number('a number').default(0),
  minTokens: integer(0, Number.MAX_SAFE_INTEGER).default(0),
  responseFormat: responseFormat.optional(),
  temperature: number(temperature).min(0, { error: temperature }).default(0),
  topK: integer(0, 2 ** 31 - 1).default(0),
  topP: number(share).gt(0, { error: share }).max(1, { error: share }).default(1),
  minP: number(minP).min(0, { error: minP }).max(1, { error: minP }).default(0),
  seed: integer(0, Number.MAX_SAFE_INTEGER).default(0),
  maxTokens: integer(1, Number.MAX_SAFE_INTEGER).default(256),
  stop: z
    .union([z.string().min(1), z.array(z.string().min(1))], stop)
    .transform((strings) => [strings].flat())
    .default([]),
  adapter: z
    .custom<ActiveAdapters>(isActiveAdapters, { error: 'an adapter of this model, or several' })
    .transform(activeOf)
    .optional(),
  chat: z.boolean({ error: 'a boolean' }).optional(),
  signal: z.custom<AbortSignal>((value) => value instanceof AbortSignal, { error: 'an AbortSignal' }).optional(),
}

const logProbabilities = integer(1, 20).optional()
const textSchema = z.strictObject(shape)
const tokenSchema = z.strictObject({ ...shape, logProbabilities })
const batchSchema = z.strictObject({ ...shape, logProbabilities, bestOf: integer(1, 64).default(1) })

/** Options with the defaults filled in. */
export type GenerateSettings = z.output<typeof tokenSchema>
/** Options of a batch with the defaults filled in. */
export type BatchSettings = z.output<typeof batchSchema>

/** @throws ERR_HEDDLE_ARGUMENT naming the option, and the nearest known one for a typo */
export const parseGenerateOptions = (options: GenerateOptions): GenerateSettings =>
  parseConfig('generate', textSchema, options)

/** @throws ERR_HEDDLE_ARGUMENT as {@link parseGenerateOptions} */
export const parseTokenOptions = (options: GenerateTokensOptions): GenerateSettings =>
  parseConfig('generateTokens', tokenSchema, options)

/** @throws ERR_HEDDLE_ARGUMENT as {@link parseGenerateOptions} */
export const parseBatchOptions = (options: GenerateBatchOptions): BatchSettings =>
  parseConfig('generateBatch', batchSchema, options)
