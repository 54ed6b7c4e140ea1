/**
 * FLoRA (Si et al. 2024, arXiv 2405.14739): a Tucker tensor as the change of a weight of any order, so that a kernel's
 * height and width stay axes of their own. No relation to the federated FLoRA, nor to the optimizer Flora.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { add, mul } from '../../graph/ops/elementwise.js'
import { gatherRows, transpose } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { type TuckerKernel, tuckerConv2d, tuckerKernelToDense } from '../../graph/ops/tucker.js'
import { read, type Sym } from '../../graph/sym.js'
import { dropped, linearShape, type Site } from '../../nn/site.js'
import type { Tensor } from '../../tensor/tensor.js'
import { declared, normal, uniform, zero } from '../initial_values.js'
import type {
  Factors,
  MergeContext,
  Merged,
  ParameterDeclaration,
  Parametrization,
  ParametrizationType,
  SiteContext,
  SitePlan,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link flora}, in the names of the reference code. */
export interface FloraOptions extends TargetOptions<'flora_only'> {
  /**
   * Rank of each axis of the weight, in the order in, out, height, width; each at most the axis. One number stands for
   * all axes, and is cut down to those that are shorter. Default 8.
   */
  readonly r?: number | readonly number[]
  /** The fixed factor s; default 1. The language code's is lora_alpha / r. */
  readonly scale?: number
  /** Probability of dropping an element of the adapter's input while training; default 0. Embeddings have no dropout. */
  readonly drop_rate?: number
  /**
   * How the factors begin; the core is zero. `vision`: Aₙ normal with deviation √(0.5 / Jₙ). `language`: uniform, the in
   * side on ±1/√in, the others on ±1/√Jₙ. Default: `vision` for convolutions, `language` for the others.
   */
  readonly init_weights?: 'vision' | 'language'
}

const rank = z.int().positive()
const schema = z.strictObject({
  r: z.union([rank, z.array(rank).min(2)]).default(8),
  scale: z.number().default(1),
  drop_rate: z.number().min(0).lt(1).default(0),
  init_weights: z.enum(['vision', 'language']).optional(),
  ...targetFields('flora_only'),
})

type Config = z.infer<typeof schema>

/**
 * ΔW = s · G ×₁ A¹ … ×_N Aᴺ with a core G `[J₁, …, J_N]` and a factor Aⁿ `[Iₙ, Jₙ]` per axis, in the order in, out,
 * height, width. Linear and embedding: y = base(x) + s ((x A¹) G) A²ᵀ. Convolutions: single pixels to J₁ channels, the
 * window to J₂, single pixels to out; the axis in of a convolution in groups is that of one group. Numbers:
 * Π Jₙ + Σ Iₙ Jₙ.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function flora(options: FloraOptions = {}): Parametrization {
  const config = parseConfig('flora', schema, options)
  return { name: 'flora', config, ...targeting(config), plan: (site) => planAt(site, config) }
}

/** Registry entry. */
export const floraType: ParametrizationType = {
  name: 'flora',
  peftType: 'FLORA',
  isPeft: false,
  title: 'FLoRA',
  source: 'Si et al. 2024, arXiv 2405.14739',
  purpose: 'convolutions: keeps height and width of a kernel as axes, where LoRA flattens them',
  initialChange: 'none',
  create: (config) => flora(config as FloraOptions),
  restore: (stored) => flora(storedFields(schema, stored) as FloraOptions),
}

const core = 'flora_layer.param_G'
const factor = (axis: number): string => `flora_layer.param_${axis}`

/** What decides everything at one site. */
interface Settings {
  readonly config: Config
  /** Lengths of the axes: in, out, and a kernel's height and width. */
  readonly axes: readonly number[]
  readonly ranks: readonly number[]
  /** The weight is stored `[in, out]`. */
  readonly isTransposed: boolean
}

function planAt(site: Site, config: Config): SitePlan {
  const axes = axesOf(site)
  const settings = {
    config,
    axes,
    ranks: ranksOf(site, axes, config.r),
    isTransposed: site.kind === 'embedding' || site.transposed === true,
  }
  const isConvolution = site.kind === 'conv2d'
  return {
    parameters: declarations(site, settings),
    forward: (context) => forward(settings, context),
    merged: (context) => (isConvolution ? mergedKernel(settings, context) : mergedMatrix(settings, context)),
    ...(site.kind === 'linear' ? { factors: ({ parameters }) => factors(settings, parameters) } : {}),
  }
}

/** In, out, and a kernel's height and width. */
function axesOf(site: Site): readonly number[] {
  const { kind, weight } = site
  if (kind === 'linear') return linearShape(site).toReversed()
  if (kind === 'embedding') return weight.shape
  if (kind !== 'conv2d') throw unsuited('flora', site, 'a linear, embedding or convolution module', `a ${kind} module`)
  const [out, perGroup, ...window] = weight.shape as [number, number, number, number]
  return [perGroup, out, ...window]
}

function ranksOf(site: Site, axes: readonly number[], r: Config['r']): readonly number[] {
  if (typeof r === 'number') return axes.map((size) => Math.min(r, size))
  if (r.length === axes.length && r.every((each, axis) => each <= axes[axis]!)) return r
  throw unsuited('flora', site, `r with one rank for each axis, in order at most [${axes}]`, `[${r}]`)
}

function declarations(site: Site, { config, axes, ranks }: Settings): Record<string, ParameterDeclaration> {
  const style = config.init_weights ?? (site.kind === 'conv2d' ? 'vision' : 'language')
  const all: Record<string, ParameterDeclaration> = {
    [core]: declared(ranks, zero),
  }
  for (const [axis, size] of axes.entries()) {
    const width = axis === 0 ? size : ranks[axis]!
    // Kaiming's fan of a factor [I, J] is J in the vision code: its linear maps J numbers to I.
    const begin = style === 'vision' ? normal(Math.sqrt(0.5 / ranks[axis]!)) : uniform(1 / Math.sqrt(width))
    all[factor(axis)] = declared([size, ranks[axis]!], begin)
  }
  return all
}

function forward(
  { config: { scale, drop_rate } }: Settings,
  { site, x, base, parameters, forward: pass, stream }: SiteContext,
): Sym {
  const input = site.kind === 'embedding' ? x : dropped(x, drop_rate, pass, stream)
  if (site.kind === 'conv2d') return add(base(), tuckerConv2d(input, kernelOf(parameters, scale), site.window))
  const { precision } = pass
  const first = read(parameters[factor(0)]!)
  const narrow = site.kind === 'embedding' ? gatherRows(first, input) : matmul(input, first, { precision })
  const inner = matmul(narrow, read(parameters[core]!), { precision })
  return add(base(), matmul(inner, read(parameters[factor(1)]!), { transposeB: true, alpha: scale, precision }))
}

/** The change of a kernel; the scale is in the core, which is small. */
function kernelOf(parameters: Readonly<Record<string, Tensor>>, scale: number): TuckerKernel {
  const at = (axis: number): Sym => read(parameters[factor(axis)]!)
  // Factors are in the order in, out, …; a kernel is stored out, in, ….
  const turned = mul(transpose(read(parameters[core]!), [1, 0, 2, 3]), scale)
  return { core: turned, in: at(0), out: at(1), height: at(2), width: at(3) }
}

const mergedKernel = ({ config: { scale } }: Settings, { weight, parameters }: MergeContext): Merged => ({
  weight: add(weight, tuckerKernelToDense(kernelOf(parameters, scale))),
})

/** W + s A² Gᵀ A¹ᵀ as the weight is stored. */
function mergedMatrix(settings: Settings, { weight, parameters }: MergeContext): Merged {
  const { a, b } = factors(settings, parameters)
  return {
    weight: settings.isTransposed
      ? matmul(a, b, { transposeA: true, transposeB: true, addend: weight })
      : matmul(b, a, { addend: weight }),
  }
}

/** The core belongs to the side with the higher rank: the product has the lower one. */
function factors({ config, ranks }: Settings, parameters: Readonly<Record<string, Tensor>>): Factors {
  const [g, first, second] = [core, factor(0), factor(1)].map((name) => read(parameters[name]!)) as [Sym, Sym, Sym]
  if (ranks[0]! < ranks[1]!)
    return { a: transpose(first), b: matmul(second, g, { transposeB: true, alpha: config.scale }) }
  return { a: transpose(matmul(first, g)), b: mul(second, config.scale) }
}
