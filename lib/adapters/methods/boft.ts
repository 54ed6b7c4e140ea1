/** BOFT (Liu et al. 2024, arXiv 2311.06243) as PEFT has it: the input is rotated by a butterfly of block rotations. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { add, equal, floor, mul, sub } from '../../graph/ops/elementwise.js'
import { arange } from '../../graph/ops/gather.js'
import { slice, transpose } from '../../graph/ops/index.js'
import { randomUniform } from '../../graph/ops/random.js'
import { reshape } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { oriented, type Site } from '../../nn/site.js'
import { declared, filled, normal, zero } from '../initial_values.js'
import type {
  MergeContext,
  Parametrization,
  ParametrizationType,
  SiteContext,
  SitePlan,
  SiteTensors,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import { cayley, changedRows, convolvedWith, droppedBlocks, rotated, rotatedShape, withoutBlocks } from './rotation.js'

/** Options of {@link boft}: PEFT's names and, but for `target_modules`, its defaults. */
export interface BoftOptions extends TargetOptions<'boft_only'> {
  /** Channels per block, with `boft_block_num` 0; a divisor of the module's inputs. Default 4. */
  readonly boft_block_size?: number
  /** Blocks per module, with `boft_block_size` 0. Default 0. */
  readonly boft_block_num?: number
  /** Factors of the butterfly; 1 (default) is a block-diagonal rotation, every further one doubles what is mixed. */
  readonly boft_n_butterfly_factor?: number
  /** Share of the blocks of one factor that are the identity in a step of training. Default 0. */
  readonly boft_dropout?: number
  /** Kept for PEFT's sake: a module here knows by itself how its weight is stored. */
  readonly fan_in_fan_out?: boolean
  /** False begins with normal numbers of deviation 0.1 instead of the identity; default true. */
  readonly init_weights?: boolean
}

const schema = z.strictObject({
  boft_block_size: z.int().min(0).default(4),
  boft_block_num: z.int().min(0).default(0),
  boft_n_butterfly_factor: z.int().positive().default(1),
  boft_dropout: z.number().min(0).lt(1).default(0),
  ...targetFields('boft_only'),
  fan_in_fan_out: z.boolean().default(false),
  init_weights: z.boolean().default(true),
})
type BoftConfig = z.infer<typeof schema>

/**
 * y = s ⊙ W (x M) + b with s `[out, 1]` trained and M = Rₘ … R₁ of m butterfly factors: Rᵢ rotates blocks `[h, h]` of
 * channels that a permutation has brought together, each by the Cayley transform of the skew part of a trained matrix.
 * Merged: s ⊙ W Mᵀ; at a convolution of the kernel as `[out, in · kh · kw]`, with s `[1, out]`.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown, out of range or at odds with another
 */
export function boft(options: BoftOptions = {}): Parametrization {
  const config = parseConfig('boft', schema, options)
  if ((config.boft_block_size === 0) === (config.boft_block_num === 0))
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'boft',
      expected: 'either boft_block_size or boft_block_num, the other 0: their product is the number of inputs',
      got: `boft_block_size ${config.boft_block_size} and boft_block_num ${config.boft_block_num}`,
    })
  return { name: 'boft', config, ...targeting(config), plan: (site) => planAt(site, config) }
}

/** Registry entry. */
export const boftType: ParametrizationType = {
  name: 'boft',
  peftType: 'BOFT',
  isPeft: true,
  title: 'BOFT',
  source: 'Liu et al. 2024, arXiv 2311.06243',
  purpose: 'rotations that mix far channels, with few numbers, and a scale for each output',
  initialChange: 'none',
  page: 'oft',
  create: (config) => boft(config as BoftOptions),
  restore: (stored) => boft(storedFields(schema, stored) as BoftOptions),
}

interface Butterfly {
  readonly factors: number
  readonly blocks: number
  /** Channels of a block. */
  readonly h: number
}

function planAt(site: Site, config: BoftConfig): SitePlan {
  const isConvolution = site.kind === 'conv2d'
  const { out, inner } = rotatedShape('boft', site)
  const butterfly = butterflyOf(site, inner, config)
  const { factors, blocks, h } = butterfly
  const shape = [factors, blocks, h, h]
  return {
    parameters: {
      boft_R: declared(shape, config.init_weights ? zero : normal(0.1)),
      boft_s: declared(
        isConvolution ? [1, out] : [out, 1],
        config.init_weights ? filled(1) : (dims, context) => add(normal(0.1)(dims, context), 1),
      ),
    },
    forward(context) {
      const { parameters, forward, stream } = context
      const all = rotations(read(parameters.boft_R!))
      const p = config.boft_dropout
      const used = p > 0 && forward.training ? withDropout(all, p, forward.seed!, stream) : all
      if (!isConvolution) return linearOutput(context, used, butterfly)
      return convolvedWith(context, (rows) => changed(rows, context, used, butterfly))
    },
    merged: (context) => ({ weight: mergedAt(site, context, butterfly) }),
  }
}

/** @throws ERR_HEDDLE_ARGUMENT where PEFT refuses too */
function butterflyOf(site: Site, inner: number, config: BoftConfig): Butterfly {
  const { boft_block_size: size, boft_block_num: number, boft_n_butterfly_factor: factors } = config
  const given = size === 0 ? number : size
  if (inner % given !== 0)
    throw unsuited(
      'boft',
      site,
      `a ${size === 0 ? 'boft_block_num' : 'boft_block_size'} that divides ${inner}`,
      `${given}`,
    )
  const h = size === 0 ? inner / number : size
  const blocks = inner / h
  const group = 2 ** (factors - 1)
  if (blocks % group !== 0)
    throw unsuited('boft', site, `a multiple of ${group} blocks for ${factors} butterfly factors`, `${blocks}`)
  if (factors > 1 && h % 2 !== 0) throw unsuited('boft', site, 'an even block size for a butterfly', `${h}`)
  return { factors, blocks, h }
}

function linearOutput({ site, x, base, parameters }: SiteContext, used: Sym, butterfly: Butterfly): Sym {
  const scale = reshape(read(parameters.boft_s!), [-1])
  const y = base(undefined, mixed(x, used, butterfly))
  if (!site.bias) return mul(y, scale)
  const bias = read(site.bias)
  return add(mul(sub(y, bias), scale), bias)
}

/** s ⊙ W Mᵀ as the weight is stored. */
function mergedAt(site: Site, context: MergeContext, butterfly: Butterfly): Sym {
  const { weight, parameters } = context
  const change = (rows: Sym): Sym => changed(rows, context, rotations(read(parameters.boft_R!)), butterfly)
  if (site.kind === 'conv2d') return changedRows(weight, change)
  return oriented(site, change(oriented(site, weight)))
}

/** s ⊙ W Mᵀ for rows of W `[out, inputs]`. */
const changed = (rows: Sym, { parameters }: SiteTensors, all: Sym, butterfly: Butterfly): Sym =>
  mul(mixed(rows, all, butterfly, true), reshape(read(parameters.boft_s!), [-1, 1]))

/** Orthogonal blocks `[factors, blocks, h, h]` of the skew parts. */
const rotations = (matrices: Sym): Sym => cayley(mul(0.5, sub(matrices, transpose(matrices, [0, 1, 3, 2]))))

/** The identity in the place of some blocks of one factor. */
function withDropout(all: Sym, p: number, seed: Sym, stream: number): Sym {
  const [factors, blocks] = all.shape as [number, number]
  const chosen = floor(
    mul(slice(randomUniform(seed, stream, [blocks + 1]), [{ axis: 0, start: blocks, end: blocks + 1 }]), factors),
  )
  const isChosen = equal(arange(factors, { dtype: 'f32' }), chosen)
  const isDropped = mul(reshape(isChosen, [factors, 1]), droppedBlocks(blocks, p, seed, stream))
  return withoutBlocks(all, reshape(isDropped, [factors, blocks, 1, 1]))
}

/** x M, or x Mᵀ: x `[..., inputs]`. */
function mixed(x: Sym, all: Sym, { factors, blocks, h }: Butterfly, isTransposed = false): Sym {
  const order = Array.from({ length: factors }, (_, i) => i)
  let result = x
  // x M = ((x Rₘ) …) R₁.
  for (const i of isTransposed ? order : order.toReversed()) {
    const factor = reshape(slice(all, [{ axis: 0, start: i, end: i + 1 }]), [blocks, h, h])
    result = permuted(rotated(permuted(result, i, h, true), factor, isTransposed), i, h, false)
  }
  return result
}

/**
 * In groups of 2ⁱ⁺¹ half blocks: those of even number come before those of odd number, or (`back`) go back between them.
 */
function permuted(x: Sym, i: number, h: number, back: boolean): Sym {
  if (i === 0) return x
  const pairs = 2 ** i
  const sizes = back ? [2, pairs] : [pairs, 2]
  return reshape(transpose(reshape(x, [-1, ...sizes, h / 2]), [0, 2, 1, 3]), x.shape)
}
