/** Inverse frequencies of the rotary embedding, with the scalings that checkpoints ask for. */
import { z } from 'zod'
import { HeddleError } from '../errors.js'

/** `rope_scaling` (or, in newer checkpoints, `rope_parameters`) of config.json. */
export const ropeScalingSchema = z.looseObject({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: z.number().positive().optional(),
  factor: z.number().positive().optional(),
  low_freq_factor: z.number().positive().optional(),
  high_freq_factor: z.number().positive().optional(),
  original_max_position_embeddings: z.number().positive().optional(),
})

export interface RopeConfig {
  readonly rope_theta: number
  readonly rope_scaling?: z.infer<typeof ropeScalingSchema> | null | undefined
  readonly rope_parameters?: z.infer<typeof ropeScalingSchema> | null | undefined
}

/**
 * theta^(-2i/d) for i < d/2, rescaled as the checkpoint's scaling says: `default`, `linear`, or `llama3` (long waves
 * divided by `factor`, short ones kept, a linear blend in between).
 * @throws ERR_HEDDLE_FORMAT on a scaling that is not known
 */
export function inverseFrequencies(dim: number, config: RopeConfig, place = 'config.json'): number[] {
  const scaling = config.rope_scaling ?? config.rope_parameters ?? {}
  const theta = scaling.rope_theta ?? config.rope_theta
  const plain = Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim))
  const type = scaling.rope_type ?? scaling.type ?? 'default'
  if (type === 'default') return plain
  const { factor } = scaling
  if (type === 'linear' && factor) return plain.map((frequency) => frequency / factor)
  const { low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original } = scaling
  if (type !== 'llama3' || !factor || !low || !high || !original)
    throw new HeddleError('ERR_HEDDLE_FORMAT', {
      place: `${place}: rope_scaling`,
      expected: 'a complete scaling of type default, linear or llama3',
      got: JSON.stringify(scaling),
    })
  return plain.map((frequency) => {
    const waves = (original * frequency) / (2 * Math.PI)
    const blend = Math.min(1, Math.max(0, (waves - low) / (high - low)))
    return (1 - blend) * (frequency / factor) + blend * frequency
  })
}
