/** (IA)³ (Liu et al. 2022, arXiv 2205.05638) as PEFT has it: one number per channel, on the way in or on the way out. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { broadcastTo, mul } from '../../graph/ops/elementwise.js'
import { reshape } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { linearShape, type Site } from '../../nn/site.js'
import { declared, filled, normal } from '../initial_values.js'
import type { AttachedSite, Parametrization, ParametrizationType, SitePlan } from '../parametrization.js'
import { escaped, wholePath } from '../target_modules.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link ia3}: PEFT's names and, but for `target_modules`, its defaults. */
export interface Ia3Options extends Omit<TargetOptions, 'bias'> {
  /**
   * Ends of paths, or a regular expression for whole paths, of the modules whose input is scaled; of the others it is the
   * output. Default: what the paper and PEFT scale so in this architecture, the last module of each feed-forward block.
   */
  readonly feedforward_modules?: string | readonly string[]
  /** Kept for PEFT's sake: a module here knows by itself how its weight is stored. */
  readonly fan_in_fan_out?: boolean
  /** False begins with normal numbers instead of ones; default true. */
  readonly init_ia3_weights?: boolean
}

const { bias: _, ...chosen } = targetFields('none')
const schema = z.strictObject({
  ...chosen,
  feedforward_modules: z.union([z.string(), z.array(z.string())]).optional(),
  fan_in_fan_out: z.boolean().default(false),
  init_ia3_weights: z.boolean().default(true),
})
type Ia3Config = z.infer<typeof schema>

/**
 * y = l ⊙ (W x + b) with l `[out]` trained, or, at feed-forward modules, y = W (l ⊙ x) + b with l `[in]`. Convolutions
 * are scaled by channel.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function ia3(options: Ia3Options = {}): Parametrization {
  const config = parseConfig('ia3', schema, options)
  const { feedforward_modules: feedforward } = config
  return {
    name: 'ia3',
    config,
    ...targeting({ ...config, bias: 'none' }),
    plan: (site) => planAt(site, config),
    written: async (sites) => ({ config: peftConfig(config, sites), tensors: new Map() }),
    ...(feedforward === undefined
      ? {
          resolve: async ({ network }) => ia3({ ...options, feedforward_modules: feedforwardOf(network.architecture) }),
        }
      : {}),
  }
}

/** Registry entry. */
export const ia3Type: ParametrizationType = {
  name: 'ia3',
  peftType: 'IA3',
  isPeft: true,
  title: '(IA)³',
  source: 'Liu et al. 2022, arXiv 2205.05638',
  purpose: 'the fewest parameters: one number per channel, for small changes from few examples',
  initialChange: 'none',
  create: (config) => ia3(config as Ia3Options),
  restore: (stored) => ia3({ feedforward_modules: [], ...storedFields(schema, stored) } as Ia3Options),
}

/** PEFT's TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING, for the architectures there are here. */
const feedforwardModules: Readonly<Record<string, readonly string[]>> = {
  bert: ['output.dense'],
  roberta: ['output.dense'],
  'xlm-roberta': ['output.dense'],
  distilbert: ['lin2'],
  gemma: ['down_proj'],
  gemma2: ['down_proj'],
  gemma3_text: ['down_proj'],
  gpt2: ['mlp.c_proj'],
  gpt_neox: ['dense_4h_to_h'],
  llama: ['down_proj'],
  mistral: ['down_proj'],
  opt: ['fc2'],
  phi: ['fc2'],
  phi3: ['down_proj'],
  qwen2: ['down_proj'],
  qwen3: ['down_proj'],
}

function feedforwardOf(architecture: string): readonly string[] {
  const known = feedforwardModules[architecture]
  if (known) return known
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'ia3.feedforward_modules',
    expected: `names of modules, or an architecture of ${Object.keys(feedforwardModules).join(', ')}`,
    got: `nothing for ${architecture}`,
    hint: 'Name the modules whose input is to be scaled; [] scales outputs only.',
  })
}

/** By PEFT's rules: ends of strings, or a regular expression. */
function isFeedforward({ path }: Site, { feedforward_modules: modules = [] }: Ia3Config): boolean {
  if (typeof modules === 'string') return wholePath(modules, 'feedforward_modules').test(path)
  return modules.some((name) => path.endsWith(name))
}

function planAt(site: Site, config: Ia3Config): SitePlan {
  if (site.kind !== 'linear' && site.kind !== 'conv2d')
    throw unsuited('ia3', site, 'a linear or convolution module', `a ${site.kind} module`)
  const isInput = isFeedforward(site, config)
  const shape = shapeAt(site, isInput)
  const perChannel = site.kind === 'conv2d' ? [shape[1]!, 1, 1] : [shape[0]! * shape[1]!]
  return {
    parameters: {
      ia3_l: declared(shape, config.init_ia3_weights ? filled(1) : normal(1)),
    },
    forward({ x, base, parameters }) {
      const l = reshape(read(parameters.ia3_l!), perChannel)
      return isInput ? base(undefined, mul(x, l)) : mul(base(), l)
    },
    merged({ weight, bias, parameters }) {
      const l = read(parameters.ia3_l!)
      const scaled = mul(weight, alongWeight(site, l, isInput))
      return bias && !isInput ? { weight: scaled, bias: mul(bias, reshape(l, bias.shape)) } : { weight: scaled }
    },
  }
}

/** l as PEFT stores it: a linear module's beside W `[out, in]`, a convolution's beside its images. */
function shapeAt(site: Site, isInput: boolean): readonly number[] {
  if (site.kind === 'linear') {
    const [out, inner] = linearShape(site)
    return isInput ? [1, inner] : [out, 1]
  }
  const [out, perGroup] = site.weight.shape as [number, number]
  return [1, isInput ? perGroup * (site.window?.groups ?? 1) : out, 1, 1]
}

/** l in a shape that broadcasts over the weight as it is stored. */
function alongWeight({ kind, weight, transposed, window }: Site, l: Sym, isInput: boolean): Sym {
  if (kind === 'linear') return reshape(l, isInput !== (transposed === true) ? [1, -1] : [-1, 1])
  const [out, perGroup] = weight.shape as [number, number]
  if (!isInput) return reshape(l, [out, 1, 1, 1])
  const groups = window?.groups ?? 1
  // Every output channel of a group sees the inputs of that group.
  const rows = broadcastTo(reshape(l, [groups, 1, perGroup]), [groups, out / groups, perGroup])
  return reshape(rows, [out, perGroup, 1, 1])
}

/**
 * The config that PEFT knows: it chooses no layers for this method, so that `target_modules` has to name them, and it
 * wants lists of `feedforward_modules` to be part of that list; a pattern need not be.
 */
function peftConfig(config: Ia3Config, sites: readonly AttachedSite[]): Readonly<Record<string, unknown>> {
  const { layers_to_transform: _layers, layers_pattern: _pattern, ...kept } = config
  return {
    ...kept,
    feedforward_modules: pattern(
      sites.map(({ site }) => site),
      config,
    ),
  }
}

/** The feed-forward ones among these modules: by name where that is enough, otherwise by path. */
function pattern(sites: readonly Site[], config: Ia3Config): string | readonly string[] {
  const inputs = sites.filter((site) => isFeedforward(site, config))
  if (inputs.length === 0) return []
  const nameOf = ({ path }: Site): string => path.split('.').at(-1)!
  const names = new Set(inputs.map(nameOf))
  const isUnique = sites.every((site) => !names.has(nameOf(site)) || inputs.includes(site))
  return isUnique ? `.*\\.(${[...names].map(escaped).join('|')})` : inputs.map(({ path }) => escaped(path)).join('|')
}
