/** DSEE (Chen et al. 2023, arXiv 2111.00160): a low-rank and a sparse update, and what prunes the weight by them. */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { abs, add, constant, mul } from '../../graph/ops/elementwise.js'
import { repeatInterleave } from '../../graph/ops/gather.js'
import { concat } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { type SparseSupport, sparseLowRankLinear, sparseToDense } from '../../graph/ops/sparse.js'
import { read, type Sym } from '../../graph/sym.js'
import type { Network } from '../../nn/network.js'
import { linearShape, oriented, type Site } from '../../nn/site.js'
import { attentionHeads } from '../block_roles.js'
import { declared, filled, normal, zero } from '../initial_values.js'
import { changeOutput } from '../low_rank_change.js'
import type {
  AttachedSite,
  MergeContext,
  Parametrization,
  ParametrizationType,
  PrepareContext,
  Prepared,
  SitePlan,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import { type SparseMethod, sparseSupportOf } from './dsee_support.js'

/** Options of {@link dsee}: the names of the authors' code, and its defaults but for `max_rank` and `target_modules`. */
export interface DseeOptions extends TargetOptions {
  /** Rank of the low-rank part. Default 4. */
  readonly lora_r?: number
  /** Numerator of the scale `lora_alpha / lora_r`, of both parts. Default 32. */
  readonly lora_alpha?: number
  /** Entries of the sparse part, per module; 0 for none. Default 64. */
  readonly num_sparse?: number
  /** How they are chosen: `grebsmo` (default), the largest of the weight (`omp`) or any (`rp`). */
  readonly sparse_method?: SparseMethod
  /** Below this a residual is none of the sparse part's: absolute, made for weights of deviation 0.04. Default 0.01. */
  readonly tau?: number
  /** Refinements per round. Default 2. */
  readonly inner?: number
  /** Directions that each round adds. Default 5. */
  readonly added?: number
  /** Rounds. Default 100. */
  readonly outer?: number
  /** The rank at which rounds end sooner. Default 32; the authors' code goes up to 496. */
  readonly max_rank?: number
  /** Ends of paths of target modules that get, in the place of an update, a number for each head of their input. */
  readonly head_coefficients?: readonly string[]
  /** The same, with a number for each channel of their input. */
  readonly neuron_coefficients?: readonly string[]
  /** Heads of the modules with {@link head_coefficients}; default: the network's. */
  readonly num_heads?: number
  /** Weight of the sum of |coefficient|, which is added to the loss. Default 1e-4. */
  readonly coefficient_l1?: number
  /** Modules with a pruned weight: what `dseePrune` and its kin write. */
  readonly pruned_modules?: readonly string[]
}

const schema = z.strictObject({
  lora_r: z.int().positive().default(4),
  lora_alpha: z.number().default(32),
  num_sparse: z.int().min(0).default(64),
  sparse_method: z.enum(['grebsmo', 'omp', 'rp']).default('grebsmo'),
  tau: z.number().positive().default(0.01),
  inner: z.int().positive().default(2),
  added: z.int().positive().default(5),
  outer: z.int().positive().default(100),
  max_rank: z.int().positive().default(32),
  head_coefficients: z.array(z.string()).default([]),
  neuron_coefficients: z.array(z.string()).default([]),
  num_heads: z.int().positive().optional(),
  coefficient_l1: z.number().min(0).default(1e-4),
  pruned_modules: z.array(z.string()).optional(),
  ...targetFields('none'),
})

/** {@link DseeOptions} with the defaults filled in. */
export type DseeConfig = z.infer<typeof schema>

/**
 * y = W x + s · (B A + S) x + b with A `[r, in]`, B `[out, r]`, s = lora_alpha / lora_r and S a sparse matrix whose entries
 * are found when the adapter is attached and whose values are trained from 0. {@link dseePrune} sets numbers of W to 0 by
 * what B A + S has become. Modules of `head_coefficients` and `neuron_coefficients` compute W (c ⊙ x) + b instead.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export const dsee = (options: DseeOptions = {}): Parametrization =>
  methodOf(parseConfig('dsee', schema, options), { isRestored: false })

/** Registry entry. */
export const dseeType: ParametrizationType = {
  name: 'dsee',
  peftType: 'DSEE',
  isPeft: false,
  title: 'DSEE',
  source: 'Chen et al. 2023, arXiv 2111.00160',
  purpose: 'a small adapter whose update also says what of the model can be left out',
  initialChange: 'none',
  create: (config) => dsee(config as DseeOptions),
  restore: (stored) => methodOf(parseConfig('dsee', schema, storedFields(schema, stored)), { isRestored: true }),
}

/** @param isRestored the entries of S come from a folder, or another adapter, and are not looked for */
export function methodOf(config: DseeConfig, { isRestored }: { readonly isRestored: boolean }): Parametrization {
  const hasCoefficients = config.head_coefficients.length + config.neuron_coefficients.length > 0
  return {
    name: 'dsee',
    config,
    ...targeting(config),
    ...(config.pruned_modules ? { maskedModules: config.pruned_modules } : {}),
    plan: (site) => planAt(site, config, isRestored),
    ...(hasCoefficients ? { penalty: (sites: readonly AttachedSite[]) => sparsity(sites, config) } : {}),
    ...(config.head_coefficients.length > 0 && config.num_heads === undefined
      ? {
          resolve: async ({ network }) => methodOf({ ...config, num_heads: headsOf(network) }, { isRestored }),
        }
      : {}),
  }
}

/** Attention heads of a network. @throws ERR_HEDDLE_ARGUMENT where its configuration says nothing of them */
export function headsOf(network: Pick<Network, 'config'>): number {
  const heads = attentionHeads(network)
  if (heads !== undefined) return heads
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'dsee.num_heads',
    expected: 'the number of attention heads',
    got: 'none in the configuration of the network',
  })
}

export const coefficientName = 'dsee_c'

const endsWith = ({ path }: Site, names: readonly string[]): boolean =>
  names.some((name) => path === name || path.endsWith(`.${name}`))

function planAt(site: Site, config: DseeConfig, isRestored: boolean): SitePlan {
  if (site.kind !== 'linear') throw unsuited('dsee', site, 'a linear module', `a ${site.kind} module`)
  const inner = linearShape(site)[1]
  if (endsWith(site, config.neuron_coefficients)) return coefficientPlan(site, inner)
  if (!endsWith(site, config.head_coefficients)) return updatePlan(site, config, isRestored)
  // Without a network at hand any number will do: the plan is made again once it is known.
  const heads = config.num_heads ?? inner
  if (inner % heads !== 0) throw unsuited('dsee', site, `inputs that ${heads} heads can share`, `${inner}`)
  return coefficientPlan(site, heads)
}

/** W (c ⊙ x) + b, with a number for each of `groups` groups of inputs. */
function coefficientPlan(site: Site, groups: number): SitePlan {
  const inner = linearShape(site)[1]
  const spread = (parameters: MergeContext['parameters']): Sym =>
    repeatInterleave(read(parameters[coefficientName]!), inner / groups, 0)
  return {
    parameters: { [coefficientName]: declared([groups], filled(1)) },
    forward: ({ x, base, parameters }) => base(undefined, mul(x, spread(parameters))),
    merged: ({ weight, parameters }) => {
      const c = spread(parameters)
      return { weight: mul(weight, site.transposed ? reshape(c, [-1, 1]) : c) }
    },
  }
}

/** λ Σ |c| */
function sparsity(sites: readonly AttachedSite[], { coefficient_l1: weight }: DseeConfig): Sym {
  const all = sites.flatMap(({ parameters }) => {
    const c = parameters[coefficientName]
    return c ? [read(c)] : []
  })
  return all.length === 0 ? constant(0) : mul(sum(abs(concat(all))), weight)
}

const names = { a: 'lora_A.weight', b: 'lora_B.weight', values: 'sparse_value' } as const

function updatePlan(site: Site, config: DseeConfig, isRestored: boolean): SitePlan {
  const [out, inner] = linearShape(site)
  const { lora_r: r, num_sparse: count } = config
  const scale = config.lora_alpha / r
  if (count > out * inner) throw unsuited('dsee', site, `num_sparse of at most ${out * inner}`, `${count}`)
  return {
    parameters: {
      [names.a]: declared([r, inner], normal(0.02)),
      [names.b]: declared([out, r], zero),
      ...(count > 0 ? { [names.values]: declared([count], zero) } : {}),
    },
    ...(count > 0 ? { buffers: indexBuffers(out, inner, count) } : {}),
    ...(count > 0 && !isRestored ? { prepare: (context: PrepareContext) => prepared(site, config, context) } : {}),
    forward: ({ x, base, parameters, buffers, forward: { precision } }) => {
      const [a, b] = [read(parameters[names.a]!), read(parameters[names.b]!)]
      if (count === 0) return add(base(), changeOutput(site, x, { left: b, right: a, scale }, { precision }))
      const values = mul(read(parameters[names.values]!), scale)
      return add(
        base(),
        sparseLowRankLinear(x, { a, b, support: supportAt(site, buffers), values, scale }, { precision }),
      )
    },
    merged: ({ weight, parameters, buffers }) => {
      return { weight: add(weight, oriented(site, updateAt({ site, parameters, buffers }, scale))) }
    },
    ...(count === 0 && !config.pruned_modules
      ? {
          factors: ({ parameters }) => ({
            a: read(parameters[names.a]!),
            b: mul(read(parameters[names.b]!), scale),
          }),
        }
      : {}),
  }
}

/** The entries of S by rows and by columns. */
const indexBuffers = (out: number, inner: number, count: number) =>
  ({
    row_pointers: { shape: [out + 1], dtype: 'i32' },
    column_indices: { shape: [count], dtype: 'i32' },
    column_pointers: { shape: [inner + 1], dtype: 'i32' },
    row_indices: { shape: [count], dtype: 'i32' },
    column_order: { shape: [count], dtype: 'i32' },
  }) as const

async function prepared(site: Site, config: DseeConfig, { weight, seed, stream }: PrepareContext): Promise<Prepared> {
  using rows = await computed(() => oriented(site, read(weight)))
  const found = await sparseSupportOf(rows, site.path, { ...config, seed, stream })
  return {
    values: {
      row_pointers: found.rowPointers,
      column_indices: found.columnIndices,
      column_pointers: found.columnPointers,
      row_indices: found.rowIndices,
      column_order: found.columnOrder,
    },
  }
}

function supportAt(site: Site, buffers: MergeContext['buffers']): SparseSupport {
  const columnIndices = buffers.column_indices!
  return {
    shape: linearShape(site),
    count: columnIndices.size,
    rowPointers: buffers.row_pointers!,
    columnIndices,
    columnPointers: buffers.column_pointers!,
    rowIndices: buffers.row_indices!,
    columnOrder: buffers.column_order!,
  }
}

/** scale · (B A + S) `[out, in]`, or B A alone. Traced. */
export function updateAt(
  { site, parameters, buffers }: Pick<AttachedSite, 'site' | 'parameters' | 'buffers'>,
  scale: number,
  part: 'both' | 'low-rank' = 'both',
): Sym {
  const low = matmul(read(parameters[names.b]!), read(parameters[names.a]!), { alpha: scale })
  const values = parameters[names.values]
  if (!values || part === 'low-rank') return low
  return sparseToDense(supportAt(site, buffers), mul(read(values), scale), low)
}
