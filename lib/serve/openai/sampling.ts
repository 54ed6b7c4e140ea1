/** The fields of a request that say how text is made, the same for chats and completions. */
import { z } from 'zod'
import type { EngineRequestOptions } from '../../engine/options.js'
import { ignored, integer, list, maybe, oneOf, unsupported } from './request.js'

const bias = z.record(z.string().regex(/^\d+$/, { error: 'a token id' }), z.number().min(-100).max(100))
const isBias = ([id, value]: [string, unknown]): boolean =>
  /^\d+$/.test(id) && typeof value === 'number' && Math.abs(value) <= 100

/** Checked up to the first that is wrong, as a list is. */
const biases = z.looseObject({}).transform((given, { issues }): Record<string, number> => {
  const wrong = Object.entries(given).find((each) => !isBias(each))
  const parsed = bias.safeParse(wrong ? { [wrong[0]]: wrong[1] } : {}, { reportInput: true })
  issues.push(...((parsed.error?.issues.slice(0, 1) ?? []) as z.core.$ZodRawIssue[]))
  return given as Record<string, number>
})

/** The fields. */
export const samplingShape = {
  model: z.string().min(1),
  n: maybe(integer(1, 128)),
  stream: maybe(z.boolean()),
  stream_options: maybe(z.strictObject({ include_usage: maybe(z.boolean()), include_obfuscation: maybe(z.boolean()) })),
  stop: maybe(oneOf('a string or an array of strings', [z.string().min(1), list(z.string().min(1), 4)] as const)),
  temperature: maybe(z.number().min(0).max(2)),
  top_p: maybe(z.number().min(0).max(1)),
  seed: maybe(z.int()),
  presence_penalty: maybe(z.number().min(-2).max(2)),
  frequency_penalty: maybe(z.number().min(-2).max(2)),
  logit_bias: maybe(biases),
  user: ignored,
  metadata: ignored,
  safety_identifier: ignored,
  prompt_cache_key: ignored,
  prompt_cache_retention: ignored,
  service_tier: maybe(z.enum(['auto', 'default'])),
  moderation: unsupported,
}

const fields = z.object(samplingShape)

/** The fields with defaults filled in. */
export type SamplingFields = z.output<typeof fields>

/** Nothing is sure to be chosen alone but what is the most likely: a sum of 0 would choose nothing. */
const leastShare = 1e-6

/**
 * What the fields are for the engine, for one of the texts that are asked for. Without a seed, every request has another
 * one; as with OpenAI, the temperature is 1 unless the client says otherwise.
 */
export function samplingOf(body: SamplingFields, choice: number): EngineRequestOptions {
  const { temperature = 1, top_p = 1, stop, presence_penalty = 0, frequency_penalty = 0, logit_bias } = body
  return {
    temperature,
    topP: Math.max(top_p, leastShare),
    seed: seedOf(body.seed ?? randomSeed(), choice),
    presencePenalty: presence_penalty,
    frequencyPenalty: frequency_penalty,
    ...(stop === undefined ? {} : { stop }),
    ...(logit_bias === undefined ? {} : { logitBias: logit_bias }),
  }
}

const randomSeed = (): number => Math.floor(Math.random() * 2 ** 32)

/** Seeds may be negative; those of one request's texts are far from each other. */
const seedOf = (seed: number, choice: number): number =>
  Number(BigInt.asUintN(53, BigInt(seed) + BigInt(choice) * 0x13c6_ef37_2fe9n))
