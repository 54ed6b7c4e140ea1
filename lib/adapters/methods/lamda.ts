/**
 * LaMDA and LaMDA++ (Azizi et al. 2024, arXiv 2406.12832): three factors of which the first is frozen, the one in the middle is
 * trained, and the last is trained at first and then frozen column by column.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { computed } from '../../graph/computed.js'
import { div, greater, mul, select, sub } from '../../graph/ops/elementwise.js'
import { arange } from '../../graph/ops/gather.js'
import { diagonal } from '../../graph/ops/matrices.js'
import { read, type Sym } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { type GradientTransform, mapParameters } from '../../optim/gradient_transform.js'
import { seedTensor } from '../../tensor/seed.js'
import { declared, uniform, zero } from '../initial_values.js'
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
  OptimizerContext,
  ParameterDeclaration,
  Parametrization,
  ParametrizationType,
  PrepareContext,
  Prepared,
  ResolveContext,
  SitePlan,
} from '../parametrization.js'
import { eachSpectrum, leadingSvd } from '../spectrum.js'
import { escaped, patternValue } from '../target_modules.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import { type Allocation, allocateRanks } from './lamda_ranks.js'

/** Options of {@link lamda}. */
export interface LamdaOptions extends TargetOptions<'lamda_only'> {
  /** Rank; default 32. */
  readonly r?: number
  /** Numerator of the scale lora_alpha / r; default r, a scale of 1. The reference's scripts have 16 for r = 64. */
  readonly lora_alpha?: number
  /** Probability of dropping an element of the adapter's input while training; default 0. */
  readonly lora_dropout?: number
  /** Part of the training after which all columns of B are frozen; default 0.3. */
  readonly eta?: number
  /**
   * `spectral` (default): all three factors from the leading singular vectors and values of the weight, which keeps the
   * rest. `spectral_zero`: the same with B = 0, and the whole weight. `code`: A and S random, B = 0, as the reference.
   */
  readonly init?: 'spectral' | 'spectral_zero' | 'code'
  /** LaMDA++: the ranks that a module may get; a module whose spectrum is flat gets more. */
  readonly rank_candidates?: readonly number[]
  /** LaMDA++: mean rank that the modules may have; default r. */
  readonly budget?: number
  /** Other ranks: regular expression for the end of a path → r; what LaMDA++ found is written here. */
  readonly rank_pattern?: Readonly<Record<string, number>>
}

const schema = z.strictObject({
  r: z.int().positive().default(32),
  lora_alpha: z.number().positive().optional(),
  lora_dropout: z.number().min(0).lt(1).default(0),
  eta: z.number().gt(0).max(1).default(0.3),
  init: z.enum(['spectral', 'spectral_zero', 'code']).default('spectral'),
  rank_candidates: z.array(z.int().positive()).min(1).optional(),
  budget: z.number().positive().optional(),
  rank_pattern: z.record(z.string(), z.int().positive()).optional(),
  ...targetFields('lamda_only'),
})

type LamdaConfig = z.infer<typeof schema>

/**
 * y = W x + s B S A x, s = lora_alpha / r. A `[r, in]` is frozen, S `[r, r]` is trained, and of B `[out, r]` the first
 * ⌊r t / (eta T)⌋ columns stay as they are from step t of T on. With `spectral`, W = U diag(σ) Vᵀ is replaced by W − s B S A
 * wherever the adapter is active, and A = V_rᵀ, S = diag(σ_r), B = U_r: the change begins as nothing. Linear sites.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export const lamda = (options: LamdaOptions = {}): Parametrization => lamdaOf(parseConfig('lamda', schema, options))

function lamdaOf(config: LamdaConfig): Parametrization {
  const needsRanks = config.rank_candidates !== undefined && config.rank_pattern === undefined
  return {
    name: 'lamda',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config),
    optimizer: (inner, context) => freezing(inner, config.eta, context),
    ...(needsRanks
      ? { resolve: async (context) => lamdaOf({ ...config, rank_pattern: await ranksBySpectrum(config, context) }) }
      : {}),
  }
}

/** Registry entry. */
export const lamdaType: ParametrizationType = {
  name: 'lamda',
  peftType: 'LAMDA',
  isPeft: false,
  title: 'LaMDA',
  source: 'Azizi et al. 2024, arXiv 2406.12832',
  purpose: 'few activations: a module keeps r numbers a row for the backward pass',
  initialChange: 'rounding',
  create: (config) => lamda(config as LamdaOptions),
  restore: (stored) => lamda(storedFields(schema, stored) as LamdaOptions),
}

/** PEFT's for A and B, the reference's for S; the singular values that `spectral` began with. */
const names = { a: 'lora_A.weight', b: 'lora_B.weight', s: 'sigma.weight', spectrum: 'lamda_spectrum' } as const

type Tensors = Readonly<Record<string, AttachedSite['parameters'][string]>>

function planAt(site: Site, config: LamdaConfig): SitePlan {
  const shape = matrixShape('lamda', site)
  const { out, inner } = shape
  const { init, lora_dropout: dropout } = config
  const r = patternValue(config.rank_pattern ?? {}, site.path, 'rank_pattern') ?? config.r
  if (r > Math.min(out, inner)) throw unsuited('lamda', site, `r of at most ${Math.min(out, inner)}`, `${r}`)
  const scale = (config.lora_alpha ?? config.r) / config.r
  const change = (parameters: Tensors, buffers: Tensors): LowRankChange => ({
    left: read(parameters[names.b]!),
    core: read(parameters[names.s]!),
    right: read(buffers[names.a]!),
    scale,
  })
  return {
    parameters: declarations(out, r),
    buffers: {
      [names.a]: { shape: [r, inner] },
      ...(init === 'spectral' ? { [names.spectrum]: { shape: [r], sameWithin: 1e-3 } } : {}),
    },
    prepare: (context) =>
      init === 'code' ? randomBasis(r, inner, context) : spectral(context, shape, { r, scale, init, site }),
    forward: (context) => changedLinear(context, shape, [change(context.parameters, context.buffers)], { dropout }),
    merged: ({ weight, parameters, buffers }) => ({
      weight: changedWeight(weight, [change(parameters, buffers)], shape),
    }),
    factors: ({ parameters, buffers, initial }) => {
      const own = factorsOf(change(parameters, buffers))
      return initial ? { a: own.a, b: sub(own.b, factorsOf(change(initial, buffers)).b) } : own
    },
  }
}

/** B = 0 and S as PyTorch begins a linear module, where nothing is prepared. */
const declarations = (out: number, r: number): Record<string, ParameterDeclaration> => ({
  [names.b]: declared([out, r], zero),
  [names.s]: declared([r, r], uniform(1 / Math.sqrt(r))),
})

/** A as PEFT begins it: uniform on ±1/√in. The stream is that of the site's dropout, which nothing else at attach uses. */
async function randomBasis(r: number, inner: number, { seed, stream }: PrepareContext): Promise<Prepared> {
  using words = seedTensor(seed)
  const own = stream + Object.keys(declarations(1, r)).length
  const draw = uniform(1 / Math.sqrt(inner))
  return { values: { [names.a]: await computed((s) => draw([r, inner], { seed: s!, stream: own }), [words]) } }
}

interface SpectralSettings {
  readonly r: number
  readonly scale: number
  readonly init: 'spectral' | 'spectral_zero'
  readonly site: Site
}

async function spectral(
  { weight }: PrepareContext,
  shape: MatrixShape,
  { r, scale, init, site }: SpectralSettings,
): Promise<Prepared> {
  const { values, rest } = await ofSite(site, () =>
    computed(() => {
      const { u, s, vh } = leadingSvd(read(weight), shape, r)
      const values = { [names.a]: vh, [names.s]: diagonal(s) }
      if (init === 'spectral_zero') return { values }
      const leading = { left: u, core: s, right: vh, scale: -scale }
      const rest = changedWeight(read(weight), [leading], shape)
      return { values: { ...values, [names.b]: u, [names.spectrum]: s }, rest }
    }),
  )
  return { values, ...(rest ? { weight: rest } : {}) }
}

/** The update rule under which the first columns of every B neither get a gradient nor move, whatever the rule adds. */
const freezing = (
  inner: GradientTransform,
  eta: number,
  { names: trained, totalSteps }: OptimizerContext,
): GradientTransform => ({
  ...inner,
  config: { ...inner.config, lamda: { eta } },
  init: async (parameters) => {
    const state = await inner.init(parameters)
    const masked = (values: readonly Sym[], step: Sym): Promise<Sym[]> =>
      mapParameters(values, (value, i) =>
        trained[i]!.endsWith(`.${names.b}`) ? frozen(value, div(step, eta * totalSteps)) : value,
      )
    return {
      tensors: state.tensors,
      update: async (gradients, context) =>
        masked(await state.update(await masked(gradients, context.step), context), context.step),
    }
  },
})

/** Zero in the first ⌊r · part⌋ columns. */
function frozen(value: Sym, part: Sym): Sym {
  const r = value.shape.at(-1)!
  const isTrained = greater(arange(r, { dtype: 'f32', start: 1 }), mul(part, r * (1 + 1e-6)))
  return select(isTrained, value, 0)
}

/** LaMDA++: ranks from the weights' spectra. */
async function ranksBySpectrum(
  { rank_candidates: candidates = [], budget, r }: LamdaConfig,
  context: ResolveContext,
): Promise<Record<string, number>> {
  const spectra: Allocation[] = []
  await eachSpectrum('lamda', context, ['linear'], ({ path }, spectrum) => void spectra.push({ path, spectrum }))
  const ranks = allocateRanks(spectra, { candidates, budget: budget ?? r })
  return Object.fromEntries([...ranks].map(([path, rank]) => [escaped(path), rank]))
}
