/** What the files of sentence-transformers say about how a text becomes one vector. */
import { join } from 'node:path'
import { z } from 'zod'
import type { Pooling } from '../models/encoder.js'
import { formatError } from './byte_source.js'
import { readJsonFile } from './checkpoint.js'

/** How an encoder's hidden states become a vector. */
export interface SentencePooling {
  readonly pooling: Pooling
  /** Vectors are scaled to length 1. */
  readonly normalize: boolean
  /** Longer texts are cut, in tokens. */
  readonly maxLength?: number
}

const modulesSchema = z.array(z.looseObject({ path: z.string(), type: z.string() }))
const poolingSchema = z.looseObject({
  pooling_mode_cls_token: z.boolean().default(false),
  pooling_mode_mean_tokens: z.boolean().default(false),
  pooling_mode_max_tokens: z.boolean().default(false),
  pooling_mode_mean_sqrt_len_tokens: z.literal(false).default(false),
  pooling_mode_weightedmean_tokens: z.literal(false).default(false),
  pooling_mode_lasttoken: z.literal(false).default(false),
})
const transformerSchema = z.looseObject({ max_seq_length: z.int().positive().nullish() })

/**
 * Reads modules.json and what it points to. A folder without one pools by the mean and does not normalise.
 * @throws ERR_HEDDLE_FORMAT for a module or a pooling that is not known
 */
export async function readSentenceTransformer(folder: string): Promise<SentencePooling> {
  const path = join(folder, 'modules.json')
  const listed = await readJsonFile(path, 'array')
  if (!listed) return { pooling: 'mean', normalize: false }
  const modules = parse(modulesSchema, listed, path)
  const kinds = modules.map(({ type }) => type.split('.').at(-1)!)
  const unknown = kinds.find((kind) => !['Transformer', 'Pooling', 'Normalize'].includes(kind))
  if (unknown) throw formatError(path, 'modules Transformer, Pooling and Normalize', unknown)
  const at = modules[kinds.indexOf('Pooling')]
  if (!at) throw formatError(path, 'a Pooling module', kinds.join(', ') || 'none')
  const poolingPath = join(folder, at.path, 'config.json')
  const pooling = poolingOf(parse(poolingSchema, await readJsonFile(poolingPath), poolingPath), poolingPath)
  const transformerPath = join(folder, 'sentence_bert_config.json')
  const transformer = await readJsonFile(transformerPath)
  const maxLength = transformer && parse(transformerSchema, transformer, transformerPath).max_seq_length
  return { pooling, normalize: kinds.includes('Normalize'), ...(maxLength ? { maxLength } : {}) }
}

function poolingOf(config: z.infer<typeof poolingSchema>, path: string): Pooling {
  const chosen = (
    [
      ['cls', config.pooling_mode_cls_token],
      ['mean', config.pooling_mode_mean_tokens],
      ['max', config.pooling_mode_max_tokens],
    ] as const
  ).flatMap(([name, isOn]) => (isOn ? [name] : []))
  if (chosen.length !== 1)
    throw formatError(path, 'one pooling mode of cls, mean and max', chosen.join(' and ') || 'none')
  return chosen[0]!
}

function parse<S extends z.ZodType>(schema: S, value: unknown, path: string): z.infer<S> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  throw formatError(`${path}: ${issue.path.join('.') || 'content'}`, issue.message, JSON.stringify(value) ?? 'nothing')
}
