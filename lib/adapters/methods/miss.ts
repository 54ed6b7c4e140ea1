/**
 * MiSS, in its first version Bone (Kang & Yin 2024, arXiv 2409.15371), as PEFT has it: one matrix that all groups of
 * inputs share, or an affine change of each block of the weight.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { add } from '../../graph/ops/elementwise.js'
import { expandDims, pad, repeat } from '../../graph/ops/gather.js'
import { slice, transpose } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { identityLike } from '../../graph/ops/matrices.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { dropped, linearShape, linearWith, oriented, type Site } from '../../nn/site.js'
import { declared, uniform, zero } from '../initial_values.js'
import type {
  Factors,
  MergeContext,
  Parametrization,
  ParametrizationType,
  SiteContext,
  SitePlan,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link miss}: PEFT's names and, but for `target_modules`, its defaults. */
export interface MissOptions extends TargetOptions<'MiSS_only'> {
  /** Numbers per output: rows of D, or the size of a block with `bat`; at most the module's inputs. Default 64. */
  readonly r?: number
  /** Columns of D with `mini`; a divisor of the module's outputs. Default 1. */
  readonly mini_r?: number
  /** Probability of dropping an element of the adapter's input while training; not with `bat`. Default 0. */
  readonly miss_dropout?: number
  /**
   * Which change is learned: `true` (default) one row of D for all inputs of a residue class, `mini` the outputs too,
   * `bat` each block of the weight by an affine map. `false`: as `true`, but D begins at random.
   */
  readonly init_weights?: boolean | 'bat' | 'mini'
}

const schema = z.strictObject({
  r: z.int().positive().default(64),
  mini_r: z.int().positive().default(1),
  miss_dropout: z.number().min(0).lt(1).default(0),
  init_weights: z.union([z.boolean(), z.enum(['bat', 'mini'])]).default(true),
  ...targetFields('MiSS_only'),
})
type MissConfig = z.infer<typeof schema>

/** Name of D, or of the blocks' maps, in the adapter's file. */
const name = 'miss_block'

/**
 * y = W x + Dᵀ fold(x) with D `[r, out]` trained and fold(x)_j = Σ of the x_i with i ≡ j (mod r): ΔW[o, i] = D[i mod r, o],
 * which is never made. `mini`: D `[r, mini_r]`, ΔW[o, i] = D[i mod r, o mod mini_r]. `bat`: W in blocks `[r, r]`, each
 * W_pq becomes W_pq (I + B_p) + B_p with B `[out / r, r, r]` trained.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function miss(options: MissOptions = {}): Parametrization {
  const config = parseConfig('miss', schema, options)
  return {
    name: 'miss',
    config,
    ...targeting(config),
    plan: (site) => (config.init_weights === 'bat' ? blockPlan(site, config) : sharedPlan(site, config)),
  }
}

/** Registry entry. */
export const missType: ParametrizationType = {
  name: 'miss',
  peftType: 'MISS',
  formerly: { peftType: 'BONE', names: { bone_block: name } },
  isPeft: true,
  title: 'MiSS (Bone)',
  source: 'Kang & Yin 2024, arXiv 2409.15371',
  purpose: 'a fast start: one matrix per module, and little memory for activations',
  initialChange: 'none',
  create: (config) => miss(config as MissOptions),
  restore: ({ bias, ...stored }) =>
    miss(storedFields(schema, { ...stored, bias: bias === 'Bone_only' ? 'MiSS_only' : bias }) as MissOptions),
}

function expectLinear(site: Site, { r }: MissConfig): void {
  if (site.kind !== 'linear') throw unsuited('miss', site, 'a linear module', `a ${site.kind} module`)
  const inner = linearShape(site)[1]
  if (r > inner) throw unsuited('miss', site, `r of at most ${inner}, the module's inputs`, `${r}`)
}

/** One row of D for all inputs of a residue class. */
function sharedPlan(site: Site, config: MissConfig): SitePlan {
  expectLinear(site, config)
  const { r, mini_r, init_weights: init } = config
  const [out] = linearShape(site)
  const width = init === 'mini' ? mini_r : out
  if (out % width !== 0) throw unsuited('miss', site, `a mini_r that divides ${out}, the module's outputs`, `${width}`)
  const shape = [r, width]
  return {
    parameters: {
      [name]: declared(shape, init === false ? uniform(1 / Math.sqrt(width)) : zero),
    },
    forward: (context) => sharedForward(context, config),
    merged: ({ weight, parameters }) => ({ weight: add(weight, change(site, read(parameters[name]!))) }),
    factors: ({ parameters }) => factors(site, read(parameters[name]!)),
  }
}

function sharedForward({ x, base, parameters, forward, stream }: SiteContext, config: MissConfig): Sym {
  const d = read(parameters[name]!)
  const input = dropped(x, config.miss_dropout, forward, stream)
  const delta = matmul(fold(input, config.r), d, { precision: forward.precision })
  const y = base()
  const width = delta.shape.at(-1)!
  if (width === y.shape.at(-1)) return add(y, delta)
  const repeated = reshape(y, [...y.shape.slice(0, -1), -1, width])
  return reshape(add(repeated, expandDims(delta, -2)), y.shape)
}

/** x `[..., in]` → `[..., r]`: the sums of what is r apart. */
function fold(x: Sym, r: number): Sym {
  const missing = (r - (x.shape.at(-1)! % r)) % r
  const whole =
    missing === 0
      ? x
      : pad(
          x,
          x.shape.map((_, axis) => [0, axis === x.rank - 1 ? missing : 0] as const),
        )
  return sum(reshape(whole, [...x.shape.slice(0, -1), -1, r]), { axes: [x.rank - 1] })
}

/** The first `size` columns of x, side by side as often as it takes. */
const tiled = (x: Sym, size: number): Sym =>
  slice(repeat(x, [1, Math.ceil(size / x.shape[1]!)]), [{ axis: 1, start: 0, end: size }])

/** ΔW as the weight is stored. */
function change(site: Site, d: Sym): Sym {
  const [out, inner] = linearShape(site)
  return oriented(site, tiled(transpose(tiled(d, out)), inner))
}

/** ΔW = Dᵀ F with F `[r, in]` the matrix of the fold. */
function factors(site: Site, d: Sym): Factors {
  const [out, inner] = linearShape(site)
  return { a: tiled(identityLike(d.shape[0]!, d), inner), b: transpose(tiled(d, out)) }
}

/** Each block of the weight by an affine map. */
function blockPlan(site: Site, config: MissConfig): SitePlan {
  expectLinear(site, config)
  const { r } = config
  const [out, inner] = linearShape(site)
  if (out % r !== 0 || inner % r !== 0)
    throw unsuited('miss', site, `an r that divides ${out} and ${inner} for init_weights bat`, `${r}`)
  return {
    parameters: { [name]: declared([out / r, r, r], zero) },
    // The map stands between W_pq and x_q and depends on p: without the weight each output block would need a product
    // of its own with all of x.
    forward: ({ site: part, x, parameters, forward }) =>
      linearWith(part, changed(part, read(part.weight), parameters), x, forward),
    merged: ({ weight, parameters }) => ({ weight: changed(site, weight, parameters) }),
  }
}

/** W + W_pq B_p + B_p, block by block, as the weight is stored. */
function changed(site: Site, weight: Sym, parameters: MergeContext['parameters']): Sym {
  const maps = read(parameters[name]!)
  const [blocks, r] = maps.shape as [number, number, number]
  const rows = oriented(site, weight)
  const [out, inner] = rows.shape as [number, number]
  // Row p r + i, column q r + j of W is row i (in / r) + q, column j of block p here.
  const product = matmul(reshape(rows, [blocks, inner, r]), maps)
  const delta = add(reshape(product, [blocks, r, inner / r, r]), expandDims(maps, 2))
  return oriented(site, add(rows, reshape(delta, [out, inner])))
}
