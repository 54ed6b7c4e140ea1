/**
 * LoRA-XS (Balazy et al. 2024, arXiv 2405.17604) and LoRA-SB (Ponkshe et al. 2024, arXiv 2411.19557): of three factors only
 * the one in the middle is trained.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { mul, sign } from '../../graph/ops/elementwise.js'
import { diagonal } from '../../graph/ops/matrices.js'
import { max, reshape } from '../../graph/ops/reduce.js'
import { read } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { weightGradients } from '../../observers/weight_gradients.js'
import type { Tensor } from '../../tensor/tensor.js'
import { declared, type InitialValue, normal, zero } from '../initial_values.js'
import { changedLinear, changedWeight, factorsOf, type LowRankChange, matrixShape, ofSite } from '../low_rank_change.js'
import { copiesOf, foundValues, type Values } from '../owned_values.js'
import type {
  Parametrization,
  ParametrizationType,
  Prepared,
  ResolveContext,
  SitePlan,
  SiteTensors,
} from '../parametrization.js'
import { leadingSvd } from '../spectrum.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'

/** Options of {@link loraXs}. */
export interface LoraXsOptions<Only extends string = 'lora_xs_only'> extends TargetOptions<Only> {
  /** Rank; default 32. */
  readonly r?: number
  /** Numerator of the scale lora_alpha / r; default r, a scale of 1. */
  readonly lora_alpha?: number
  /** Probability of dropping an element of the adapter's input while training; default 0. */
  readonly lora_dropout?: number
}

/** Options of {@link loraSb}. */
export interface LoraSbOptions extends LoraXsOptions<'lora_sb_only'> {
  /** Learning rate of the first step of the training to come: with a warm-up, the rate at its first step. Default 1e-4. */
  readonly eta1?: number
  /** What of the gradient is followed: its signs, as AdamW's first step does (default), or itself. */
  readonly gradient?: 'sign' | 'raw'
}

const fields = {
  r: z.int().positive().default(32),
  lora_alpha: z.number().positive().optional(),
  lora_dropout: z.number().min(0).lt(1).default(0),
} as const

const xsSchema = z.strictObject({ ...fields, ...targetFields('lora_xs_only') })
const sbSchema = z.strictObject({
  ...fields,
  eta1: z.number().positive().default(1e-4),
  gradient: z.enum(['sign', 'raw']).default('sign'),
  ...targetFields('lora_sb_only'),
})

type XsConfig = z.infer<typeof xsSchema>
type SbConfig = z.infer<typeof sbSchema>

/**
 * y = W x + s B R A x, s = lora_alpha / r. Trained: R `[r, r]`, which begins normal with deviation 1e-5. Frozen, from the
 * leading singular values and vectors of W = U diag(σ) Vᵀ: B = U_r `[out, r]`, A = diag(σ_r) V_rᵀ `[r, in]`. Linear sites.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function loraXs(options: LoraXsOptions = {}): Parametrization {
  const config = parseConfig('lora_xs', xsSchema, options)
  const prepared = async (site: Site, weight: Tensor): Promise<Prepared> => ({
    values: await ofSite(site, () =>
      computed(() => {
        const { u, s, vh } = leadingSvd(read(weight), matrixShape('lora_xs', site), config.r)
        return { [names.a]: mul(reshape(s, [-1, 1]), vh), [names.b]: u }
      }),
    ),
  })
  return {
    name: 'lora_xs',
    config,
    ...targeting(config),
    plan: (site) => ({
      ...planAt('lora_xs', site, config, normal(1e-5)),
      prepare: ({ weight }) => prepared(site, weight),
    }),
  }
}

/**
 * {@link loraXs} that begins with the first step of full training: with G the gradient of the loss to W and
 * Δ = −eta1 · sign(G) ≈ U diag(σ) Vᵀ, B = U_r and A = V_rᵀ are frozen, and R begins as diag(σ_r) / s, so that s B R A is the best
 * approximation of Δ of rank r. A and B are orthonormal: with s = 1, a step on R moves W by the full gradient's
 * projection onto their spaces. Needs a calibration when it is attached. Linear sites.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export const loraSb = (options: LoraSbOptions = {}): Parametrization => sbOf(parseConfig('lora_sb', sbSchema, options))

function sbOf(config: SbConfig, found?: ReadonlyMap<string, Values>): Parametrization {
  return {
    name: 'lora_sb',
    config,
    ...targeting(config),
    plan: (site) => {
      const begin = found?.get(site.path)
      if (found && !begin) throw unsuited('lora_sb', site, 'one of the modules that the data was shown', 'another one')
      return {
        ...planAt('lora_sb', site, config, zero),
        ...(begin ? { prepare: async () => ({ values: await copiesOf(begin) }) } : {}),
      }
    },
    ...(found ? {} : { resolve: async (context) => sbOf(config, await firstSteps(config, context)) }),
  }
}

/** Registry entry. */
export const loraXsType: ParametrizationType = {
  name: 'lora_xs',
  peftType: 'LORA_XS',
  isPeft: false,
  title: 'LoRA-XS',
  source: 'Balazy et al. 2024, arXiv 2405.17604',
  purpose: 'r² numbers a module, whatever its size',
  initialChange: 'small',
  create: (config) => loraXs(config as LoraXsOptions),
  restore: (stored) => loraXs(storedFields(xsSchema, stored) as LoraXsOptions),
}

/** Registry entry. */
export const loraSbType: ParametrizationType = {
  name: 'lora_sb',
  peftType: 'LORA_SB',
  isPeft: false,
  title: 'LoRA-SB',
  source: 'Ponkshe et al. 2024, arXiv 2411.19557',
  purpose: 'r² numbers a module that begin where full training would go first',
  initialChange: 'any',
  page: 'lora_xs',
  create: (config) => loraSb(config as LoraSbOptions),
  restore: (stored) => loraSb(storedFields(sbSchema, stored) as LoraSbOptions),
}

/** As PEFT writes them for the reference's modules. */
const names = { a: 'lora_A.weight', b: 'lora_B.weight', r: 'default_lora_latent_mapping.weight' } as const

function planAt(method: string, site: Site, config: Pick<XsConfig, keyof typeof fields>, init: InitialValue): SitePlan {
  const { shape, r, scale } = settingsAt(method, site, config)
  const { out, inner } = shape
  const change = ({ parameters, buffers }: SiteTensors): LowRankChange => ({
    left: read(buffers[names.b]!),
    core: read(parameters[names.r]!),
    right: read(buffers[names.a]!),
    scale,
  })
  return {
    parameters: { [names.r]: declared([r, r], init) },
    buffers: { [names.a]: { shape: [r, inner] }, [names.b]: { shape: [out, r] } },
    forward: (context) => changedLinear(context, shape, [change(context)], { dropout: config.lora_dropout }),
    merged: (context) => ({ weight: changedWeight(context.weight, [change(context)], shape) }),
    factors: (attached) => factorsOf(change(attached)),
  }
}

/** @throws ERR_HEDDLE_ARGUMENT where there is no room for r */
function settingsAt(method: string, site: Site, { r, lora_alpha = r }: Pick<XsConfig, 'r' | 'lora_alpha'>) {
  const shape = matrixShape(method, site)
  const most = Math.min(shape.out, shape.inner)
  if (r > most) throw unsuited(method, site, `r of at most ${most}`, `${r}`)
  return { shape, r, scale: lora_alpha / r }
}

/** A, B and R of every site, from the mean gradient of the calibration's batches. */
async function firstSteps(
  config: SbConfig,
  { network, sites, calibration, watch }: ResolveContext,
): Promise<ReadonlyMap<string, Values>> {
  const { r, lora_alpha = r, eta1, gradient } = config
  // What is refused is refused before the batches run.
  for (const site of sites) settingsAt('lora_sb', site, config)
  const begin = async (site: Site, mean: Tensor): Promise<Values> => {
    const { largest, ...values } = await ofSite(site, () =>
      computed(() => {
        const delta = mul(gradient === 'sign' ? sign(read(mean)) : read(mean), -eta1)
        const { u, s, vh } = leadingSvd(delta, matrixShape('lora_sb', site), r)
        return { [names.a]: vh, [names.b]: u, [names.r]: mul(diagonal(s), r / lora_alpha), largest: max(s) }
      }),
    )
    using top = largest
    if (top.item() > 0) return values
    for (const each of Object.values(values)) each.dispose()
    throw withoutGradient(site)
  }
  return await foundValues((add) =>
    weightGradients(
      network,
      sites,
      calibration(),
      async (site, mean) => add(site.path, await begin(site, mean)),
      watch,
    ),
  )
}

const withoutGradient = ({ path }: Site): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: `lora_sb: ${path}`,
    expected: 'a gradient from the calibration',
    got: 'zeros',
    hint: 'The loss does not depend on this module: leave it out by exclude_modules.',
  })
