/**
 * Monarch adapters (MoRe; Tan et al. 2024, arXiv 2408.17383): the change of a weight as a Monarch matrix (Dao et al. 2022,
 * arXiv 2204.00595), whose rank is `nblocks` times that of a LoRA with as many numbers.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { add, mul } from '../../graph/ops/elementwise.js'
import { slice, transpose } from '../../graph/ops/index.js'
import { reshape } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { dropped, linearShape, oriented, type Site } from '../../nn/site.js'
import { identityMatrix } from '../../structured/initial.js'
import { type MonarchLayout, monarchOver } from '../../structured/monarch_matrix.js'
import type { StructuredMatrix } from '../../structured/structured_matrix.js'
import type { Tensor } from '../../tensor/tensor.js'
import { declared, uniform, zero } from '../initial_values.js'
import type { Factors, Parametrization, ParametrizationType, SiteContext, SitePlan } from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link monarchAdapter}, in the names of the reference code. */
export interface MonarchAdapterOptions extends TargetOptions<'monarch_only'> {
  /** Diagonal blocks N of either factor; default 4. */
  readonly nblocks?: number
  /** Middle units r of a block; the change has rank at most N r. Default 4. */
  readonly blk_r?: number
  /** Probability of dropping an element of the adapter's output while training, as in the reference code; default 0. */
  readonly dropout?: number
}

const count = z.int().positive()
const schema = z.strictObject({
  nblocks: count.default(4),
  blk_r: count.default(4),
  dropout: z.number().min(0).lt(1).default(0),
  ...targetFields('monarch_only'),
})

type Config = z.infer<typeof schema>

/**
 * y = base(x) + P₂ diag(blkdiag2) P₁ diag(blkdiag1) x: N blocks of p = ⌈in / N⌉ inputs with r middle units each,
 * permuted, then N blocks of s = ⌈out / N⌉ outputs, permuted again. `blkdiag1 [N, r, p]` is uniform on ±1/√p, `blkdiag2
 * [N, s, r]` zero. Numbers: r N (p + s), as a LoRA of rank r where N divides both sizes.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function monarchAdapter(options: MonarchAdapterOptions = {}): Parametrization {
  const config = parseConfig('monarch_adapter', schema, options)
  return { name: 'monarch_adapter', config, ...targeting(config), plan: (site) => planAt(site, config) }
}

/** Registry entry. */
export const monarchAdapterType: ParametrizationType = {
  name: 'monarch_adapter',
  peftType: 'MONARCH',
  isPeft: false,
  title: 'Monarch (MoRe)',
  source: 'Tan et al. 2024, arXiv 2408.17383',
  purpose: 'more rank for the same numbers than LoRA, as two block-diagonal factors',
  initialChange: 'none',
  create: (config) => monarchAdapter(config as MonarchAdapterOptions),
  restore: (stored) => monarchAdapter(storedFields(schema, stored) as MonarchAdapterOptions),
}

function planAt(site: Site, config: Config): SitePlan {
  const layout = layoutAt(site, config)
  const { first, second, out, in: inner } = layout
  const [blocks, units, width] = first
  const isLowRank = blocks * units < Math.min(out, inner)
  return {
    parameters: {
      blkdiag1: declared(first, uniform(1 / Math.sqrt(width))),
      blkdiag2: declared(second, zero),
    },
    forward: (context) => add(context.base(), change(layout, config, context)),
    merged({ weight, parameters }) {
      return { weight: add(weight, oriented(site, matrixOf(layout, parameters).toDense())) }
    },
    ...(isLowRank ? { factors: ({ parameters }) => factors(layout, parameters) } : {}),
  }
}

function layoutAt(site: Site, { nblocks, blk_r }: Config): MonarchLayout {
  if (site.kind !== 'linear') throw unsuited('monarch_adapter', site, 'a linear module', `a ${site.kind} module`)
  const [out, inner] = linearShape(site)
  const [width, rows] = [Math.ceil(inner / nblocks), Math.ceil(out / nblocks)]
  if (nblocks > Math.min(out, inner))
    throw unsuited('monarch_adapter', site, `nblocks of at most ${Math.min(out, inner)}`, `${nblocks}`)
  if (blk_r > Math.min(width, rows))
    throw unsuited('monarch_adapter', site, `blk_r of at most ${Math.min(width, rows)}, the smaller block`, `${blk_r}`)
  return { out, in: inner, first: [nblocks, blk_r, width], second: [nblocks, rows, blk_r] }
}

/** ΔW x. */
function change(layout: MonarchLayout, config: Config, { x, parameters, forward, stream }: SiteContext): Sym {
  const y = matrixOf(layout, parameters).matmul(x, { precision: forward.precision })
  return dropped(y, config.dropout, forward, stream)
}

const matrixOf = (layout: MonarchLayout, parameters: Readonly<Record<string, Tensor>>): StructuredMatrix =>
  monarchOver(layout, { blkdiag1: parameters.blkdiag1!, blkdiag2: parameters.blkdiag2! })

/** The two factors made dense, the permutations on the side of the second: a `[N r, in]`, b `[out, N r]`. */
function factors(
  { out, in: inner, first, second }: MonarchLayout,
  parameters: Readonly<Record<string, Tensor>>,
): Factors {
  const [blocks, units, width] = first
  const rows = second[1]
  const same = identityMatrix(blocks, 'f32')
  // a[k r + j, k' p + i] = blkdiag1[k, j, i] where k' = k; b[i N + l, j N + l'] = blkdiag2[l, i, j] where l' = l.
  const a = mul(reshape(read(parameters.blkdiag1!), [blocks, units, 1, width]), reshape(same, [blocks, 1, blocks, 1]))
  const second4 = reshape(transpose(read(parameters.blkdiag2!), [1, 0, 2]), [rows, blocks, units, 1])
  const b = mul(second4, reshape(same, [blocks, 1, blocks]))
  return {
    a: slice(reshape(a, [blocks * units, blocks * width]), [{ axis: 1, start: 0, end: inner }]),
    b: slice(reshape(b, [rows * blocks, units * blocks]), [{ axis: 0, start: 0, end: out }]),
  }
}
