/** LoLDU (Shi et al. 2024, arXiv 2410.13618): of the weight's LU decomposition the leading pivots are trained. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { computed } from '../../graph/computed.js'
import { abs, greater, mul } from '../../graph/ops/elementwise.js'
import { scatterAddRows, slice } from '../../graph/ops/index.js'
import { max, reshape } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import { ldu } from '../../linalg/factorise.js'
import type { Site } from '../../nn/site.js'
import type { Tensor } from '../../tensor/tensor.js'
import { declared, zero } from '../initial_values.js'
import {
  asMatrix,
  changedLinear,
  changedWeight,
  factorsOf,
  type LowRankChange,
  type MatrixShape,
  matrixShape,
  ofSite,
} from '../low_rank_change.js'
import type { Parametrization, ParametrizationType, Prepared, SitePlan, SiteTensors } from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link loldu}. */
export interface LolduOptions extends TargetOptions<'loldu_only'> {
  /** Number of pivots, at most min(out, in). Default 4. */
  readonly rank?: number
  /** Numerator of the scale lora_alpha / rank. Default 1. */
  readonly lora_alpha?: number
  /** Writes L and U into the file, rank · (in + out) numbers a module more; default false. */
  readonly save_projection?: boolean
}

const schema = z.strictObject({
  rank: z.int().positive().default(4),
  lora_alpha: z.number().default(1),
  save_projection: z.boolean().default(false),
  ...targetFields('loldu_only'),
})

type LolduConfig = z.infer<typeof schema>

/**
 * With W = P L diag(D) U, pivots chosen by rows: y = W x + σ P L_r diag(dz) U_r x, σ = lora_alpha / rank. Trained: dz `[rank]`,
 * which begins as 0 and is what the first pivots D have changed by. P L_r `[out, rank]` and U_r `[rank, in]`, both with ones on
 * their diagonals, are frozen, and found again from the weight when the adapter is loaded. A pivot of zero is left out.
 * Linear and convolution sites, the latter as `[out, in · kh · kw]`.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function loldu(options: LolduOptions = {}): Parametrization {
  const config = parseConfig('loldu', schema, options)
  return { name: 'loldu', config, ...targeting(config), plan: (site) => planAt(site, config) }
}

/** Registry entry. */
export const lolduType: ParametrizationType = {
  name: 'loldu',
  peftType: 'LOLDU',
  isPeft: false,
  title: 'LoLDU',
  source: 'Shi et al. 2024, arXiv 2410.13618',
  purpose: 'rank numbers a module, without an SVD: an LU decomposition is enough',
  initialChange: 'none',
  create: (config) => loldu(config as LolduOptions),
  restore: (stored) => loldu(storedFields(schema, stored) as LolduOptions),
}

const names = { dz: 'loldu_dz', d: 'loldu_d', pivots: 'loldu_pivots', l: 'loldu_l', u: 'loldu_u' } as const

function planAt(site: Site, { rank, lora_alpha, save_projection: isStored }: LolduConfig): SitePlan {
  const shape = matrixShape('loldu', site, ['linear', 'conv2d'])
  const { out, inner } = shape
  if (rank > Math.min(out, inner)) throw unsuited('loldu', site, `rank of at most ${Math.min(out, inner)}`, `${rank}`)
  const change = ({ parameters, buffers }: SiteTensors): LowRankChange => ({
    left: read(buffers[names.l]!),
    core: read(parameters[names.dz]!),
    right: read(buffers[names.u]!),
    scale: lora_alpha / rank,
  })
  return {
    parameters: { [names.dz]: declared([rank], zero) },
    buffers: {
      [names.d]: { shape: [rank], sameWithin: 1e-3 },
      [names.pivots]: { shape: [rank], dtype: 'i32', sameWithin: 0 },
      [names.l]: { shape: [out, rank], isStored },
      [names.u]: { shape: [rank, inner], isStored },
    },
    prepare: ({ weight }) => ofSite(site, () => factorised(weight, shape, rank)),
    forward: (context) => changedLinear(context, shape, [change(context)]),
    merged: (context) => ({ weight: changedWeight(context.weight, [change(context)], shape) }),
    ...(shape.isConvolution ? {} : { factors: (attached) => factorsOf(change(attached)) }),
  }
}

/** A pivot that is smaller than this part of the largest counts as zero: what it divides is noise. */
const smallestPivot = 1e-6

/** P L, D, U and the rows that the first pivots come from. */
async function factorised(weight: Tensor, shape: MatrixShape, rank: number): Promise<Prepared> {
  const values = await computed(() => {
    const { permutation, l, d, u } = ldu(asMatrix(read(weight), shape))
    const first = (x: Sym, axis: number): Sym => slice(x, [{ axis, start: 0, end: rank }])
    const size = abs(d)
    const isPivot = first(greater(size, mul(max(size), smallestPivot)), 0)
    return {
      [names.d]: mul(first(d, 0), isPivot),
      [names.pivots]: first(permutation, 0),
      [names.l]: scatterAddRows(permutation, first(l, 1), shape.out),
      // Without its row of U a pivot of zero has neither an effect nor a gradient.
      [names.u]: mul(first(u, 0), reshape(isPivot, [rank, 1])),
    }
  })
  return { values }
}
