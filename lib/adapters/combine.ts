/**
 * One LoRA out of several, as PEFT's `add_weighted_adapter` makes it: task arithmetic (Ilharco et al. 2023, arXiv
 * 2212.04089), TIES (Yadav et al. 2023, arXiv 2306.01708), DARE (Yu et al. 2024, arXiv 2311.03099), magnitude pruning.
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import {
  abs,
  add,
  div,
  equal,
  greaterEqual,
  less,
  maximum,
  minimum,
  mul,
  select,
  sign,
} from '../graph/ops/elementwise.js'
import { concat, copy } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { randomUniform } from '../graph/ops/random.js'
import { reshape } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import { svd } from '../linalg/factorise.js'
import { orderStatistics } from '../linalg/order_statistic.js'
import { seedTensor } from '../tensor/seed.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Adapter, Attachment } from './adapter.js'
import { disposeFactors, type FactorTensors, loraOf } from './as_lora.js'
import { scaleAt } from './methods/lora.js'
import type { LoraConfig } from './methods/lora_config.js'
import { type LoraShape, namesAt, shapeAt } from './methods/lora_site.js'
import { firstOf } from './spectrum.js'

/** PEFT's names of the ways to combine adapters. */
export type CombinationType =
  | 'linear'
  | 'cat'
  | 'svd'
  | 'ties'
  | 'ties_svd'
  | 'dare_linear'
  | 'dare_linear_svd'
  | 'dare_ties'
  | 'dare_ties_svd'
  | 'magnitude_prune'
  | 'magnitude_prune_svd'

/** Options of {@link combineAdapters}, in PEFT's names. */
export interface CombineOptions {
  /** Default `svd`, as in PEFT. With a single adapter always `linear`. */
  readonly combination_type?: CombinationType
  /** Share of the elements that is kept: for all but `linear`, `cat` and `svd`, which keep everything. */
  readonly density?: number
  /** What decides an element's sign, for the `ties` types: the sum (`total`, default) or the number of each sign. */
  readonly majority_sign_method?: 'total' | 'frequency'
  /** Rank of the result, for the `svd` types; default: the largest of the adapters'. */
  readonly svd_rank?: number
  /** Clips the factors of the `svd` types to ± this quantile of their elements. */
  readonly svd_clamp?: number
  /** Seed of what the `dare` types drop; default 0. */
  readonly seed?: number
}

const types = [
  'linear',
  'cat',
  'svd',
  'ties',
  'ties_svd',
  'dare_linear',
  'dare_linear_svd',
  'dare_ties',
  'dare_ties_svd',
  'magnitude_prune',
  'magnitude_prune_svd',
] as const

const schema = z.strictObject({
  combination_type: z.enum(types).default('svd'),
  density: z.number().gt(0).max(1).optional(),
  majority_sign_method: z.enum(['total', 'frequency']).default('total'),
  svd_rank: z.int().positive().optional(),
  svd_clamp: z.number().gt(0).max(1).optional(),
  seed: z.int().min(0).default(0),
})

type Settings = z.infer<typeof schema> & { readonly rank: number }

/**
 * A new adapter whose update is the weighted combination of several LoRAs of one model; scales and rsLoRA are taken
 * into account, and the new one has scale 1. The caller owns it. `linear`, `ties`, `dare_*` and `magnitude_prune`
 * combine the factors A and B, which must be of one rank, and so approximate; `cat` is exact, of the summed rank; the
 * `svd` types combine the products s B A and factorise the result.
 * @throws ERR_HEDDLE_ARGUMENT for options that do not fit, and for adapters that are not plain LoRAs of one model
 */
export async function combineAdapters(
  adapters: readonly Adapter[],
  weights: readonly number[],
  options: CombineOptions = {},
): Promise<Adapter> {
  const parsed = parseConfig('combineAdapters', schema, options)
  expectPlain(adapters, weights)
  const combination_type = adapters.length === 1 ? 'linear' : parsed.combination_type
  const rank = rankOf(adapters, combination_type, parsed.svd_rank)
  const settings: Settings = { ...parsed, combination_type, rank }
  if (/ties|dare|prune/u.test(combination_type) && parsed.density === undefined)
    throw misuse('density', `the share to keep, for ${combination_type}`, 'none')
  const paths = [...new Set(adapters.flatMap(({ sitePaths }) => sitePaths))]
  const sources = paths.map((path) => sourcesAt(path, adapters, weights))
  const factors = new Map<string, FactorTensors>()
  try {
    for (const [i, path] of paths.entries())
      factors.set(path, await combined(sources[i]!, settings, 2 * i * adapters.length))
    const { lora_dropout, fan_in_fan_out } = adapters[0]!.method.config as LoraConfig
    return await loraOf(adapters[0]!, factors, { r: rank, lora_dropout, fan_in_fan_out })
  } finally {
    disposeFactors(factors)
  }
}

/** One adapter's part at a site. */
interface Source {
  readonly shape: LoraShape
  readonly r: number
  readonly a: Tensor
  readonly b: Tensor
  readonly weight: number
  readonly scale: number
}

/** A `[r, inner]` and B `[out, r]`. */
function combined(sources: readonly Source[], settings: Settings, stream: number): Promise<FactorTensors> {
  const { combination_type: type } = settings
  if (type === 'cat') return concatenated(sources)
  return type.endsWith('svd') ? ofProducts(sources, settings, stream) : ofFactors(sources, settings, stream)
}

/** [w₁s₁A₁; w₂s₂A₂; …] and [B₁, B₂, …]: exactly Σ wᵢ sᵢ Bᵢ Aᵢ. */
const concatenated = async (sources: readonly Source[]): Promise<FactorTensors> =>
  computed(() => ({
    a: concat(
      sources.map((each) => mul(matrixA(each), each.weight * each.scale)),
      0,
    ),
    b: concat(sources.map(matrixB), 1),
  }))

/** A and B each combined with weights ±√|w s|, the sign with A. */
async function ofFactors(sources: readonly Source[], settings: Settings, stream: number): Promise<FactorTensors> {
  const roots = sources.map(({ weight, scale }) => Math.sqrt(Math.abs(weight * scale)))
  const signed = roots.map((root, i) => (sources[i]!.weight * sources[i]!.scale < 0 ? -root : root))
  const least = await thresholds([...sources.map(({ a }) => a), ...sources.map(({ b }) => b)], settings)
  const [leastA, leastB] = [least.slice(0, sources.length), least.slice(sources.length)]
  using words = seedTensor(settings.seed)
  return await computed(() => {
    const seed = read(words)
    return {
      a: mixed({ tensors: sources.map(matrixA), weights: signed, thresholds: leastA, stream, seed }, settings),
      b: mixed(
        { tensors: sources.map(matrixB), weights: roots, thresholds: leastB, stream: stream + sources.length, seed },
        settings,
      ),
    }
  })
}

/** The products s B A combined, and the leading singular vectors of that: A = Vᵀ, B = U S. */
async function ofProducts(sources: readonly Source[], settings: Settings, stream: number): Promise<FactorTensors> {
  const { rank, svd_clamp: clamp } = settings
  using mixture = await mixedProducts(sources, settings, stream)
  const factors = await computed(() => {
    const { u, s, vh } = svd(read(mixture))
    const leading = firstOf({ u, s, vh }, Math.min(rank, s.shape[0]!))
    return { a: copy(leading.vh), b: mul(leading.u, leading.s) }
  })
  if (clamp === undefined) return factors
  using a = factors.a
  using b = factors.b
  const most = await quantile([b, a], clamp)
  return await computed(() => ({ a: clip(read(a), most), b: clip(read(b), most) }))
}

/** Σ of what is kept of the products s B A. */
async function mixedProducts(sources: readonly Source[], settings: Settings, stream: number): Promise<Tensor> {
  const weights = sources.map(({ weight }) => weight)
  using words = seedTensor(settings.seed)
  const products: Tensor[] = []
  try {
    for (const each of sources)
      products.push(await computed(() => matmul(matrixB(each), matrixA(each), { alpha: each.scale })))
    const kept = await thresholds(products, settings)
    return await computed(() =>
      mixed({ tensors: products.map(read), weights, thresholds: kept, stream, seed: read(words) }, settings),
    )
  } finally {
    for (const each of products) each.dispose()
  }
}

interface Mixture {
  readonly tensors: readonly Sym[]
  readonly weights: readonly number[]
  /** Least magnitude that is kept of each, for magnitude pruning. */
  readonly thresholds: readonly number[]
  readonly stream: number
  readonly seed: Sym
}

/** The weighted sum of what is left of each tensor; for TIES of the elements that agree with the majority's sign. */
function mixed({ tensors, weights, thresholds: least, stream, seed }: Mixture, settings: Settings): Sym {
  const { combination_type: type, density = 1, majority_sign_method: method } = settings
  const pruned = tensors.map((each, i) => {
    if (type.startsWith('dare')) return density < 1 ? dropped(each, density, seed, stream + i) : each
    return least.length > 0 ? mul(each, greaterEqual(abs(each), least[i]!)) : each
  })
  const weighted = pruned.map((each, i) => mul(each, weights[i]!))
  if (!type.includes('ties')) return total(weighted)
  const vote = total(method === 'total' ? pruned : pruned.map((each) => sign(each)))
  const majority = select(less(vote, 0), -1, 1)
  const agrees = pruned.map((each) => equal(sign(each), majority))
  return div(total(weighted.map((each, i) => mul(each, agrees[i]!))), maximum(total(agrees), 1))
}

/** Each element with the probability of the density, scaled up by it, else 0. */
const dropped = (x: Sym, density: number, seed: Sym, stream: number): Sym =>
  mul(x, div(less(randomUniform(seed, stream, x.shape), density), density))

const total = (parts: readonly Sym[]): Sym => parts.reduce((left, right) => add(left, right))

const clip = (x: Sym, most: number): Sym => maximum(minimum(x, most), -most)

/** For the types that prune by magnitude: the size of each tensor's ⌊density · n⌋-th largest element. */
async function thresholds(tensors: readonly Tensor[], settings: Settings): Promise<number[]> {
  const { combination_type: type, density = 1 } = settings
  const prunes = type.startsWith('ties') || type.startsWith('magnitude_prune')
  if (!prunes || density >= 1) return []
  const kept = tensors.map(({ size }) => Math.floor(density * size))
  const queries = tensors.map((each, i) => ({ tensors: [each], index: Math.min(each.size - 1, each.size - kept[i]!) }))
  const found = await orderStatistics(queries, { magnitudes: true })
  return found.map((least, i) => (kept[i] === 0 ? Number.POSITIVE_INFINITY : least))
}

/** The q-quantile of all elements, interpolated between the two that it falls between, as in torch.quantile. */
async function quantile(tensors: readonly Tensor[], q: number): Promise<number> {
  const place = q * (tensors.reduce((count, { size }) => count + size, 0) - 1)
  const queries = [Math.floor(place), Math.ceil(place)].map((index) => ({ tensors, index }))
  const [lower, upper] = await orderStatistics(queries)
  return lower! + (place - Math.floor(place)) * (upper! - lower!)
}

function sourcesAt(path: string, adapters: readonly Adapter[], weights: readonly number[]): Source[] {
  return adapters.flatMap((adapter, i) => {
    const attachment = adapter.attachments.get(path)
    return attachment ? [sourceOf(attachment, adapter.method.config as LoraConfig, weights[i]!)] : []
  })
}

function sourceOf({ site, parameters }: Attachment, config: LoraConfig, weight: number): Source {
  const shape = shapeAt(site)!
  const names = namesAt(shape)
  const { r, scale } = scaleAt(config, site.path)
  return { shape, r, a: parameters[names.a]!, b: parameters[names.b]!, weight, scale }
}

const matrixA = ({ shape, a, r }: Source): Sym => reshape(read(a), [r, shape.inner])
const matrixB = ({ shape, b, r }: Source): Sym => reshape(read(b), [shape.out, r])

/** PEFT's rule: one rank where factors are combined, the sum for `cat`, else the largest unless another is given. */
function rankOf(adapters: readonly Adapter[], type: CombinationType, wanted: number | undefined): number {
  const ranks = adapters.map(({ method }) => {
    const { r, rank_pattern = {} } = method.config as LoraConfig
    return Math.max(r, ...Object.values(rank_pattern))
  })
  if (type === 'cat') return ranks.reduce((sum, r) => sum + r, 0)
  if (type.endsWith('svd')) return wanted ?? Math.max(...ranks)
  if (new Set(ranks).size > 1) throw misuse('adapters', `adapters of one rank for ${type}`, `ranks ${ranks.join(', ')}`)
  return ranks[0]!
}

function expectPlain(adapters: readonly Adapter[], weights: readonly number[]): void {
  const [first] = adapters
  if (!first) throw misuse('adapters', 'at least one adapter', 'none')
  if (weights.length !== adapters.length || !weights.every(Number.isFinite))
    throw misuse('weights', `${adapters.length} numbers, one for each adapter`, JSON.stringify(weights))
  for (const adapter of adapters) {
    if (adapter.model !== first.model) throw misuse('adapters', 'adapters of one model', "another model's")
    const problem = whyNotPlain(adapter)
    if (problem) throw misuse('adapters', 'plain LoRA adapters', problem)
  }
}

function whyNotPlain({ method, attachments }: Adapter): string | undefined {
  if (method.name !== 'lora') return method.name
  const { use_dora, lora_bias } = method.config as LoraConfig
  if (use_dora) return 'use_dora, whose update is no sum'
  if (lora_bias) return 'lora_bias'
  const all = [...attachments.values()]
  if (all.some(({ weight }) => weight))
    return 'one with a base weight of its own: save it, which converts it, and load it'
  if (all.some(({ site }) => (shapeAt(site)?.groups ?? 1) > 1)) return 'one on a convolution in groups'
  return all.some(({ trained }) => Object.keys(trained).length > 0) ? 'trained biases or modules_to_save' : undefined
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `combineAdapters.${place}`, expected, got })
