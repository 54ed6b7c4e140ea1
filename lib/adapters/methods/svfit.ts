/** SVFit (Sun et al. 2024, arXiv 2409.05926): the leading singular values of the weight are trained, and nothing else. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { add, maximum, mul, neg, square } from '../../graph/ops/elementwise.js'
import { sum } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { declared, zero } from '../initial_values.js'
import { changedLinear, changedWeight, factorsOf, type LowRankChange, matrixShape, ofSite } from '../low_rank_change.js'
import type {
  AttachedSite,
  Parametrization,
  ParametrizationType,
  ResolveContext,
  SitePlan,
  SiteTensors,
} from '../parametrization.js'
import { eachSpectrum, leadingSvd } from '../spectrum.js'
import { escaped, patternValue } from '../target_modules.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link svfit}. */
export interface SvfitOptions extends TargetOptions<'svfit_only'> {
  /** Number of singular values, at most min(out, in); default: as many as {@link energy} asks for. */
  readonly r?: number
  /**
   * Where there is no `r`: every module gets the smallest r with Σᵢ≤ᵣ sᵢ² / Σᵢ sᵢ² ≥ energy. Default 0.99.
   */
  readonly energy?: number
  /** Other numbers: regular expression for the end of a path → r; the first that matches counts. */
  readonly rank_pattern?: Readonly<Record<string, number>>
  /** Probability of dropping an element of the adapter's input while training; default 0. */
  readonly dropout?: number
  /** No singular value below 0; default false. */
  readonly nonnegative?: boolean
  /** Weight of ‖d‖² in the loss; default 0. An optimizer's weight decay acts on d too. */
  readonly decay_delta?: number
  /** Writes the singular vectors into the file, r (in + out) numbers a module more; default false. */
  readonly save_projection?: boolean
}

const schema = z.strictObject({
  r: z.int().positive().optional(),
  energy: z.number().gt(0).max(1).default(0.99),
  rank_pattern: z.record(z.string(), z.int().positive()).optional(),
  dropout: z.number().min(0).lt(1).default(0),
  nonnegative: z.boolean().default(false),
  decay_delta: z.number().min(0).default(0),
  save_projection: z.boolean().default(false),
  ...targetFields('svfit_only'),
})

type SvfitConfig = z.infer<typeof schema>

/**
 * With W = U diag(s) Vᵀ, s descending: y = W x + U_r diag(d) V_rᵀ x. Trained: d `[r]`, which begins as 0 and is what the
 * r leading singular values have changed by; U_r `[out, r]` and V_rᵀ `[r, in]` are frozen, and found again from the
 * weight when the adapter is loaded. Linear and convolution sites, the latter as `[out, in · kh · kw]`.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function svfit(options: SvfitOptions = {}): Parametrization {
  return svfitOf(parseConfig('svfit', schema, options))
}

const svfitOf = (config: SvfitConfig): Parametrization => ({
  name: 'svfit',
  config,
  ...targeting(config),
  plan: (site) => planAt(site, config),
  ...(config.r === undefined && !config.rank_pattern
    ? { resolve: async (context) => svfitOf({ ...config, rank_pattern: await ranksByEnergy(config, context) }) }
    : {}),
  ...(config.decay_delta > 0 ? { penalty: (sites) => decay(sites, config.decay_delta) } : {}),
})

/** Registry entry. */
export const svfitType: ParametrizationType = {
  name: 'svfit',
  peftType: 'SVFIT',
  isPeft: false,
  title: 'SVFit',
  source: 'Sun et al. 2024, arXiv 2409.05926',
  purpose: 'r numbers a module: thousands of adapters of one model in a few MB',
  initialChange: 'none',
  create: (config) => svfit(config as SvfitOptions),
  restore: (stored) => svfit(storedFields(schema, stored) as SvfitOptions),
}

const names = { d: 'svfit_d', s: 'svfit_s', u: 'svfit_u', vh: 'svfit_vh' } as const

function planAt(site: Site, config: SvfitConfig): SitePlan {
  const shape = matrixShape('svfit', site, ['linear', 'conv2d'])
  const { out, inner } = shape
  // Without either, before energy has been looked at: all of them.
  const r = patternValue(config.rank_pattern ?? {}, site.path, 'rank_pattern') ?? config.r ?? Math.min(out, inner)
  if (r > Math.min(out, inner)) throw unsuited('svfit', site, `r of at most ${Math.min(out, inner)}`, `${r}`)
  const isStored = config.save_projection
  const change = ({ parameters, buffers }: SiteTensors): LowRankChange => {
    const d = read(parameters[names.d]!)
    return {
      left: read(buffers[names.u]!),
      core: config.nonnegative ? maximum(d, neg(read(buffers[names.s]!))) : d,
      right: read(buffers[names.vh]!),
    }
  }
  return {
    parameters: { [names.d]: declared([r], zero) },
    buffers: {
      [names.s]: { shape: [r], sameWithin: 1e-3 },
      [names.u]: { shape: [out, r], isStored },
      [names.vh]: { shape: [r, inner], isStored },
    },
    prepare: async ({ weight }) => {
      const { u, s, vh } = await ofSite(site, () => computed(() => leadingSvd(read(weight), shape, r)))
      return { values: { [names.s]: s, [names.u]: u, [names.vh]: vh } }
    },
    forward: (context) => changedLinear(context, shape, [change(context)], { dropout: config.dropout }),
    merged: (context) => ({ weight: changedWeight(context.weight, [change(context)], shape) }),
    ...(shape.isConvolution ? {} : { factors: (attached) => factorsOf(change(attached)) }),
  }
}

const decay = (sites: readonly AttachedSite[], weight: number): Sym =>
  sites.map(({ parameters }) => mul(weight, sum(square(read(parameters[names.d]!))))).reduce((a, b) => add(a, b))

/** For every site the smallest r whose squared singular values are that part of them all. */
async function ranksByEnergy({ energy }: SvfitConfig, context: ResolveContext): Promise<Record<string, number>> {
  const ranks: Record<string, number> = {}
  await eachSpectrum('svfit', context, ['linear', 'conv2d'], (site, spectrum) => {
    ranks[escaped(site.path)] = rankOf(spectrum, energy, site)
  })
  return ranks
}

function rankOf(spectrum: readonly number[], energy: number, { path }: Site): number {
  const total = spectrum.reduce((all, s) => all + s * s, 0)
  if (total === 0)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: `svfit.energy: ${path}`,
      expected: 'a weight that is not zero',
      got: 'zeros',
      hint: 'Leave the module out by exclude_modules, or give r.',
    })
  let captured = 0
  const r = spectrum.findIndex((s) => {
    captured += s * s
    return captured >= energy * total
  })
  return r === -1 ? spectrum.length : r + 1
}
