/** LoRA's configuration: PEFT's fields, what each may be, and how a PEFT folder's config becomes one. */
import { z } from 'zod'
import { computed } from '../../graph/computed.js'
import { read, type Sym } from '../../graph/sym.js'
import type { Tensor } from '../../tensor/tensor.js'
import type { AttachedSite, Written } from '../parametrization.js'
import { isEmpty, type TargetOptions, targetFields, unsupported } from '../targeting.js'
import { stacked } from './lora_init.js'

/** How A and B begin. Those of the second line change the weight that the adapter works on. */
export type LoraInit = boolean | 'gaussian' | 'orthogonal' | 'pissa' | `pissa_niter_${number}` | 'olora'

/** Options of {@link lora}: PEFT's names and, but for `target_modules`, its defaults. */
export interface LoraOptions extends TargetOptions<'lora_only'> {
  /** Rank; default 8. */
  readonly r?: number
  /** Numerator of the scale; default 8. */
  readonly lora_alpha?: number
  /** Probability of dropping an element of the adapter's input while training; default 0. Embeddings have no dropout. */
  readonly lora_dropout?: number
  /** Scale alpha/√r instead of alpha/r; default false. */
  readonly use_rslora?: boolean
  /** Weight-decomposed: trains the length of each row of the weight apart from its direction; default false. */
  readonly use_dora?: boolean
  /** Other ranks: regular expression for the end of a path → rank; the first that matches counts. */
  readonly rank_pattern?: Readonly<Record<string, number>>
  /** Other numerators of the scale, in the same way. */
  readonly alpha_pattern?: Readonly<Record<string, number>>
  /** B gets a bias of its own; default false. Not with `use_dora`, and not at embeddings. */
  readonly lora_bias?: boolean
  /** Kept for PEFT's sake: a module here knows by itself how its weight is stored. */
  readonly fan_in_fan_out?: boolean
  /**
   * `true` (default): A uniform on ±1/√in, B zero (embeddings: A zero, B normal). `false`: both random. `gaussian`: A
   * normal with deviation 1/r, B zero. `orthogonal`: both random with B A = 0, for even r. `pissa`, `pissa_niter_<n>`:
   * the leading singular vectors of the weight, exactly or by n subspace iterations; `olora`: its QR factors; these
   * three leave the rest of the weight as what the adapter works on.
   */
  readonly init_lora_weights?: LoraInit
}

const initialisation = z.custom<LoraInit>(
  (value) =>
    typeof value === 'boolean' ||
    (typeof value === 'string' && /^(?:gaussian|orthogonal|olora|pissa(?:_niter_\d{1,3})?)$/u.test(value)),
  { error: 'true, false, "gaussian", "orthogonal", "pissa", "pissa_niter_<n>" or "olora"' },
)

export const loraSchema = z.strictObject({
  r: z.int().positive().default(8),
  lora_alpha: z.number().default(8),
  lora_dropout: z.number().min(0).lt(1).default(0),
  use_rslora: z.boolean().default(false),
  use_dora: z.boolean().default(false),
  ...targetFields('lora_only'),
  rank_pattern: z.record(z.string(), z.int().positive()).optional(),
  alpha_pattern: z.record(z.string(), z.number()).optional(),
  lora_bias: z.boolean().default(false),
  fan_in_fan_out: z.boolean().default(false),
  init_lora_weights: initialisation.default(true),
})

/** {@link LoraOptions} with the defaults filled in. */
export type LoraConfig = z.infer<typeof loraSchema>

/** True when the initialisation leaves the adapter a weight of its own to work on. */
export const changesBase = ({ init_lora_weights: init }: LoraConfig): boolean =>
  typeof init === 'string' && (init.startsWith('pissa') || init === 'olora')

/**
 * The same change of the original weight as a plain LoRA of twice the rank: with W = R + s B₀A₀ and the trained A and
 * B, R + s B A = W + s [B, −B₀] [A; A₀]. The scale stays: alpha grows with the rank.
 */
export async function plainForm(config: LoraConfig, sites: readonly AttachedSite[]): Promise<Written> {
  const growth = config.use_rslora ? Math.SQRT2 : 2
  const { rank_pattern: ranks, alpha_pattern: alphas } = config
  const tensors = new Map<string, Tensor>()
  for (const { site, parameters, initial } of sites) {
    if (!initial) continue
    const values = await computed(() => stacked(readAll(parameters), readAll(initial)))
    for (const [name, value] of Object.entries(values)) tensors.set(`${site.path}.${name}`, value)
  }
  return {
    config: {
      ...config,
      init_lora_weights: true,
      r: 2 * config.r,
      lora_alpha: growth * config.lora_alpha,
      ...(ranks ? { rank_pattern: scaled(ranks, 2) } : {}),
      ...(alphas ? { alpha_pattern: scaled(alphas, growth) } : {}),
    },
    tensors,
  }
}

const readAll = (tensors: Readonly<Record<string, Tensor>>): Record<string, Sym> =>
  Object.fromEntries(Object.entries(tensors).map(([name, value]) => [name, read(value)]))

const scaled = (values: Readonly<Record<string, number>>, factor: number): Record<string, number> =>
  Object.fromEntries(Object.entries(values).map(([key, value]) => [key, factor * value]))

/** Fields of PEFT's variants that ask for another method than this one. */
const otherMethods = [
  'use_qalora',
  'use_bdlora',
  'layer_replication',
  'target_parameters',
  'trainable_token_indices',
  'arrow_config',
  'alora_invocation_tokens',
  'kasa_config',
  'monteclora_config',
  'velora_config',
  'ensure_weight_tying',
]

/** Initialisations after which the adapter means a base that cannot be made again from the original one. */
const lostBases = /^(?:loftq|corda|lora_ga|pissa_niter_\d+)$/u

/**
 * The fields of a PEFT folder's config that concern this method. PEFT writes every field of every variant; one that
 * asks for something else must not be dropped silently.
 * @throws ERR_HEDDLE_FORMAT naming the field
 */
export function knownFields(fields: Readonly<Record<string, unknown>>): Record<string, unknown> {
  expectPlainLora(fields)
  const known = new Set(Object.keys(loraSchema.shape))
  const kept = Object.entries(fields).filter(
    ([name, value]) => known.has(name) && name !== 'init_lora_weights' && value !== null,
  )
  return { ...Object.fromEntries(kept), init_lora_weights: storedInit(fields.init_lora_weights) }
}

/** @throws ERR_HEDDLE_FORMAT naming a field that asks for a variant of LoRA that is not here, or one of `others` */
export function expectPlainLora(fields: Readonly<Record<string, unknown>>, others: readonly string[] = []): void {
  for (const name of [...otherMethods, ...others]) {
    const value = fields[name]
    if (value !== false && !isEmpty(value)) throw unsupported(name, 'a plain LoRA adapter', JSON.stringify(value))
  }
}

/** Kept where it is known here; of others only those matter that changed the base: the file has A and B. */
function storedInit(value: unknown): LoraInit {
  const init = typeof value === 'string' ? value.toLowerCase() : value
  if (typeof init === 'string' && lostBases.test(init))
    throw unsupported(
      'init_lora_weights',
      'an adapter for the original base; PEFT makes one with path_initial_model_for_weight_conversion',
      init,
    )
  const known = initialisation.safeParse(init)
  return known.success ? known.data : true
}
