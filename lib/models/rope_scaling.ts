/** Inverse frequencies of the rotary embedding, with the scalings that checkpoints ask for. */
import { z } from 'zod'
import { HeddleError } from '../errors.js'

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
})

type Scaling = z.infer<typeof ropeScalingSchema>

/** What config.json says of the rotary embedding. */
export interface RopeConfig {
  readonly rope_theta: number
  readonly rope_scaling?: Scaling | null | undefined
  readonly rope_parameters?: Scaling | null | undefined
}

/** A rotary embedding: angles are position · frequency; cos and sin are multiplied with `scale`. */
export interface Rotary {
  /** One for each pair of elements. */
  readonly frequencies: readonly number[]
  readonly scale: number
}

/**
 * theta^(-2i/d) for i < d/2, rescaled as the checkpoint's scaling says: `default`, `linear`, `llama3` (long waves
 * divided by `factor`, short ones kept, a linear blend in between), or `yarn` (Peng et al. 2023, arXiv 2309.00071).
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
  const scaled = type === 'llama3' ? llama3(plain, scaling) : type === 'yarn' ? yarn(plain, theta, scaling) : undefined
  if (scaled) return scaled
  const known = 'a complete scaling of type default, linear, llama3 or yarn'
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

const clamp = (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x))

const misfit = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
