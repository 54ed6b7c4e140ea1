/** Rotary scalings between GGUF, which for Llama 3 stores a divisor per frequency, and config.json, which says the rule. */
import { addon } from '../native.js'
import { formatError } from './byte_source.js'
import type { JsonObject } from './checkpoint.js'
import { type GgufFile, ggufValue } from './gguf.js'
import type { GgufWritable } from './gguf_writer.js'

/** The tensor of divisors. */
export const ropeFactorsName = 'rope_freqs.weight'

const hint = 'Load the model from its Hugging Face folder'

/** Llama 3's rule; the numbers besides `factor` are those of every published model. */
interface Llama3Scaling {
  readonly factor: number
  readonly low_freq_factor: number
  readonly high_freq_factor: number
  readonly original_max_position_embeddings: number
}

/**
 * `rope_scaling` of a file's model. Divisors are accepted where they are Llama 3's.
 * @throws ERR_HEDDLE_FORMAT on a scaling that config.json could not say
 */
export async function ropeScalingOf(file: GgufFile, prefix: string, headDim: number): Promise<JsonObject | null> {
  const info = file.tensors.get(ropeFactorsName)
  if (info) {
    const factors = new Float32Array(await addon.tensorData(file.tensor(info).load('f32')))
    const theta = ggufValue(file, `${prefix}.rope.freq_base`, 'number', 10000)
    const scaling = {
      factor: factors.at(-1) ?? 0,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    }
    const expected = llama3Factors(theta, headDim, scaling)
    const same = expected.length === factors.length && expected.every((x, i) => Math.abs(x - factors[i]!) <= 1e-4 * x)
    if (same) return { rope_type: 'llama3', ...scaling }
    throw formatError(`${file.path}: ${ropeFactorsName}`, "the divisors of Llama 3's scaling", 'others', hint)
  }
  const other = [...file.tensors.keys()].find((name) => name.startsWith('rope_factors_'))
  if (other !== undefined) throw formatError(`${file.path}: ${other}`, 'plain, linear or Llama 3 scaling', other, hint)
  const type = ggufValue(file, `${prefix}.rope.scaling.type`, 'string', 'none')
  if (type === 'none') return null
  if (type !== 'linear')
    throw formatError(`${file.path}: rope.scaling.type`, 'plain or linear scaling', `"${type}"`, hint)
  return { rope_type: 'linear', factor: ggufValue(file, `${prefix}.rope.scaling.factor`, 'number') }
}

/** The settings that say how far and how fast heads turn. */
export function ropeValues(prefix: string, config: JsonObject): Readonly<Record<string, GgufWritable>> {
  const { theta, type, scaling } = ropeOf(config)
  const base = { [`${prefix}.rope.freq_base`]: { type: 'f32', value: theta } } as const
  if (type === 'default' || type === 'llama3') return base
  if (type !== 'linear') throw formatError('config.json: rope_scaling', 'plain, linear or llama3 scaling', `${type}`)
  return {
    ...base,
    [`${prefix}.rope.scaling.type`]: { type: 'string', value: 'linear' },
    [`${prefix}.rope.scaling.factor`]: { type: 'f32', value: Number(scaling.factor) },
  }
}

/** What divides the frequencies of a config.json, where GGUF stores that as a tensor. */
export function ropeFactors(config: JsonObject, headDim: number): Float32Array | undefined {
  const { theta, type, scaling } = ropeOf(config)
  if (type !== 'llama3') return undefined
  return Float32Array.from(llama3Factors(theta, headDim, scaling as unknown as Llama3Scaling))
}

function ropeOf(config: JsonObject): { theta: number; type: unknown; scaling: JsonObject } {
  const scaling = (config.rope_scaling ?? config.rope_parameters ?? {}) as JsonObject
  const theta = Number(scaling.rope_theta ?? config.rope_theta ?? 10000)
  return { theta, type: scaling.rope_type ?? scaling.type ?? 'default', scaling }
}

/** Long waves are slowed by `factor`, short ones are not, those between by a blend. */
function llama3Factors(theta: number, headDim: number, scaling: Llama3Scaling): number[] {
  const { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original } = scaling
  return Array.from({ length: headDim / 2 }, (_, i) => {
    const waves = (original * theta ** ((-2 * i) / headDim)) / (2 * Math.PI)
    const blend = Math.min(1, Math.max(0, (waves - low) / (high - low)))
    return 1 / ((1 - blend) / factor + blend)
  })
}
