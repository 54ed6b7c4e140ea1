/**
 * DiffoRA (Jiang, Wang, Yuan 2025, arXiv 2502.08905): learns from held-out data which modules get a LoRA of their own; the
 * others share one pair per type. There is no public code: what the paper does not say is an option here.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { linearShape, type Site } from '../../nn/site.js'
import { seedTensor } from '../../tensor/seed.js'
import type { Tensor } from '../../tensor/tensor.js'
import type { Parametrization, ParametrizationType, SharedDeclaration, SitePlan } from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import { type DifforaSearch, placeInLayer, searchGates } from './diffora_search.js'
import { lora } from './lora.js'

/** Options of {@link diffora}. */
export interface DifforaOptions extends TargetOptions<'diffora_only'> {
  /** Rank; default 8. */
  readonly r?: number
  /** Numerator of the scale alpha / r; default 16. */
  readonly lora_alpha?: number
  /** What makes a gate of θ: `sigmoid` (default), or `softmax` over a layer times its modules. */
  readonly relaxation?: 'sigmoid' | 'softmax'
  /** Largest gates of each layer (`per-layer`, default), of all layers (`global`), or those above their start (`threshold`). */
  readonly select?: 'per-layer' | 'global' | 'threshold'
  /** Share of the modules that are chosen; default 0.5. */
  readonly ratio?: number
  /** The modules that are not chosen share one pair of factors per type (`per-type`, default), or have none. */
  readonly share?: 'per-type' | 'none'
  /** Rank of the shared pairs; default {@link r}. */
  readonly share_r?: number
  /** Steps of the search, each a step of the LoRAs and one of the gates; default 100. */
  readonly search_steps?: number
  /** Steps of the search without the gates; default a tenth of them. */
  readonly warmup_steps?: number
  /** Learning rate of the LoRAs in the search; default 1e-3. */
  readonly lr_w?: number
  /** Learning rate of the gates; default 1e-2. */
  readonly lr_theta?: number
  /** Share of the batches that is held out for the gates; default 0.5. */
  readonly valid_fraction?: number
  /** Ranks modules by gate · ‖B A‖ instead of the gate; default false. */
  readonly normalise?: boolean
  /** What a search found before: there is none then. */
  readonly search?: DifforaSearch
}

const count = z.int().positive()
const rate = z.number().positive()
const matrixOf = <T extends z.ZodType>(entry: T) => z.array(z.array(z.nullable(entry)).min(1)).min(1)
const schema = z.strictObject({
  r: count.default(8),
  lora_alpha: z.number().default(16),
  relaxation: z.enum(['sigmoid', 'softmax']).default('sigmoid'),
  select: z.enum(['per-layer', 'global', 'threshold']).default('per-layer'),
  ratio: z.number().gt(0).max(1).default(0.5),
  share: z.enum(['per-type', 'none']).default('per-type'),
  share_r: count.optional(),
  search_steps: count.default(100),
  warmup_steps: z.int().min(0).optional(),
  lr_w: rate.default(1e-3),
  lr_theta: rate.default(1e-2),
  valid_fraction: z.number().gt(0).lt(1).default(0.5),
  normalise: z.boolean().default(false),
  search: z
    .strictObject({
      layers: z.array(z.string()).min(1),
      modules: z.array(z.string()).min(1),
      theta: matrixOf(z.number()),
      gamma: matrixOf(z.union([z.literal(0), z.literal(1)])),
    })
    .optional(),
  ...targetFields('diffora_only'),
})

type Config = z.infer<typeof schema>

/**
 * Search: y = base(x) + γ s B A x at every candidate, γ a gate per layer and module type; A and B are trained on one part of the
 * batches, the gates on the other, in turns. Then γ becomes 0 or 1, and fresh factors are attached: where it is 1,
 * y = base(x) + s B A x; where it is 0, y = base(x) + s B′ A′ x with one pair per module type for all layers, or nothing.
 * Numbers: r (in + out) per chosen module, share_r (in + out) per type of which some module is not chosen.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown, out of range or at odds with another
 */
export function diffora(options: DifforaOptions = {}): Parametrization {
  const parsed = parseConfig('diffora', schema, options)
  const config = { ...parsed, warmup_steps: parsed.warmup_steps ?? Math.floor(parsed.search_steps / 10) }
  if (config.warmup_steps >= config.search_steps)
    throw misuse('diffora.warmup_steps', `fewer than ${config.search_steps} search_steps`, `${config.warmup_steps}`)
  if (config.normalise && config.select === 'threshold')
    throw misuse('diffora.normalise', 'false with the threshold, which is one of gates', 'true')
  if (config.search) return discretised(config, config.search)
  const pair = lora({ r: config.r, lora_alpha: config.lora_alpha })
  return {
    name: 'diffora',
    config,
    ...targeting(config),
    // Before the search every candidate has a LoRA; only the number of them is of interest then.
    plan: (site) => planOf(pair, site),
    async resolve(context) {
      for (const site of context.sites) planOf(pair, site)
      return discretised(config, await searchGates(config, pair, context))
    },
  }
}

/** Registry entry. */
export const difforaType: ParametrizationType = {
  name: 'diffora',
  peftType: 'DIFFORA',
  isPeft: false,
  title: 'DiffoRA',
  source: 'Jiang, Wang, Yuan 2025, arXiv 2502.08905',
  purpose: 'finds out on held-out data which modules a LoRA should be at',
  initialChange: 'none',
  create: (config) => diffora(config as DifforaOptions),
  restore: (stored) => diffora(storedFields(schema, stored) as DifforaOptions),
}

/** The method with a LoRA at the chosen modules, and shared pairs at the others. */
function discretised(config: Config, search: DifforaSearch): Parametrization {
  const chosen = pathsWith(search, 1)
  const others = config.share === 'none' ? [] : pathsWith(search, 0)
  const found = { ...config, search, target_modules: [...chosen, ...others] }
  const own = lora({ r: config.r, lora_alpha: config.lora_alpha })
  const rank = config.share_r ?? config.r
  const common = lora({ r: rank, lora_alpha: (config.lora_alpha / config.r) * rank })
  const isShared = new Set(others)
  return {
    name: 'diffora',
    config: found,
    ...targeting(found),
    plan: (site) => (isShared.has(site.path) ? sharedPlan(common, site) : planOf(own, site)),
    shared: (sites) =>
      sharedPairs(
        sites.filter(({ path }) => isShared.has(path)),
        common,
      ),
  }
}

function pathsWith({ layers, modules, gamma }: DifforaSearch, value: 0 | 1): string[] {
  if (gamma.length !== layers.length || gamma.some((row) => row.length !== modules.length))
    throw misuse(
      'diffora.search.gamma',
      `[${layers.length}, ${modules.length}] entries`,
      `${gamma.map((row) => row.length)}`,
    )
  return layers.flatMap((layer, l) =>
    modules.flatMap((module, n) => (gamma[l]![n] === value ? [`${layer}.${module}`] : [])),
  )
}

/** LoRA's plan at a linear module. */
function planOf(pair: Parametrization, site: Site): SitePlan {
  if (site.kind !== 'linear') throw unsuited('diffora', site, 'a linear module', `a ${site.kind} module`)
  return pair.plan(site)
}

const pairNames = ['lora_A.weight', 'lora_B.weight'] as const

/** Name of a factor that the modules of a type share. */
const sharedName = (module: string, name: string): string => `shared.${module}.${name}`

/** LoRA with the factors of the module's type. */
function sharedPlan(common: Parametrization, site: Site): SitePlan {
  const plan = planOf(common, site)
  const { module } = placeInLayer(site.path)!
  const own = (parameters: Readonly<Record<string, Tensor>>): Record<string, Tensor> =>
    Object.fromEntries(pairNames.map((name) => [name, parameters[sharedName(module, name)]!]))
  return {
    parameters: {},
    forward: (context) => plan.forward({ ...context, parameters: own(context.parameters) }),
    merged: (context) => plan.merged!({ ...context, parameters: own(context.parameters) }),
    factors: (attached) => plan.factors!({ ...attached, parameters: own(attached.parameters) }),
  }
}

/** One pair per type. @throws ERR_HEDDLE_ARGUMENT when modules of one type have several shapes */
function sharedPairs(sites: readonly Site[], common: Parametrization): Record<string, SharedDeclaration> {
  const declared: Record<string, SharedDeclaration> = {}
  const shapes = new Map<string, string>()
  for (const site of sites) {
    const { module } = placeInLayer(site.path)!
    const shape = `[${linearShape(site)}]`
    const known = shapes.get(module)
    if (known === shape) continue
    if (known) throw unsuited('diffora', site, `share none, or the shape ${known} of the others`, shape)
    shapes.set(module, shape)
    for (const [name, { shape: dims, init }] of Object.entries(planOf(common, site).parameters))
      declared[sharedName(module, name)] = {
        shape: dims,
        isTrained: true,
        async make({ seed, stream }) {
          using words = seedTensor(seed)
          const none = (): never => {
            throw misuse('diffora', 'initial values without the weight', 'others')
          }
          return await computed((s) => init!({ seed: s!, stream, weight: none, values: {} }), [words])
        },
      }
  }
  return declared
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
