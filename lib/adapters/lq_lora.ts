/**
 * LQ-LoRA (Guo et al. 2023, arXiv 2311.12023): the weight is quantised, what that loses of low rank is where a LoRA begins, and
 * how many bits each matrix gets is an integer programme.
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { add, broadcastTo, cast, constant, div, floor, mul, sub } from '../graph/ops/elementwise.js'
import { concat, slice, transpose } from '../graph/ops/index.js'
import { max, reshape } from '../graph/ops/reduce.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import type { Site } from '../nn/site.js'
import { weightGradients } from '../observers/weight_gradients.js'
import { allocateBits } from '../quant/allocate_bits.js'
import { bitsPerWeight, blockCounts, dequantised, type NormalFloatConfig } from '../quant/normal_float.js'
import { elementCount } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import {
  asMatrix,
  changedLinear,
  changedWeight,
  type LowRankChange,
  type MatrixShape,
  matrixShape,
  ofSite,
} from './low_rank_change.js'
import { type Decomposition, decompose } from './lq_lora_decomposition.js'
import { packed, unpacked } from './masked_weight.js'
import type {
  AttachedSite,
  ParameterDeclaration,
  Parametrization,
  ParametrizationType,
  Prepared,
  ResolveContext,
  SitePlan,
} from './parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from './targeting.js'

/** A configuration of {@link lqLora}: num_bits, num_bits_0, num_bits_1, block_size_0, block_size_1. */
export type LqLoraCandidate = readonly [2 | 3 | 4 | 8, 2 | 3 | 4 | 8, 'bf16' | 'fp16' | 'fp32', number, number]

/** Options of {@link lqLora}. */
export interface LqLoraOptions extends TargetOptions<'lq_lora_only'> {
  /** Rank; default 64. */
  readonly num_ranks?: number
  /** Numerator of the scale lora_alpha / num_ranks; default 16. */
  readonly lora_alpha?: number
  /** Probability of dropping an element of the LoRA's input while training; default 0. */
  readonly lora_dropout?: number
  /** Bits of a code; default 4. This and the next four are those of every module, where there is no budget. */
  readonly num_bits?: 2 | 3 | 4 | 8
  /** Bits of a quantised scale; default 8. */
  readonly num_bits_0?: 2 | 3 | 4 | 8
  /** Type of the scales of scales; default `fp32`. */
  readonly num_bits_1?: 'bf16' | 'fp16' | 'fp32'
  /** Weights per scale; default 64. */
  readonly block_size_0?: number
  /** Scales per scale of scales; default 256. */
  readonly block_size_1?: number
  /** Mean bits per weight of the modules: each gets the one of {@link candidates} that makes the sum of squared errors least. */
  readonly budget?: number
  /** What a module may get under a budget; default: 2, 3, 4 and 8 bits in blocks of 16, 32 and 64, scales of 8 bits. */
  readonly candidates?: readonly LqLoraCandidate[]
  /** What the modules have got, by path; found where there is a budget. */
  readonly configurations?: Readonly<Record<string, LqLoraCandidate>>
  /** Weighs errors by the squared gradients of a calibration; default false. */
  readonly data_aware?: boolean
  /** Most iterations of the decomposition; default 100. */
  readonly num_iterations?: number
  /** Singular vectors by a random sketch (default), or exactly. */
  readonly randomized?: boolean
  /** Further vectors of the sketch; default 10. */
  readonly num_oversampling?: number
}

const bits = z.union([z.literal(2), z.literal(3), z.literal(4), z.literal(8)])
const floatType = z.enum(['bf16', 'fp16', 'fp32'])
const size = z.int().positive()
const candidate = z.tuple([bits, bits, floatType, size, size]).readonly()

const schema = z.strictObject({
  num_ranks: z.int().positive().default(64),
  lora_alpha: z.number().positive().default(16),
  lora_dropout: z.number().min(0).lt(1).default(0),
  num_bits: bits.default(4),
  num_bits_0: bits.default(8),
  num_bits_1: floatType.default('fp32'),
  block_size_0: size.default(64),
  block_size_1: size.default(256),
  budget: z.number().positive().optional(),
  candidates: z.array(candidate).min(1).optional(),
  configurations: z.record(z.string(), candidate).optional(),
  data_aware: z.boolean().default(false),
  num_iterations: z.int().positive().default(100),
  randomized: z.boolean().default(true),
  num_oversampling: z.int().min(0).default(10),
  ...targetFields('lq_lora_only'),
})

type LqLoraConfig = z.infer<typeof schema>

/**
 * y = Q x + s B A x, s = lora_alpha / num_ranks, with W ≈ Q + L₁ L₂, Q quantised; A `[r, in]` and B `[out, r]` begin as L₂/√s and
 * L₁/√s and are trained. A fresh adapter is near the model, not equal to it. The adapter works on Q, as numbers, in
 * the place of the weight; its file holds Q in bits. Linear sites.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function lqLora(options: LqLoraOptions = {}): Parametrization {
  const config = parseConfig('lq_lora', schema, options)
  if (config.candidates && config.budget === undefined)
    throw misuse('lq_lora.candidates', 'a budget beside them', 'candidates alone')
  return lqLoraOf(config)
}

function lqLoraOf(config: LqLoraConfig, fisher?: ReadonlyMap<string, Tensor>): Parametrization {
  const isOpen = fisher === undefined && (config.data_aware || (config.budget !== undefined && !config.configurations))
  return {
    name: 'lq_lora',
    config,
    ...targeting(config),
    plan: (site) => planAt(site, config, fisher?.get(site.path)),
    ...(isOpen ? { resolve: (context) => resolved(config, context) } : {}),
  }
}

/** Registry entry. */
export const lqLoraType: ParametrizationType = {
  name: 'lq_lora',
  peftType: 'LQ_LORA',
  isPeft: false,
  title: 'LQ-LoRA',
  source: 'Guo et al. 2023, arXiv 2311.12023',
  purpose: 'a model and its adapter in 2 to 4 bits a weight, each matrix with as many as it needs',
  initialChange: 'any',
  create: (config) => lqLora(config as LqLoraOptions),
  restore: (stored) => lqLora(storedFields(schema, stored) as LqLoraOptions),
}

/** PEFT's for A and B; codes and scales in bits, scales of scales, and their offset. */
const names = {
  a: 'lora_A.weight',
  b: 'lora_B.weight',
  codes: 'qweight',
  scales: 'qscales',
  superScales: 'scale1',
  offset: 'offset',
} as const

const dtypes = { bf16: 'bf16', fp16: 'f16', fp32: 'f32' } as const

function planAt(site: Site, config: LqLoraConfig, fisher: Tensor | undefined): SitePlan {
  const shape = matrixShape('lq_lora', site)
  const { out, inner } = shape
  const { num_ranks: r, lora_dropout: dropout } = config
  if (r > Math.min(out, inner)) throw unsuited('lq_lora', site, `num_ranks of at most ${Math.min(out, inner)}`, `${r}`)
  const scale = config.lora_alpha / r
  const quantisation = quantisationAt(site, config)
  const { supers } = blockCounts(out * inner, quantisation)
  const { num_bits, num_bits_0, num_bits_1, block_size_0, block_size_1 } = quantisation
  const blocks = supers * block_size_1
  const change = ({ parameters }: Pick<AttachedSite, 'parameters'>): LowRankChange => ({
    left: read(parameters[names.b]!),
    right: read(parameters[names.a]!),
    scale,
  })
  return {
    parameters: { [names.a]: zeros([r, inner]), [names.b]: zeros([out, r]) },
    buffers: {
      [names.codes]: { shape: [num_bits, Math.ceil((blocks * block_size_0) / 8)], dtype: 'u8' },
      [names.scales]: { shape: [num_bits_0, Math.ceil(blocks / 8)], dtype: 'u8' },
      [names.superScales]: { shape: [supers], dtype: dtypes[num_bits_1] },
      [names.offset]: { shape: [1] },
    },
    prepare: async ({ weight }) => {
      const found = await ofSite(site, () => decomposed(weight, shape, config, { quantisation, fisher }))
      fisher?.dispose()
      return preparedFrom(found, shape, scale, quantisation)
    },
    restoredWeight: (buffers) => restored(buffers, shape, quantisation),
    forward: (context) => changedLinear(context, shape, [change(context)], { dropout, path: 'products' }),
    merged: (context) => ({ weight: changedWeight(context.weight, [change(context)], shape) }),
  }
}

/** Filled by what is prepared or loaded. */
const zeros = (shape: readonly number[]): ParameterDeclaration => ({
  shape,
  init: () => broadcastTo(constant(0), shape),
})

function quantisationAt({ path }: Site, config: LqLoraConfig): NormalFloatConfig {
  const own = config.configurations?.[path]
  return own ? configOf(own) : config
}

const configOf = ([
  num_bits,
  num_bits_0,
  num_bits_1,
  block_size_0,
  block_size_1,
]: LqLoraCandidate): NormalFloatConfig => ({
  num_bits,
  num_bits_0,
  num_bits_1,
  block_size_0,
  block_size_1,
})

/** The site's weight taken apart; the caller owns what is found. */
async function decomposed(
  weight: Tensor,
  shape: MatrixShape,
  config: LqLoraConfig,
  { quantisation, fisher }: { readonly quantisation: NormalFloatConfig; readonly fisher: Tensor | undefined },
): Promise<Decomposition> {
  using matrix = await computed(() => mul(asMatrix(read(weight), shape), 1))
  const oversampling = config.randomized ? config.num_oversampling : undefined
  const { num_ranks: rank, num_iterations: iterations } = config
  const found = await decompose(matrix, { rank, config: quantisation, iterations, oversampling, fisher })
  if (Number.isFinite(found.error)) return found
  throw misuse('lq_lora', 'finite numbers', `an error of ${found.error}`)
}

/** A, B and the packed Q; Q in numbers as the site's weight. */
async function preparedFrom(
  { parts }: Decomposition,
  shape: MatrixShape,
  scale: number,
  { num_bits, num_bits_0, num_bits_1 }: NormalFloatConfig,
): Promise<Prepared> {
  const root = Math.sqrt(scale)
  const { weight, ...values } = await computed(() => ({
    [names.a]: div(read(parts.l2), root),
    [names.b]: div(read(parts.l1), root),
    [names.codes]: bitPlanes(read(parts.codes), num_bits),
    [names.scales]: bitPlanes(read(parts.scales), num_bits_0),
    [names.superScales]: cast(read(parts.superScales), dtypes[num_bits_1]),
    [names.offset]: mul(read(parts.offset), 1),
    weight: stored(read(parts.q), shape),
  }))
  for (const used of Object.values(parts)) used.dispose()
  return { values, weight: weight! }
}

/** Q as the site's weight, from the file's bits. */
const restored = (
  buffers: Readonly<Record<string, Tensor>>,
  shape: MatrixShape,
  config: NormalFloatConfig,
): Promise<Tensor> =>
  computed(() => {
    const { supers } = blockCounts(shape.out * shape.inner, config)
    const { block_size_0, block_size_1, num_bits, num_bits_0 } = config
    const quantity = {
      codes: ofBitPlanes(read(buffers[names.codes]!), num_bits, [supers, block_size_1, block_size_0]),
      scales: ofBitPlanes(read(buffers[names.scales]!), num_bits_0, [supers, block_size_1]),
      superScales: cast(read(buffers[names.superScales]!), 'f32'),
      offset: read(buffers[names.offset]!),
    }
    return stored(dequantised(quantity, config, [shape.out, shape.inner]), shape)
  })

const stored = (matrix: Sym, { isTransposed }: MatrixShape): Sym => (isTransposed ? transpose(matrix) : mul(matrix, 1))

/** u8 `[bits, ⌈size / 8⌉]`: bit p of every number in plane p, the first number in the lowest bit. */
function bitPlanes(x: Sym, count: number): Sym {
  const planes = Array.from({ length: count }, (_, p) => {
    const shifted = floor(div(x, 2 ** p))
    return reshape(packed(sub(shifted, mul(2, floor(div(shifted, 2))))), [1, -1])
  })
  return concat(planes, 0)
}

function ofBitPlanes(planes: Sym, count: number, shape: readonly number[]): Sym {
  const plane = (p: number): Sym => reshape(slice(planes, [{ axis: 0, start: p, end: p + 1 }]), [-1])
  const terms = Array.from({ length: count }, (_, p) => mul(unpacked(plane(p), shape), 2 ** p))
  return terms.reduce((a, b) => add(a, b))
}

/** With the configuration of every module, and the squared gradients that weigh its errors. */
async function resolved(
  config: LqLoraConfig,
  { network, sites, calibration }: ResolveContext,
): Promise<Parametrization> {
  for (const site of sites) planAt(site, config, undefined)
  const fisher = new Map<string, Tensor>()
  if (config.data_aware)
    await weightGradients(
      network,
      sites,
      calibration(),
      async (site, squares) => {
        const own = await computed(() => ({
          f: asMatrix(mul(read(squares), 1), matrixShape('lq_lora', site)),
          top: max(read(squares)),
        }))
        if (!(own.top.item() > 0)) throw unsuited('lq_lora', site, 'a gradient from the calibration', 'zeros')
        fisher.set(site.path, own.f)
      },
      { of: 'squares' },
    )
  const { budget, configurations } = config
  if (budget === undefined || configurations) return lqLoraOf(config, fisher)
  return lqLoraOf({ ...config, configurations: await allocated(config, sites, { budget, fisher }) }, fisher)
}

/** 2, 3, 4 and 8 bits in blocks of 16, 32 and 64 with scales of 8 bits: from 2.13 to 8.5 bits a weight. */
const defaultCandidates: readonly LqLoraCandidate[] = ([2, 3, 4, 8] as const).flatMap((num_bits) =>
  [16, 32, 64].map((block) => [num_bits, 8, 'bf16', block, 256] as const),
)

/** The candidate for every module with which the sum of the squared errors is least under the budget. */
async function allocated(
  config: LqLoraConfig,
  sites: readonly Site[],
  { budget, fisher }: { readonly budget: number; readonly fisher: ReadonlyMap<string, Tensor> },
): Promise<Record<string, LqLoraCandidate>> {
  const { candidates = defaultCandidates } = config
  const choices = []
  for (const site of sites) {
    const own = []
    const numbers = elementCount(site.weight.shape)
    for (const each of candidates) {
      const quantisation = configOf(each)
      const settings = { quantisation, fisher: fisher.get(site.path) }
      const { parts, error } = await ofSite(site, () =>
        decomposed(site.weight, matrixShape('lq_lora', site), config, settings),
      )
      for (const used of Object.values(parts)) used.dispose()
      own.push({ error: error * error, bits: bitsPerWeight(quantisation) * numbers })
      await pause()
    }
    choices.push(own)
  }
  const total = sites.reduce((sum, { weight }) => sum + elementCount(weight.shape), 0)
  const { chosen } = await allocateBits(choices, budget * total)
  return Object.fromEntries(sites.map(({ path }, i) => [path, candidates[chosen[i]!]!]))
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
