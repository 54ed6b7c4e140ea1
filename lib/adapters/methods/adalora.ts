/** AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) as PEFT has it: ΔW = P Λ Q, with ranks that training hands out. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { add, broadcastTo, constant, div, maximum, mul, sqrt, square, sub } from '../../graph/ops/elementwise.js'
import { indexSelect } from '../../graph/ops/gather.js'
import { concat, copy } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { identityLike } from '../../graph/ops/matrices.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { dropped, type Site } from '../../nn/site.js'
import { type Tensor, tensor, zeros } from '../../tensor/tensor.js'
import { declared, normal, zero } from '../initial_values.js'
import { changeOutput } from '../low_rank_change.js'
import type {
  AttachedSite,
  Factors,
  MergeContext,
  ParameterDeclaration,
  Parametrization,
  ParametrizationType,
  SiteContext,
  SitePlan,
  Written,
} from '../parametrization.js'
import { type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import { allocating } from './adalora_allocation.js'
import { expectPlainLora } from './lora_config.js'
import { type LoraShape, shapeAt, weightChange } from './lora_site.js'

/** Options of {@link adalora}: PEFT's names and, but for `target_modules` and `total_step`, its defaults. */
export interface AdaLoraOptions extends TargetOptions<'lora_only'> {
  /** Ranks per module at the end, on average. Default 8. */
  readonly target_r?: number
  /** Rank of every module at the start. Default 12. */
  readonly init_r?: number
  /** Steps before the first rank is taken. Default 0. */
  readonly tinit?: number
  /** Steps at the end in which ranks stay as they are. Default 0. */
  readonly tfinal?: number
  /** Steps from one allocation to the next. Default 1. */
  readonly deltaT?: number
  /** Smoothing of the importance. Default 0.85. */
  readonly beta1?: number
  /** Smoothing of its uncertainty. Default 0.85. */
  readonly beta2?: number
  /** Weight of the term that keeps P and Q orthogonal. Default 0.5. */
  readonly orth_reg_weight?: number
  /** Steps that the schedule is made for; default: those of the run. */
  readonly total_step?: number
  /** Which rows of `init_r` a module still has, by `<path>.lora_E`: what a trained adapter's folder holds. */
  readonly rank_pattern?: Readonly<Record<string, readonly boolean[]>>
  /** Numerator of the scale `lora_alpha / init_r`; 0 for the scale 1. Default 8. */
  readonly lora_alpha?: number
  /** Probability of dropping an element of the adapter's input while training; default 0. */
  readonly lora_dropout?: number
  /** Kept for PEFT's sake: a module here knows by itself how its weight is stored. */
  readonly fan_in_fan_out?: boolean
  /** False begins with normal numbers everywhere: not the identity. Default true. */
  readonly init_lora_weights?: boolean
}

const schema = z.strictObject({
  target_r: z.int().positive().default(8),
  init_r: z.int().positive().default(12),
  tinit: z.int().min(0).default(0),
  tfinal: z.int().min(0).default(0),
  deltaT: z.int().positive().default(1),
  beta1: z.number().gt(0).lt(1).default(0.85),
  beta2: z.number().gt(0).lt(1).default(0.85),
  orth_reg_weight: z.number().min(0).default(0.5),
  total_step: z.int().positive().optional(),
  rank_pattern: z.record(z.string(), z.array(z.boolean())).optional(),
  lora_alpha: z.number().default(8),
  lora_dropout: z.number().min(0).lt(1).default(0),
  ...targetFields('lora_only'),
  fan_in_fan_out: z.boolean().default(false),
  init_lora_weights: z.boolean().default(true),
})

/** {@link AdaLoraOptions} with the defaults filled in. */
export type AdaLoraConfig = z.infer<typeof schema>

/**
 * y = W x + s · B (E ⊙ A dropout(x)) with A `[r, in]`, E `[r, 1]`, B `[out, r]` and s = lora_alpha / (init_r + 1e-5), whatever
 * of r is left. While it is trained: a term that keeps A and B orthogonal is added to the loss, and entries of E become 0
 * where a triplet (b_k, E_k, a_k) matters least among those of all modules, until `target_r` per module are left.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown, out of range or at odds with another
 */
export function adalora(options: AdaLoraOptions = {}): Parametrization {
  const config = parseConfig('adalora', schema, options)
  const { target_r: target, init_r: init, total_step: total } = config
  if (target > init) throw misuse('target_r', `at most init_r, ${init}`, `${target}`)
  if (total !== undefined && config.tinit >= total - config.tfinal)
    throw misuse('total_step', `more than tinit + tfinal, ${config.tinit + config.tfinal}`, `${total}`)
  return {
    name: 'adalora',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config),
    penalty: (sites) => mul(orthogonality(sites), config.orth_reg_weight),
    optimizer: (inner, context) => allocating(inner, context, config),
    written: (sites) => withoutPruned(sites, config),
  }
}

/** Registry entry. */
export const adaloraType: ParametrizationType = {
  name: 'adalora',
  peftType: 'ADALORA',
  isPeft: true,
  title: 'AdaLoRA',
  source: 'Zhang et al. 2023, arXiv 2303.10512',
  purpose: 'a fixed budget of parameters that goes to the modules that need it',
  initialChange: 'none',
  create: (config) => adalora(config as AdaLoraOptions),
  restore: (stored) => adalora(storedOptions(stored)),
}

/** What is written for an adapter that was never trained to a schedule: PEFT reads no folder without a number. */
const unknownSteps = 2 ** 31 - 1

/** PEFT writes every field of LoRA too, of which AdaLoRA reads these. */
function storedOptions(stored: Readonly<Record<string, unknown>>): AdaLoraOptions {
  expectPlainLora(stored, ['use_dora'])
  const known = Object.entries(stored).filter(([name, value]) => name in schema.shape && value !== null)
  const { total_step: total, init_lora_weights: init, ...rest } = Object.fromEntries(known)
  return {
    ...rest,
    ...(total === undefined || total === unknownSteps ? {} : { total_step: total as number }),
    // Every true value of PEFT's is the one initialisation there is.
    init_lora_weights: init !== false,
  }
}

const names = { a: 'lora_A', e: 'lora_E', b: 'lora_B' } as const

interface Triplets {
  readonly a: Sym
  readonly e: Sym
  readonly b: Sym
}

const tripletsOf = (parameters: MergeContext['parameters']): Triplets => ({
  a: read(parameters[names.a]!),
  e: read(parameters[names.e]!),
  b: read(parameters[names.b]!),
})

function planAt(site: Site, config: AdaLoraConfig): SitePlan {
  const shape = shapeAt(site)
  if (!shape || shape.kind === 'embedding')
    throw unsuited('adalora', site, 'a linear or convolution module', `a ${site.kind} module`)
  if (shape.groups > 1) throw unsuited('adalora', site, 'a convolution without groups', `${shape.groups}`)
  const r = config.rank_pattern?.[`${site.path}.${names.e}`]?.filter((isKept) => isKept).length ?? config.init_r
  const scale = (config.lora_alpha > 0 ? config.lora_alpha : config.init_r) / (config.init_r + 1e-5)
  const declare = (dims: readonly number[], deviation: number): ParameterDeclaration => {
    const spread = config.init_lora_weights ? deviation : 1
    return declared(dims, spread === 0 || r === 0 ? zero : normal(spread))
  }
  return {
    parameters: {
      [names.a]: declare([r, shape.inner], 0.02),
      [names.e]: declare([r, 1], 0),
      [names.b]: declare([shape.out, r], 0.02),
    },
    forward: (context) => (r === 0 ? context.base() : add(context.base(), update(context, scale, config.lora_dropout))),
    merged: ({ weight, parameters }) => ({ weight: r === 0 ? copy(weight) : merged(shape, weight, parameters, scale) }),
    ...(shape.kind === 'linear' ? { factors: ({ parameters }) => factors(shape, r, parameters, scale) } : {}),
  }
}

/** s · B (E ⊙ A x) */
function update({ site, x, parameters, forward, stream }: SiteContext, scale: number, rate: number): Sym {
  const { a, e, b } = tripletsOf(parameters)
  return changeOutput(site, dropped(x, rate, forward, stream), { left: b, right: mul(a, e), scale }, forward)
}

/** W + s B (E ⊙ A) as the weight is stored. */
function merged(shape: LoraShape, weight: Sym, parameters: MergeContext['parameters'], scale: number): Sym {
  const { a, e, b } = tripletsOf(parameters)
  return add(weight, reshape(weightChange(shape, mul(a, e), b, scale), weight.shape))
}

/** A module that has lost all its ranks still has a LoRA of rank 1, which adds nothing. */
function factors({ out, inner }: LoraShape, r: number, parameters: MergeContext['parameters'], scale: number): Factors {
  if (r === 0) return { a: broadcastTo(constant(0), [1, inner]), b: broadcastTo(constant(0), [out, 1]) }
  const { a, e, b } = tripletsOf(parameters)
  return { a: mul(a, e), b: mul(b, scale) }
}

/** The mean over all A and B of ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖, not squared, as PEFT and the authors' code have it. */
function orthogonality(sites: readonly AttachedSite[]): Sym {
  const one = new Map<number, Sym>()
  const squares = sites.flatMap(({ parameters }) => {
    const [a, b] = [parameters[names.a]!, parameters[names.b]!]
    const r = a.shape[0]!
    // A module without ranks counts, with 0.
    if (r === 0) return []
    const identity = one.get(r) ?? identityLike(r, read(a))
    one.set(r, identity)
    const grams = [matmul(read(a), read(a), { transposeB: true }), matmul(read(b), read(b), { transposeA: true })]
    return grams.map((gram) => reshape(sum(square(sub(gram, identity))), [1]))
  })
  if (squares.length === 0) return constant(0)
  // Below 1e-15, where a root has no slope, a norm is a constant.
  return div(sum(sqrt(maximum(concat(squares), 1e-30))), 2 * sites.length)
}

/**
 * The rows whose E is 0 add nothing and are left out, as in PEFT's folders; `rank_pattern` says which. An adapter none of
 * whose E has moved is written whole, so that it can be trained.
 */
async function withoutPruned(sites: readonly AttachedSite[], config: AdaLoraConfig): Promise<Written> {
  const steps = { total_step: config.total_step ?? unknownSteps }
  const kept = new Map<AttachedSite, number[]>()
  for (const each of sites) {
    const e = (await each.parameters[names.e]!.data()) as Float32Array
    kept.set(
      each,
      [...e.keys()].filter((k) => e[k] !== 0),
    )
  }
  const isTrained = [...kept.values()].some((rows) => rows.length > 0)
  const isPruned = sites.some((each) => kept.get(each)!.length < each.parameters[names.e]!.shape[0]!)
  if (!isTrained || !(isPruned || config.rank_pattern)) return { config: { ...config, ...steps }, tensors: new Map() }
  const tensors = new Map<string, Tensor>()
  const pattern: Record<string, boolean[]> = {}
  for (const [each, rows] of kept) {
    const { path } = each.site
    pattern[`${path}.${names.e}`] = maskOf(config.rank_pattern?.[`${path}.${names.e}`], rows, config.init_r)
    for (const [name, value] of await rowsOf(each, rows)) tensors.set(`${path}.${name}`, value)
  }
  return { config: { ...config, ...steps, rank_pattern: pattern }, tensors }
}

/** Which of the `init_r` rows are left, where those of an earlier mask are numbered anew. */
function maskOf(earlier: readonly boolean[] | undefined, rows: readonly number[], size: number): boolean[] {
  const whole = earlier ?? new Array<boolean>(size).fill(true)
  const places = [...whole.keys()].filter((k) => whole[k])
  const left = new Set(rows.map((row) => places[row]))
  return whole.map((_, k) => left.has(k))
}

/** These rows of the triplets. */
async function rowsOf({ parameters }: AttachedSite, rows: readonly number[]): Promise<[string, Tensor][]> {
  const axes = { [names.a]: 0, [names.e]: 0, [names.b]: 1 }
  if (rows.length === 0)
    return Object.entries(axes).map(([name, axis]) => [name, zeros(parameters[name]!.shape.with(axis, 0))])
  using index = tensor(Int32Array.from(rows))
  const found = await computed(
    (chosen) =>
      Object.fromEntries(
        Object.entries(axes).map(([name, axis]) => [name, indexSelect(read(parameters[name]!), axis, chosen!)]),
      ),
    [index],
  )
  return Object.entries(found)
}

const misuse = (field: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `adalora.${field}`, expected, got })
