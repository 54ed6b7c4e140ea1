/**
 * Compacter (Karimi Mahabadi et al. 2021, arXiv 2106.04647): a bottleneck with a non-linearity behind the attention and
 * the feed-forward part of each block, of matrices that are sums of Kronecker products, of which one factor belongs to
 * all of them.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { add } from '../../graph/ops/elementwise.js'
import { read, type Sym } from '../../graph/sym.js'
import { activationNames, activations } from '../../nn/activation.js'
import { linearShape, type Site } from '../../nn/site.js'
import { seedTensor } from '../../tensor/seed.js'
import type { Tensor } from '../../tensor/tensor.js'
import { rolePattern } from '../block_roles.js'
import { declared, type InitialValue, normal, uniform, zero } from '../initial_values.js'
import type {
  ParameterDeclaration,
  Parametrization,
  ParametrizationType,
  ResolveContext,
  SharedDeclaration,
  SiteContext,
  SitePart,
  SitePlan,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import { type PhmFactors, phmProduct } from './phm.js'

/** Options of {@link compacter}, in the names of the reference code and with the defaults of its configs. */
export interface CompacterOptions extends TargetOptions<'compacter_only'> {
  /** n, the number of Kronecker products in a sum; it divides the module's output and the bottleneck. Default 4. */
  readonly hypercomplex_division?: number
  /** The module's output over the bottleneck, rounded down; default 32. */
  readonly task_reduction_factor?: number
  /** Rank of the fast factors; default 1. */
  readonly phm_rank?: number
  /** One A for the whole model; default true. False: one per projection (PHM adapters). */
  readonly shared_phm_rule?: boolean
  /** B in two factors of rank {@link phm_rank}; default true. */
  readonly factorized_phm?: boolean
  /** A is trained; default true. Only a shared A can be frozen. */
  readonly learn_phm?: boolean
  /** How A begins: normal (default) or uniform. */
  readonly phm_c_init?: 'normal' | 'uniform'
  /** Deviation of a shared, normal A; default 1e-4. */
  readonly phm_init_range?: number
  /** Default gelu_new, GELU by tanh. */
  readonly non_linearity?: (typeof activationNames)[number]
  /** Without `target_modules`: behind attention; default true. False is Compacter++. */
  readonly add_adapter_in_self_attention?: boolean
  /** Without `target_modules`: behind feed-forward parts; default true. */
  readonly add_adapter_in_feed_forward?: boolean
  /** All norms of the model are trained too; default true. */
  readonly unfreeze_layer_norms?: boolean
}

const count = z.int().positive()
const { target_modules, ...otherTargets } = targetFields('compacter_only')
const schema = z.strictObject({
  hypercomplex_division: count.default(4),
  task_reduction_factor: count.default(32),
  phm_rank: count.default(1),
  shared_phm_rule: z.boolean().default(true),
  factorized_phm: z.boolean().default(true),
  learn_phm: z.boolean().default(true),
  phm_c_init: z.enum(['normal', 'uniform']).default('normal'),
  phm_init_range: z.number().positive().default(1e-4),
  non_linearity: z.enum(activationNames).default('gelu_new'),
  add_adapter_in_self_attention: z.boolean().default(true),
  add_adapter_in_feed_forward: z.boolean().default(true),
  unfreeze_layer_norms: z.boolean().default(true),
  target_modules: target_modules.unwrap().optional(),
  ...otherTargets,
})

type Config = z.infer<typeof schema> & { readonly target_modules: string | readonly string[] }

/**
 * y = base(x); output = y + act(y H₁ + b₁) H₂ + b₂ with H₁ `[D, m]`, H₂ `[m, D]`, m = ⌊D / task_reduction_factor⌋ and
 * H = Σᵢ Aᵢ ⊗ sᵢ tᵢ over n terms; A `[n, n, n]` (`phm_rule`) belongs to the whole model. Without `target_modules`: behind
 * the output projections of attention and feed-forward parts, before the residual sum. Numbers: 2 · rank · (D + m) + m +
 * D per module, n³ once, and the norms.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown, out of range or at odds with another
 */
export function compacter(options: CompacterOptions = {}): Parametrization {
  const parsed = parseConfig('compacter', schema, options)
  if (!parsed.learn_phm && !parsed.shared_phm_rule)
    throw misuse('compacter.learn_phm', 'true without shared_phm_rule', 'false')
  const config = { ...parsed, target_modules: parsed.target_modules ?? defaultTargets(parsed) }
  const target = targeting(config)
  const method: Parametrization = {
    name: 'compacter',
    config,
    ...target,
    trainedParts: (site, isTarget) =>
      config.unfreeze_layer_norms && site.kind === 'norm' ? wholeOf(site) : target.trainedParts!(site, isTarget),
    shared: () => (config.shared_phm_rule ? { [rule]: sharedRule(config) } : {}),
    plan: (site) => planAt(site, config),
    async resolve(context) {
      expectNorms(config, context)
      return method
    },
  }
  return method
}

/** Registry entry. */
export const compacterType: ParametrizationType = {
  name: 'compacter',
  peftType: 'COMPACTER',
  isPeft: false,
  title: 'Compacter',
  source: 'Karimi Mahabadi et al. 2021, arXiv 2106.04647',
  purpose: 'very small task modules with a non-linearity, and the norms; stays beside the weights',
  initialChange: 'rounding',
  create: (config) => compacter(config as CompacterOptions),
  restore: (stored) => compacter(storedFields(schema, stored) as CompacterOptions),
}

const rule = 'phm_rule'

/** The output projections of the parts that the config names. */
function defaultTargets({
  add_adapter_in_self_attention: attention,
  add_adapter_in_feed_forward: feedForward,
}: z.infer<typeof schema>): string {
  if (!attention && !feedForward)
    throw misuse('compacter.add_adapter_in_feed_forward', 'true, or adapters behind attention', 'neither')
  return rolePattern([
    ...(attention ? (['attention_output'] as const) : []),
    ...(feedForward ? (['down'] as const) : []),
  ])
}

const wholeOf = ({ bias }: Site): readonly SitePart[] => (bias ? ['weight', 'bias'] : ['weight'])

function expectNorms(config: Config, { network }: ResolveContext): void {
  if (!config.unfreeze_layer_norms || [...network.sites.values()].some(({ kind }) => kind === 'norm')) return
  throw misuse('compacter.unfreeze_layer_norms', 'false for a network without norms', 'true')
}

/** What decides everything at one site. */
interface Settings {
  readonly config: Config
  /** Width of the module's output. */
  readonly width: number
  readonly bottleneck: number
}

function planAt(site: Site, config: Config): SitePlan {
  if (site.kind !== 'linear') throw unsuited('compacter', site, 'a linear module', `a ${site.kind} module`)
  const [width] = linearShape(site)
  const { hypercomplex_division: n, task_reduction_factor: factor } = config
  const bottleneck = Math.floor(width / factor)
  if (bottleneck === 0)
    throw unsuited('compacter', site, `task_reduction_factor of at most ${width}, the module's output`, `${factor}`)
  if (width % n !== 0 || bottleneck % n !== 0)
    throw unsuited('compacter', site, `a hypercomplex_division of both ${width} and ${bottleneck}`, `${n}`)
  const settings = { config, width, bottleneck }
  return {
    parameters: {
      ...projection(config, 'down_sampler', width, bottleneck),
      ...projection(config, 'up_sampler', bottleneck, width),
    },
    forward: (context) => forward(settings, context),
    unmergeable: 'There is a non-linearity between its two matrices: no weight of the module computes the same.',
  }
}

type Sampler = 'down_sampler' | 'up_sampler'

/** The parameters of y ↦ y H + b, in to out features. */
function projection(config: Config, name: Sampler, inner: number, out: number): Record<string, ParameterDeclaration> {
  const { hypercomplex_division: n, phm_rank: rank, factorized_phm, shared_phm_rule } = config
  return {
    ...(shared_phm_rule ? {} : { [`${name}.${rule}`]: ownRule(config) }),
    ...(factorized_phm
      ? { [`${name}.W_left`]: glorot([n, inner / n, rank]), [`${name}.W_right`]: glorot([n, rank, out / n]) }
      : { [`${name}.W`]: glorot([n, inner / n, out / n]) }),
    [`${name}.b`]: declared([out], zero),
  }
}

/** Uniform on ±√2 · √(6 / (a + b)), each matrix `[a, b]` by itself. */
function glorot(shape: readonly [number, number, number]): ParameterDeclaration {
  const bound = Math.SQRT2 * Math.sqrt(6 / (shape[1] + shape[2]))
  return declared(shape, uniform(bound))
}

/** An A of the whole model: as small as the config says, or uniform on ±1. */
function sharedRule(config: Config): SharedDeclaration {
  const shape = ruleShape(config)
  const value = ruleValues(config, { deviation: config.phm_init_range, bound: 1 })
  return {
    shape,
    isTrained: config.learn_phm,
    async make({ seed, stream }) {
      using words = seedTensor(seed)
      return await computed((s) => value(shape, { seed: s!, stream }), [words])
    },
  }
}

/** An A of one projection: the reference code's fixed sizes. */
const ownRule = (config: Config): ParameterDeclaration =>
  declared(ruleShape(config), ruleValues(config, { deviation: 0.01, bound: 0.01 }))

const ruleShape = ({ hypercomplex_division: n }: Config): readonly number[] => [n, n, n]

const ruleValues = (
  { phm_c_init }: Config,
  { deviation, bound }: { readonly deviation: number; readonly bound: number },
): InitialValue => (phm_c_init === 'normal' ? normal(deviation) : uniform(bound))

function forward({ config }: Settings, { base, parameters, forward: { precision } }: SiteContext): Sym {
  const through = (x: Sym, name: Sampler): Sym =>
    add(phmProduct(x, factorsOf(config, name, parameters), { precision }), read(parameters[`${name}.b`]!))
  const y = base()
  const z = activations[config.non_linearity](through(y, 'down_sampler'))
  return add(y, through(z, 'up_sampler'))
}

function factorsOf(config: Config, name: Sampler, parameters: Readonly<Record<string, Tensor>>): PhmFactors {
  const at = (part: string): Sym => read(parameters[`${name}.${part}`]!)
  return {
    rule: config.shared_phm_rule ? read(parameters[rule]!) : at(rule),
    fast: config.factorized_phm ? [at('W_left'), at('W_right')] : at('W'),
  }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
