/**
 * LQ-LoRA (Guo et al. 2023, arXiv 2311.12023): the weight is quantised, what that loses of low rank is where a LoRA begins, and
 * how many bits each matrix gets is an integer programme.
 */

import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { cast, div } from '../../graph/ops/elementwise.js'
import { copy, transpose } from '../../graph/ops/index.js'
import { max } from '../../graph/ops/reduce.js'
import { pause } from '../../graph/pause.js'
import { read, type Sym } from '../../graph/sym.js'
import type { Site } from '../../nn/site.js'
import { weightGradients } from '../../observers/weight_gradients.js'
import { allocateBits } from '../../quant/allocate_bits.js'
import { bitsPerWeight, blockCounts, dequantised, type NormalFloatConfig } from '../../quant/normal_float.js'
import { elementCount } from '../../tensor/dtype.js'
import type { Tensor } from '../../tensor/tensor.js'
import { bitPlanes, ofBitPlanes } from '../bit_planes.js'
import { declared, zero } from '../initial_values.js'
import {
  asMatrix,
  changedLinear,
  changedWeight,
  type LowRankChange,
  type MatrixShape,
  matrixShape,
  ofSite,
} from '../low_rank_change.js'
import type {
  AttachedSite,
  Parametrization,
  ParametrizationType,
  Prepared,
  ResolveContext,
  SitePlan,
} from '../parametrization.js'
import { storedFields, targeting, unsuited } from '../targeting.js'
import {
  configOf,
  defaultCandidates,
  type LqLoraCandidate,
  type LqLoraConfig,
  type LqLoraOptions,
  lqLoraSchema,
} from './lq_lora_config.js'
import { type Decomposition, decompose } from './lq_lora_decomposition.js'

/**
 * y = Q x + s B A x, s = lora_alpha / num_ranks, with W ≈ Q + L₁ L₂, Q quantised; A `[r, in]` and B `[out, r]` begin as L₂/√s and
 * L₁/√s and are trained. A fresh adapter is near the model, not equal to it. The adapter works on Q, as numbers, in
 * the place of the weight; its file holds Q in bits. Linear sites.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown or out of range
 */
export function lqLora(options: LqLoraOptions = {}): Parametrization {
  const config = parseConfig('lq_lora', lqLoraSchema, options)
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
  restore: (stored) => lqLora(storedFields(lqLoraSchema, stored) as LqLoraOptions),
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
    // Filled by what is prepared or loaded.
    parameters: { [names.a]: declared([r, inner], zero), [names.b]: declared([out, r], zero) },
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

function quantisationAt({ path }: Site, config: LqLoraConfig): NormalFloatConfig {
  const own = config.configurations?.[path]
  return own ? configOf(own) : config
}

/** The site's weight taken apart; the caller owns what is found. */
async function decomposed(
  weight: Tensor,
  shape: MatrixShape,
  config: LqLoraConfig,
  { quantisation, fisher }: { readonly quantisation: NormalFloatConfig; readonly fisher: Tensor | undefined },
): Promise<Decomposition> {
  using matrix = await computed(() => copy(asMatrix(read(weight), shape)))
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
    [names.offset]: copy(read(parts.offset)),
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

const stored = (matrix: Sym, { isTransposed }: MatrixShape): Sym => (isTransposed ? transpose(matrix) : copy(matrix))

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
          f: copy(asMatrix(read(squares), matrixShape('lq_lora', site))),
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
