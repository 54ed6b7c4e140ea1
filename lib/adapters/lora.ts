/** LoRA (Hu et al. 2021, arXiv 2106.09685) with rsLoRA's scale (Kalajdzievski 2023, arXiv 2312.03732), as PEFT has it. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { add, broadcastTo, constant, mul, sub } from '../graph/ops/elementwise.js'
import { matmul } from '../graph/ops/matmul.js'
import { dropout, randomUniform } from '../graph/ops/random.js'
import { read } from '../graph/sym.js'
import { linearShape, type Site } from '../nn/site.js'
import type { Parametrization, ParametrizationType, SitePlan } from './parametrization.js'
import { patternValue } from './target_modules.js'

/** Options of {@link lora}: PEFT's names and, but for `target_modules`, its defaults. */
export interface LoraOptions {
  /** Rank; default 8. */
  readonly r?: number
  /** Numerator of the scale; default 8. */
  readonly lora_alpha?: number
  /** Probability of dropping an element of the adapter's input while training; default 0. */
  readonly lora_dropout?: number
  /** Scale alpha/√r instead of alpha/r; default false. */
  readonly use_rslora?: boolean
  /** Names or path ends, a regular expression for whole paths, or "all-linear" (default). */
  readonly target_modules?: string | readonly string[]
  /** Paths to leave out, by the same rules. */
  readonly exclude_modules?: string | readonly string[]
  /** Only modules of these layers; needs a list as `target_modules`. */
  readonly layers_to_transform?: number | readonly number[]
  /** Name of the list that the layer's number follows. */
  readonly layers_pattern?: string | readonly string[]
  /** Other ranks: regular expression for the end of a path → rank; the first that matches counts. */
  readonly rank_pattern?: Readonly<Record<string, number>>
  /** Other numerators of the scale, in the same way. */
  readonly alpha_pattern?: Readonly<Record<string, number>>
  /** Only `none`: biases stay frozen. */
  readonly bias?: 'none'
  /** Only `true`: A uniform on ±1/√in, B zero. */
  readonly init_lora_weights?: true
}

const names = z.union([z.string(), z.array(z.string()).min(1)])
const layer = z.int().min(0)
const configSchema = z.strictObject({
  r: z.int().positive().default(8),
  lora_alpha: z.number().default(8),
  lora_dropout: z.number().min(0).lt(1).default(0),
  use_rslora: z.boolean().default(false),
  target_modules: names.default('all-linear'),
  exclude_modules: names.optional(),
  layers_to_transform: z.union([layer, z.array(layer).min(1)]).optional(),
  layers_pattern: names.optional(),
  rank_pattern: z.record(z.string(), z.int().positive()).optional(),
  alpha_pattern: z.record(z.string(), z.number()).optional(),
  bias: z.literal('none').default('none'),
  init_lora_weights: z.literal(true).default(true),
})

type LoraConfig = z.infer<typeof configSchema>

/**
 * y = W x + s · B A dropout(x), with A `[r, in]` uniform on ±1/√in, B `[out, r]` zero, s = alpha/r (rsLoRA: alpha/√r).
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function lora(options: LoraOptions = {}): Parametrization {
  const config = parseConfig('lora', configSchema, options)
  const { target_modules: targetModules, exclude_modules, layers_to_transform, layers_pattern } = config
  return {
    name: 'lora',
    config,
    targetModules,
    targetFilter: { exclude_modules, layers_to_transform, layers_pattern },
    plan: (site) => planAt(site, config),
  }
}

/** Registry entry. */
export const loraType: ParametrizationType = {
  name: 'lora',
  peftType: 'LORA',
  create: (config, { lenient = false } = {}) => lora((lenient ? knownFields(config) : config) as LoraOptions),
}

function planAt(site: Site, config: LoraConfig): SitePlan {
  const { lora_dropout: p, use_rslora, rank_pattern, alpha_pattern } = config
  const r = patternValue(rank_pattern ?? {}, site.path, 'rank_pattern') ?? config.r
  const alpha = patternValue(alpha_pattern ?? {}, site.path, 'alpha_pattern') ?? config.lora_alpha
  const scale = alpha / (use_rslora ? Math.sqrt(r) : r)
  if (site.kind !== 'linear')
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: `lora: ${site.path}`,
      expected: 'a linear module',
      got: `a module of kind ${site.kind}`,
    })
  const [out, inner] = linearShape(site)
  return {
    parameters: {
      'lora_A.weight': {
        shape: [r, inner],
        init: (seed, stream) => mul(sub(randomUniform(seed, stream, [r, inner]), 0.5), 2 / Math.sqrt(inner)),
      },
      'lora_B.weight': { shape: [out, r], init: () => broadcastTo(constant(0), [out, r]) },
    },
    forward: ({ x, base, parameters, forward, stream }) => {
      const input = forward.training && p > 0 ? dropout(x, p, forward.seed!, stream) : x
      const { precision } = forward
      const inner = matmul(input, read(parameters['lora_A.weight']!), { transposeB: true, precision })
      const update = matmul(inner, read(parameters['lora_B.weight']!), { transposeB: true, alpha: scale, precision })
      return add(base(), update)
    },
    merged: (weight, parameters) => {
      const [a, b] = [read(parameters['lora_A.weight']!), read(parameters['lora_B.weight']!)]
      // B A, or its transpose where the weight is stored [in, out].
      return site.transposed
        ? matmul(a, b, { transposeA: true, transposeB: true, alpha: scale, addend: weight })
        : matmul(b, a, { alpha: scale, addend: weight })
    },
  }
}

/**
 * PEFT writes every field of every variant; those that ask for something else than plain LoRA must not be dropped
 * silently.
 */
function knownFields(config: unknown): Record<string, unknown> {
  const fields = config as Readonly<Record<string, unknown>>
  const known = new Set(Object.keys(configSchema.shape))
  for (const name of ['use_dora', 'lora_bias', 'use_qalora', 'use_bdlora', 'fan_in_fan_out'])
    if (fields[name] === true) unsupported(name, 'true')
  for (const name of ['modules_to_save', 'layer_replication', 'target_parameters', 'trainable_token_indices']) {
    const value = fields[name]
    const isEmpty = value === undefined || value === null || Object.keys(value as object).length === 0
    if (!isEmpty) unsupported(name, JSON.stringify(value))
  }
  const { init_lora_weights: init } = fields
  // The other initialisations change the base model, and the adapter means the changed one.
  if (typeof init === 'string' && !['gaussian', 'orthogonal', 'eva'].includes(init))
    unsupported('init_lora_weights', init)
  const kept = Object.entries(fields).filter(
    ([name, value]) => known.has(name) && name !== 'init_lora_weights' && value !== null,
  )
  return Object.fromEntries(kept)
}

function unsupported(name: string, value: string): never {
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: `adapter_config.json: ${name}`,
    expected: 'a plain LoRA adapter',
    got: value,
  })
}
