/** What a caller may ask of text generation. */
import { z } from 'zod'
import { HeddleError } from '../errors.js'

const optionsSchema = z.object({
  maxTokens: z.int().positive().default(256),
  temperature: z.number().min(0).default(0),
  topK: z.int().min(0).default(0),
  topP: z.number().gt(0).max(1).default(1),
  seed: z.int().min(0).default(0),
  stop: z.union([z.string().min(1), z.array(z.string().min(1))]).default([]),
})

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

export interface ResolvedSampling {
  readonly maxTokens: number
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly seed: number
  readonly stop: readonly string[]
}

/** @throws ERR_HEDDLE_ARGUMENT naming the option */
export function resolveSampling(options: SamplingOptions): ResolvedSampling {
  const { maxTokens, temperature, topK, topP, seed, stop } = options
  const given = Object.entries({ maxTokens, temperature, topK, topP, seed, stop }).filter(([, v]) => v !== undefined)
  const parsed = optionsSchema.safeParse(Object.fromEntries(given))
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    const name = String(issue.path[0])
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: `generate: ${name}`,
      expected: issue.message,
      got: JSON.stringify(options[name as keyof SamplingOptions]),
    })
  }
  return { ...parsed.data, stop: [parsed.data.stop].flat() }
}
