/** OFT (Qiu et al. 2023, arXiv 2306.07280; Qiu et al. 2025, arXiv 2506.19847) as PEFT has it: the input is rotated. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { add, div, greater, mul, select, sqrt, square, sub } from '../../graph/ops/elementwise.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { stopGradient } from '../../graph/ops/stop_gradient.js'
import { read, type Sym } from '../../graph/sym.js'
import { oriented, type Site } from '../../nn/site.js'
import { type GradientTransform, mapParameters, wrapped } from '../../optim/gradient_transform.js'
import { declared, normal, zero } from '../initial_values.js'
import type {
  OptimizerContext,
  Parametrization,
  ParametrizationType,
  SiteContext,
  SitePlan,
  SiteTensors,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import {
  cayley,
  cayleyNeumann,
  changedRows,
  convolvedWith,
  droppedBlocks,
  rotated,
  rotatedShape,
  skewSymmetric,
  withoutBlocks,
} from './rotation.js'

/** Options of {@link oft}: PEFT's names and, but for `target_modules`, its defaults. */
export interface OftOptions extends TargetOptions<'oft_only'> {
  /** Blocks per module, with `oft_block_size` 0. Default 0. */
  readonly r?: number
  /** Channels per block, with `r` 0; the nearest divisor of a module's channels is taken. Default 32. */
  readonly oft_block_size?: number
  /** Share of the blocks that are the identity in a step of training. Default 0. */
  readonly module_dropout?: number
  /** Kept for PEFT's sake: a module here knows by itself how its weight is stored. */
  readonly fan_in_fan_out?: boolean
  /** False begins with normal numbers of deviation 0.1 instead of the identity; default true. */
  readonly init_weights?: boolean
  /** Holds each block near the identity: ‖Q‖ ≤ `eps` / √blocks after every step. Default false. */
  readonly coft?: boolean
  /** How far with `coft`. Default 6e-5. */
  readonly eps?: number
  /** One rotation for all blocks of a module; default false. */
  readonly block_share?: boolean
  /** The rotation by a few terms of its series instead of a linear system; orthogonal only nearly. Default true. */
  readonly use_cayley_neumann?: boolean
  /** How many terms. Default 5. */
  readonly num_cayley_neumann_terms?: number
}

const schema = z.strictObject({
  r: z.int().min(0).default(0),
  oft_block_size: z.int().min(0).default(32),
  module_dropout: z.number().min(0).lt(1).default(0),
  ...targetFields('oft_only'),
  fan_in_fan_out: z.boolean().default(false),
  init_weights: z.boolean().default(true),
  coft: z.boolean().default(false),
  eps: z.number().positive().default(6e-5),
  block_share: z.boolean().default(false),
  use_cayley_neumann: z.boolean().default(true),
  num_cayley_neumann_terms: z.int().positive().default(5),
})
type OftConfig = z.infer<typeof schema>

/**
 * y = W (x R) + b with R block-diagonal: each block `[h, h]` is the Cayley transform (I − Q)(I + Q)⁻¹ of a trained
 * skew-symmetric Q, orthogonal for every Q, or with `use_cayley_neumann` the first terms of (I + Q)(I − Q)⁻¹. Merged:
 * W Rᵀ. At an embedding the rows are rotated, at a convolution those of the kernel as `[out, in · kh · kw]`.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown, out of range or at odds with another
 */
export function oft(options: OftOptions = {}): Parametrization {
  const config = parseConfig('oft', schema, options)
  if ((config.r === 0) === (config.oft_block_size === 0))
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'oft',
      expected: 'either r or oft_block_size, the other 0: their product is the number of channels',
      got: `r ${config.r} and oft_block_size ${config.oft_block_size}`,
    })
  return {
    name: 'oft',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config),
    ...(config.coft ? { optimizer: (inner, context) => constrained(inner, context, config.eps) } : {}),
  }
}

/** Registry entry. */
export const oftType: ParametrizationType = {
  name: 'oft',
  peftType: 'OFT',
  isPeft: true,
  title: 'OFT',
  source: 'Qiu et al. 2023, arXiv 2306.07280',
  purpose: 'keeps what the model knows: the angles between neurons stay as they are',
  initialChange: 'none',
  create: (config) => oft(config as OftOptions),
  restore: (stored) => oft(storedFields(schema, stored) as OftOptions),
}

const kernelName = 'oft_R.weight'
const embeddingName = 'oft_embedding_R.weight'

function planAt(site: Site, config: OftConfig): SitePlan {
  const { kind } = site
  const name = kind === 'embedding' ? embeddingName : kernelName
  const channels = channelsOf(site)
  const h = blockSize(channels, config)
  const shape = [config.block_share ? 1 : channels / h, (h * (h - 1)) / 2]
  const blocks = ({ parameters }: SiteTensors): Sym => rotation(read(parameters[name]!), h, config)
  return {
    parameters: {
      [name]: declared(shape, config.init_weights ? zero : normal(0.1)),
    },
    forward(context) {
      const { x, base } = context
      const used = withDropout(blocks(context), context, config.module_dropout)
      if (kind === 'conv2d') return convolvedWith(context, (rows) => rotated(rows, used, true))
      return kind === 'linear' ? base(undefined, rotated(x, used)) : rotated(base(), used)
    },
    merged: (context) => ({ weight: mergedAt(site, context.weight, blocks(context)) }),
  }
}

/** What is rotated: inputs, those of a window, or the columns of an embedding. */
function channelsOf(site: Site): number {
  const { kind, weight } = site
  if (kind === 'embedding') return weight.shape[1]!
  if (kind === 'linear' || kind === 'conv2d') return rotatedShape('oft', site).inner
  throw unsuited('oft', site, 'a linear, embedding or convolution module', `a ${kind} module`)
}

function withDropout(blocks: Sym, { forward, stream }: SiteContext, p: number): Sym {
  const count = blocks.shape[0]!
  if (p === 0 || !forward.training || count === 1) return blocks
  return withoutBlocks(blocks, reshape(droppedBlocks(count, p, forward.seed!, stream), [-1, 1, 1]))
}

/** W Rᵀ, of an embedding E R, as the weight is stored. */
function mergedAt(site: Site, weight: Sym, blocks: Sym): Sym {
  const turned = (rows: Sym): Sym => rotated(rows, blocks, true)
  if (site.kind === 'embedding') return rotated(weight, blocks)
  if (site.kind === 'conv2d') return changedRows(weight, turned)
  return oriented(site, turned(oriented(site, weight)))
}

/** Channels of a block; where the config's number does not divide the channels, its nearest divisor is taken, as in PEFT. */
function blockSize(channels: number, { r, oft_block_size: size }: OftConfig): number {
  return r === 0 ? nearestDivisor(channels, size) : channels / nearestDivisor(channels, r)
}

/** The smaller one of two that are equally near. */
function nearestDivisor(channels: number, wanted: number): number {
  if (wanted >= channels) return channels
  let [low, high] = [wanted, wanted]
  while (channels % low !== 0) low -= 1
  while (channels % high !== 0) high += 1
  return wanted - low <= high - wanted ? low : high
}

/** R `[blocks, h, h]` of the trained numbers. */
function rotation(parameter: Sym, h: number, config: OftConfig): Sym {
  const { coft, eps, use_cayley_neumann: isSeries, num_cayley_neumann_terms: terms } = config
  // PEFT writes the projected numbers into the parameter before it goes on: gradients are those at the projection.
  const used = coft ? add(parameter, stopGradient(sub(projected(parameter, eps), parameter))) : parameter
  const skew = skewSymmetric(used, h)
  return isSeries ? cayleyNeumann(skew, terms) : cayley(skew)
}

/** Blocks with ‖Q‖ over eps / √blocks, shortened to it. */
function projected(parameter: Sym, eps: number): Sym {
  const limit = eps / Math.sqrt(parameter.shape[0]!)
  // Every number stands in Q twice.
  const norm = sqrt(mul(2, sum(square(parameter), { axes: [1], keepDims: true })))
  return select(greater(norm, limit), mul(parameter, div(limit, norm)), parameter)
}

/** The rule with each update going no further than to the border of what `coft` allows. */
const constrained = (inner: GradientTransform, { names: all }: OptimizerContext, eps: number): GradientTransform =>
  wrapped(inner, 'coft', { eps }, async () => ({
    tensors: {},
    update: (updates, _, context) =>
      mapParameters(updates, (update, i) => {
        if (!all[i]!.endsWith(`.${kernelName}`) && !all[i]!.endsWith(`.${embeddingName}`)) return update
        const value = context.parameters[i]!
        return sub(projected(add(projected(value, eps), update), eps), value)
      }),
  }))
