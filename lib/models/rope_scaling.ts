/** Inverse frequencies of the rotary embedding, with the scalings that checkpoints ask for. */
import { z } from 'zod'
import { HeddleError } from '../errors.js'

/** One for each pair of elements of a head. */
const factors = z
  .array(z.number().positive())
  .max(1 << 12)
  .nullish()

/** `rope_scaling` (or, in newer checkpoints, `rope_parameters`) of config.json. */
export const ropeScalingSchema = z.looseObject({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: z.number().positive().optional(),
  partial_rotary_factor: z.number().positive().max(1).optional(),
  factor: z.number().positive().optional(),
  low_freq_factor: z.number().positive().optional(),
  high_freq_factor: z.number().positive().optional(),
  original_max_position_embeddings: z.number().positive().optional(),
  attention_factor: z.number().positive().nullish(),
  beta_fast: z.number().positive().nullish(),
  beta_slow: z.number().positive().nullish(),
  mscale: z.number().nullish(),
  mscale_all_dim: z.number().nullish(),
  truncate: z.boolean().nullish(),
  short_factor: factors,
  long_factor: factors,
})

type Scaling = z.infer<typeof ropeScalingSchema>

/** What config.json says of the rotary embedding. */
export interface RopeConfig {
  readonly rope_theta: number
  readonly rope_scaling?: Scaling | null | undefined
  readonly rope_parameters?: Scaling | null | undefined
  readonly max_position_embeddings?: number | undefined
  readonly original_max_position_embeddings?: number | undefined
}

/** A rotary embedding: angles are position · frequency; cos and sin are multiplied with `scale`. */
export interface Rotary {
  /** One for each pair of elements. */
  readonly frequencies: readonly number[]
  readonly scale: number
  /** How texts of more than `limit` tokens turn, where that is another way. */
  readonly beyond?: LongTexts | undefined
}

/**
 * The rotation of texts of more than `limit` tokens: with frequencies of their own (longrope), or with frequency i
 * divided by s^(2i/(d-2)), s = factor · length / limit − (factor − 1), which slows long waves by the stretch of the text
 * and leaves short ones as they are (dynamic).
 */
export type LongTexts =
  | { readonly kind: 'longrope'; readonly limit: number; readonly frequencies: readonly number[] }
  | { readonly kind: 'dynamic'; readonly limit: number; readonly factor: number }

/**
 * theta^(-2i/d) for i < d/2, rescaled as the checkpoint's scaling says: `default`, `linear`, `llama3` (long waves
 * divided by `factor`, short ones kept, a linear blend in between), `yarn` (Peng et al. 2023, arXiv 2309.00071),
 * `longrope` (Ding et al. 2024, arXiv 2402.13753) or `dynamic` (NTK-aware scaling by length).
 * @param dim number of elements that turn
 * @throws ERR_HEDDLE_FORMAT on a scaling that is not known, and on an odd `dim`
 */
export function rotaryOf(dim: number, config: RopeConfig, place = 'config.json'): Rotary {
  if (!Number.isInteger(dim) || dim < 2 || dim % 2 !== 0)
    throw misfit(`${place}: head_dim`, 'an even integer, by default hidden_size / num_attention_heads', `${dim}`)
  const scaling = config.rope_scaling ?? config.rope_parameters ?? {}
  const theta = scaling.rope_theta ?? config.rope_theta
  const plain = Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim))
  const type = scaling.rope_type ?? scaling.type ?? 'default'
  const { factor } = scaling
  if (type === 'default') return { frequencies: plain, scale: 1 }
  if (type === 'linear' && factor) return { frequencies: plain.map((frequency) => frequency / factor), scale: 1 }
  const scalings: ReadonlyMap<string, () => Rotary | undefined> = new Map([
    ['llama3', () => llama3(plain, scaling)],
    ['yarn', () => yarn(plain, theta, scaling)],
    ['longrope', () => longrope(plain, scaling, config)],
    ['dynamic', () => dynamic(plain, scaling, config)],
  ])
  const scaled = scalings.get(type)?.()
  if (scaled) return scaled
  const known = 'a complete scaling of type default, linear, llama3, yarn, longrope or dynamic'
  throw misfit(`${place}: rope_scaling`, known, JSON.stringify(scaling))
}

function llama3(plain: readonly number[], scaling: Scaling): Rotary | undefined {
  const { factor, original_max_position_embeddings: original } = scaling
  const { low_freq_factor: low, high_freq_factor: high } = scaling
  if (!factor || !low || !high || !original) return undefined
  const frequencies = plain.map((frequency) => {
    const waves = (original * frequency) / (2 * Math.PI)
    const blend = clamp((waves - low) / (high - low), 0, 1)
    return (1 - blend) * (frequency / factor) + blend * frequency
  })
  return { frequencies, scale: 1 }
}

/** Pairs below `low` keep their frequency, pairs above `high` are divided by `factor`, a linear ramp in between. */
function yarn(plain: readonly number[], theta: number, scaling: Scaling): Rotary | undefined {
  const { factor, original_max_position_embeddings: original, attention_factor, mscale, mscale_all_dim } = scaling
  if (!factor || !original) return undefined
  const dim = 2 * plain.length
  const pairOf = (turns: number): number => (dim * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(theta))
  const [low, high] = [pairOf(scaling.beta_fast || 32), pairOf(scaling.beta_slow || 1)]
  const isTruncated = scaling.truncate ?? true
  const start = Math.max(isTruncated ? Math.floor(low) : low, 0)
  const end = Math.min(isTruncated ? Math.ceil(high) : high, dim - 1)
  const frequencies = plain.map((frequency, i) => {
    const ramp = clamp((i - start) / (end - start || 0.001), 0, 1)
    return (frequency / factor) * ramp + frequency * (1 - ramp)
  })
  const magnitude = (weight: number): number => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1)
  const implied = mscale && mscale_all_dim ? magnitude(mscale) / magnitude(mscale_all_dim) : magnitude(1)
  return { frequencies, scale: attention_factor ?? implied }
}

/** Every frequency has a divisor of its own, one for texts of the length that the model was first trained on. */
function longrope(plain: readonly number[], scaling: Scaling, config: RopeConfig): Rotary | undefined {
  const { short_factor: short, long_factor: long, attention_factor } = scaling
  const { max_position_embeddings: most } = config
  const limit = config.original_max_position_embeddings ?? scaling.original_max_position_embeddings ?? most
  if (short?.length !== plain.length || long?.length !== plain.length || !limit) return undefined
  const factor = scaling.factor ?? (most ?? limit) / limit
  const implied = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(limit))
  return {
    frequencies: plain.map((frequency, i) => frequency / short[i]!),
    scale: attention_factor ?? implied,
    beyond: { kind: 'longrope', limit, frequencies: plain.map((frequency, i) => frequency / long[i]!) },
  }
}

function dynamic(plain: readonly number[], { factor }: Scaling, config: RopeConfig): Rotary | undefined {
  const { max_position_embeddings: limit } = config
  if (!factor || !limit || plain.length < 2) return undefined
  return { frequencies: plain, scale: 1, beyond: { kind: 'dynamic', limit, factor } }
}

const clamp = (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x))

const misfit = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
