/**
 * SALT (Elsayed et al. 2025, arXiv 2503.16055): the leading singular values are scaled and shifted, the rest of the spectrum
 * gets a change of low rank.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { computed } from '../../graph/computed.js'
import { add, cos, maximum, mul, relu, sqrt, square, sub } from '../../graph/ops/elementwise.js'
import { arange } from '../../graph/ops/gather.js'
import { concat, slice } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { diagonal } from '../../graph/ops/matrices.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { read, type Sym } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { declared, filled, normal, uniform, zero } from '../initial_values.js'
import {
  changedLinear,
  changedWeight,
  factorsOf,
  type LowRankChange,
  type MatrixShape,
  matrixShape,
  ofSite,
} from '../low_rank_change.js'
import type {
  AttachedSite,
  ParameterDeclaration,
  Parametrization,
  ParametrizationType,
  PrepareContext,
  Prepared,
  SitePlan,
  SiteTensors,
} from '../parametrization.js'
import { leadingSvd } from '../spectrum.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link salt}. */
export interface SaltOptions extends TargetOptions<'salt_only'> {
  /** Number r of singular values that are scaled and shifted, at most min(out, in); default: by {@link ratio_salt}. */
  readonly rank?: number
  /** Where there is no `rank`: r as part of min(out, in), rounded down, at least 1. Default 0.5. */
  readonly ratio_salt?: number
  /** Rank l of the change of the rest of the spectrum. Default 8. */
  readonly r_lora?: number
  /** Weight of Σ ‖t − s‖ + ‖X Y‖ in the loss, lengths and not squares. Default 0.01. */
  readonly reg_multiplier?: number
  /** `relu`: of every element of the new spectrum, as the reference has it. Default `none`. */
  readonly activation?: 'none' | 'relu'
  /** `true` (default): X uniform on ±√(6/l), Y zero. `gaussian`: both normal with deviation 0.01. */
  readonly init_salt_weights?: true | 'gaussian'
  /** Writes the singular vectors into the file; default false. */
  readonly save_projection?: boolean
}

const schema = z.strictObject({
  rank: z.int().positive().optional(),
  ratio_salt: z.number().gt(0).max(1).default(0.5),
  r_lora: z.int().positive().default(8),
  reg_multiplier: z.number().min(0).default(0.01),
  activation: z.enum(['none', 'relu']).default('none'),
  init_salt_weights: z.union([z.literal(true), z.literal('gaussian')]).default(true),
  save_projection: z.boolean().default(false),
  ...targetFields('salt_only'),
})

type SaltConfig = z.infer<typeof schema>

/**
 * With W = U diag(s) Vᵀ and p = min(out, in): W' = U M Vᵀ, M = act(blockdiag(diag(a ⊙ s_r + b), diag(s_tail) + X Y)).
 * Trained: a `[r]` (begins as 1), b `[r]` (0), X `[p − r, l]`, Y `[l, p − r]`. Computed as W x + U (M − diag(s)) Vᵀ x. Linear and
 * convolution sites, the latter as `[out, in · kh · kw]`.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function salt(options: SaltOptions = {}): Parametrization {
  const config = parseConfig('salt', schema, options)
  return {
    name: 'salt',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config),
    ...(config.reg_multiplier > 0 ? { penalty: (sites) => regulariser(sites, config.reg_multiplier) } : {}),
  }
}

/** Registry entry. */
export const saltType: ParametrizationType = {
  name: 'salt',
  peftType: 'SALT',
  isPeft: false,
  title: 'SALT',
  source: 'Elsayed et al. 2025, arXiv 2503.16055',
  purpose: 'few examples: rescales what the weight does, and adds a little where it does next to nothing',
  initialChange: 'none',
  create: (config) => salt(config as SaltOptions),
  restore: (stored) => salt(storedFields(schema, stored) as SaltOptions),
}

/** Parameters by the reference's names; buffers. */
const names = {
  a: 'trainable_scale_A',
  b: 'trainable_shift_B',
  x: 'trainable_X',
  y: 'trainable_Y',
  s: 'salt_s',
  u: 'salt_u',
  vh: 'salt_vh',
  uTail: 'salt_u_tail',
  vhTail: 'salt_vh_tail',
  probe: 'salt_probe',
} as const

function planAt(site: Site, config: SaltConfig): SitePlan {
  const shape = matrixShape('salt', site, ['linear', 'conv2d'])
  const { out, inner } = shape
  const p = Math.min(out, inner)
  const r = config.rank ?? Math.max(1, Math.floor(p * config.ratio_salt))
  if (r > p) throw unsuited('salt', site, `rank of at most ${p}`, `${r}`)
  const isStored = config.save_projection
  const changes = (tensors: SiteTensors): LowRankChange[] => changesOf(tensors, config)
  return {
    parameters: declarations(r, p - r, config),
    buffers: {
      [names.s]: { shape: [p], sameWithin: 1e-3 },
      [names.probe]: { shape: [p], ...(isStored ? {} : { sameWithin: 0.01 }) },
      [names.u]: { shape: [out, r], isStored },
      [names.vh]: { shape: [r, inner], isStored },
      ...(r === p
        ? {}
        : { [names.uTail]: { shape: [out, p - r], isStored }, [names.vhTail]: { shape: [p - r, inner], isStored } }),
    },
    prepare: ({ weight }) => factorised(weight, shape, r, site),
    forward: (context) => changedLinear(context, shape, changes(context)),
    merged: (context) => ({ weight: changedWeight(context.weight, changes(context), shape) }),
    ...(shape.isConvolution || config.activation === 'relu'
      ? {}
      : { factors: (attached) => factorsOfAll(changes(attached)) }),
  }
}

function declarations(r: number, tail: number, config: SaltConfig): Record<string, ParameterDeclaration> {
  const { r_lora: l, init_salt_weights: init } = config
  const own = { [names.a]: declared([r], filled(1)), [names.b]: declared([r], zero) }
  if (tail === 0) return own
  const [x, y] = init === 'gaussian' ? [normal(0.01), normal(0.01)] : [uniform(Math.sqrt(6 / l)), zero]
  return { ...own, [names.x]: declared([tail, l], x), [names.y]: declared([l, tail], y) }
}

/** U, s, Vᵀ in two parts, and one number a singular vector by which a file knows that it means the same ones. */
async function factorised(
  weight: PrepareContext['weight'],
  shape: MatrixShape,
  r: number,
  site: Site,
): Promise<Prepared> {
  const p = Math.min(shape.out, shape.inner)
  const values = await ofSite(site, () =>
    computed(() => {
      const { u, s, vh } = leadingSvd(read(weight), shape, p)
      const direction = reshape(cos(square(arange(shape.inner, { dtype: 'f32' }))), [-1, 1])
      return {
        [names.s]: s,
        [names.probe]: reshape(matmul(vh, direction), [p]),
        [names.u]: part(u, 1, 0, r),
        [names.vh]: part(vh, 0, 0, r),
        ...(r === p ? {} : { [names.uTail]: part(u, 1, r, p), [names.vhTail]: part(vh, 0, r, p) }),
      }
    }),
  )
  return { values }
}

const part = (x: Sym, axis: number, start: number, end: number): Sym => slice(x, [{ axis, start, end }])

/**
 * ΔW in two parts: U_r diag(t − s_r) V_rᵀ, and U_tail X · Y V_tailᵀ. Made as two factors of l columns, the second costs a row no
 * more than a LoRA of rank l. Behind the element-wise relu it is no product any more, but a whole matrix in the basis
 * of the tail.
 */
function changesOf({ parameters, buffers }: SiteTensors, { activation }: SaltConfig): LowRankChange[] {
  const s = read(buffers[names.s]!)
  const p = s.shape[0]!
  const r = parameters[names.a]!.shape[0]!
  const isClipped = activation === 'relu'
  const t = spectrum(parameters, part(s, 0, 0, r))
  const top: LowRankChange = {
    left: read(buffers[names.u]!),
    core: sub(isClipped ? relu(t) : t, part(s, 0, 0, r)),
    right: read(buffers[names.vh]!),
  }
  if (r === p) return [top]
  const [x, y] = [read(parameters[names.x]!), read(parameters[names.y]!)]
  const [left, right] = [read(buffers[names.uTail]!), read(buffers[names.vhTail]!)]
  if (!isClipped) return [top, { left: matmul(left, x), right: matmul(y, right) }]
  const old = diagonal(part(s, 0, r, p))
  return [top, { left, core: sub(relu(add(old, matmul(x, y))), old), right }]
}

/** a ⊙ s + b */
const spectrum = (parameters: SiteTensors['parameters'], s: Sym): Sym =>
  add(mul(read(parameters[names.a]!), s), read(parameters[names.b]!))

function factorsOfAll(changes: readonly LowRankChange[]): { a: Sym; b: Sym } {
  const factors = changes.map(factorsOf)
  return {
    a: concat(
      factors.map(({ a }) => a),
      0,
    ),
    b: concat(
      factors.map(({ b }) => b),
      1,
    ),
  }
}

/** λ Σ ‖t − s‖ + ‖X Y‖ over the sites. */
function regulariser(sites: readonly AttachedSite[], multiplier: number): Sym {
  const terms = sites.flatMap(({ parameters, buffers }) => {
    const r = parameters[names.a]!.shape[0]!
    const s = part(read(buffers[names.s]!), 0, 0, r)
    const own = length(sum(square(sub(spectrum(parameters, s), s))))
    if (!parameters[names.x]) return [own]
    const [x, y] = [read(parameters[names.x]!), read(parameters[names.y]!)]
    // ‖X Y‖² = ⟨Xᵀ X, Y Yᵀ⟩: l × l matrices in the place of one of the size of the tail.
    const squares = mul(matmul(x, x, { transposeA: true }), matmul(y, y, { transposeB: true }))
    return [own, length(sum(squares))]
  })
  return mul(
    terms.reduce((a, b) => add(a, b)),
    multiplier,
  )
}

/** √squares, with the derivative 0 where it is 0: there it has none, and every run begins there. */
const length = (squares: Sym): Sym => sqrt(maximum(squares, 1e-30))
