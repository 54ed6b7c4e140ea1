/** Rotary scalings between GGUF, which for Llama 3 stores a divisor per frequency, and config.json, which says the rule. */
import { addon } from '../native.js'
import { formatError } from './byte_source.js'
import type { JsonObject } from './checkpoint.js'
import { type GgufFile, ggufValue } from './gguf.js'
import type { GgufWritable } from './gguf_writer.js'

/** Tensors of divisors: Llama 3's, and longrope's for texts of two lengths. */
const llama3Name = 'rope_freqs.weight'
const longName = 'rope_factors_long.weight'
const shortName = 'rope_factors_short.weight'
export const ropeTensorNames: readonly string[] = [llama3Name, longName, shortName]

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
  const factors = await factorsOf(file, llama3Name)
  if (factors) {
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
    throw formatError(`${file.path}: ${llama3Name}`, "the divisors of Llama 3's scaling", 'others', hint)
  }
  const [short, long] = [await factorsOf(file, shortName), await factorsOf(file, longName)]
  if (short && long) {
    const attentionFactor = ggufValue(file, `${prefix}.rope.scaling.attn_factor`, 'number', 1)
    return {
      rope_type: 'longrope',
      short_factor: [...short],
      long_factor: [...long],
      attention_factor: attentionFactor,
    }
  }
  const type = ggufValue(file, `${prefix}.rope.scaling.type`, 'string', 'none')
  if (type === 'none') return null
  if (type !== 'linear')
    throw formatError(`${file.path}: rope.scaling.type`, 'plain or linear scaling', `"${type}"`, hint)
  return { rope_type: 'linear', factor: ggufValue(file, `${prefix}.rope.scaling.factor`, 'number') }
}

/** A tensor of divisors, if the file has it. */
async function factorsOf(file: GgufFile, name: string): Promise<Float32Array | undefined> {
  const info = file.tensors.get(name)
  return info && new Float32Array(await addon.tensorData(file.tensor(info).load('f32')))
}

/** The settings that say how far and how fast heads turn. */
export function ropeValues(prefix: string, config: JsonObject): Readonly<Record<string, GgufWritable>> {
  const { theta, type, scaling } = ropeOf(config)
  const attention = Number(scaling.attention_factor ?? longropeAttention(config, scaling))
  const base = { [`${prefix}.rope.freq_base`]: { type: 'f32', value: theta } } as const
  if (type === 'default' || type === 'llama3') return base
  if (isLongrope(prefix, type))
    return { ...base, [`${prefix}.rope.scaling.attn_factor`]: { type: 'f32', value: attention } }
  if (type !== 'linear')
    throw formatError('config.json: rope_scaling', 'plain, linear or llama3 scaling, or longrope for Phi-3', `${type}`)
  return {
    ...base,
    [`${prefix}.rope.scaling.type`]: { type: 'string', value: 'linear' },
    [`${prefix}.rope.scaling.factor`]: { type: 'f32', value: Number(scaling.factor) },
  }
}

/** What divides the frequencies of a config.json, by tensor, where GGUF stores that so. */
export function ropeFactors(prefix: string, config: JsonObject, headDim: number): ReadonlyMap<string, Float32Array> {
  const { theta, type, scaling } = ropeOf(config)
  if (type === 'llama3')
    return new Map([
      [llama3Name, Float32Array.from(llama3Factors(theta, headDim, scaling as unknown as Llama3Scaling))],
    ])
  if (!isLongrope(prefix, type)) return new Map()
  const { short_factor: short, long_factor: long } = scaling as Readonly<Record<string, readonly number[]>>
  return new Map([
    [longName, Float32Array.from(long!)],
    [shortName, Float32Array.from(short!)],
  ])
}

/** llama.cpp reads two sets of divisors for Phi-3 only, whose first files call it by other names. */
const isLongrope = (prefix: string, type: unknown): boolean =>
  prefix === 'phi3' && ['longrope', 'su', 'yarn'].includes(type as string)

/** The factor on cos and sin where config.json does not say: of how much longer texts may be than in training. */
function longropeAttention(config: JsonObject, scaling: JsonObject): number {
  const most = Number(config.max_position_embeddings)
  const original = Number(config.original_max_position_embeddings ?? scaling.original_max_position_embeddings ?? most)
  const factor = Number(scaling.factor ?? most / original)
  return factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original))
}

function ropeOf(config: JsonObject): { theta: number; type: unknown; scaling: JsonObject } {
  const parameters = (config.rope_parameters ?? {}) as JsonObject
  // Gemma 3 has one set for layers that see everything, which the file says, and one for those with a window.
  const scaling = (config.rope_scaling ?? parameters.full_attention ?? parameters) as JsonObject
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
