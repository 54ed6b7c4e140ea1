/** DSEE's masks on single numbers of the weight (Chen et al. 2023, arXiv 2111.00160). */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed, copied } from '../../graph/computed.js'
import {
  abs,
  add,
  cast,
  equal,
  greaterEqual,
  less,
  maximum,
  minimum,
  mul,
  neg,
  sub,
} from '../../graph/ops/elementwise.js'
import { randomUniform } from '../../graph/ops/random.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { cumsum } from '../../graph/ops/scan.js'
import { pause } from '../../graph/pause.js'
import { read, type Sym } from '../../graph/sym.js'
import { orderStatistics } from '../../linalg/order_statistic.js'
import { oriented, type Site } from '../../nn/site.js'
import { seedTensor } from '../../tensor/seed.js'
import { type Tensor, tensor } from '../../tensor/tensor.js'
import { Adapter } from '../adapter.js'
import { maskName, packed, unpacked } from '../masked_weight.js'
import type { AttachedSite } from '../parametrization.js'
import { selectSites } from '../target_modules.js'
import { coefficientName, type DseeConfig, methodOf, updateAt } from './dsee.js'

/**
 * What a number of an adapted weight is worth: |W|, |s B A|, |s (B A + S)|, |W + s B A|, |W + s (B A + S)|; NAB and NABS take
 * the largest of AB and ABS away first; `random`.
 */
export type DseePruneMode = 'W' | 'AB' | 'ABS' | 'WAB' | 'WABS' | 'NAB' | 'NABS' | 'random'

/** Options of {@link dseePrune}, in the names of the authors' code. */
export interface DseePruneOptions {
  /** Share of the numbers of the other modules that becomes 0, by |W|. Default 0.2. */
  readonly pruning_ratio?: number
  /** Share of the numbers of the modules with an update that becomes 0, by `prune_mode`. Default 0.2. */
  readonly ad_pruning_ratio?: number
  /** Default `ABS`. */
  readonly prune_mode?: DseePruneMode
  /** The other modules, as `target_modules` names them; default: all linear ones but the output projection. */
  readonly other_modules?: string | readonly string[]
  /** Of `random`; default 0. */
  readonly seed?: number
}

/** An adapter on a pruned base. */
export interface DseePruned {
  /** A new adapter in tensors of its own, which the caller owns; the model's weights stay as they are. */
  readonly adapter: Adapter
  /** Zeros among the numbers of the weights of all modules that were pruned. */
  readonly sparsity: number
}

const ratio = z.number().min(0).lt(1).default(0.2)
const pruneSchema = z.strictObject({
  pruning_ratio: ratio,
  ad_pruning_ratio: ratio,
  prune_mode: z.enum(['W', 'AB', 'ABS', 'WAB', 'WABS', 'NAB', 'NABS', 'random']).default('ABS'),
  other_modules: z.union([z.string(), z.array(z.string()).min(1)]).default('all-linear'),
  seed: z.int().min(0).default(0),
})

/**
 * Sets the least important numbers of weights to 0 wherever the new adapter is active: of all modules with an update
 * together, and of all others together. Exactly round(ratio · numbers) of each; among equals the first ones. B A + S itself
 * stays, to be trained further.
 * @throws ERR_HEDDLE_ARGUMENT for an adapter of another method, or one that is merged
 */
export async function dseePrune(adapter: Adapter, options: DseePruneOptions = {}): Promise<DseePruned> {
  const config = parseConfig('dseePrune', pruneSchema, options)
  const method = expectDsee(adapter, 'dseePrune')
  const adapted = adapter.attachedSites.filter(({ parameters }) => !(coefficientName in parameters))
  const taken = new Set(adapter.sitePaths)
  const others =
    config.pruning_ratio > 0
      ? selectSites(adapter.model.sites.values(), config.other_modules).filter(
          ({ path, kind }) => kind === 'linear' && !taken.has(path),
        )
      : []
  const masks = new Map<string, Tensor>()
  const weights = others.map((site) => ({ site, score: site.weight }))
  await addMasks(masks, weights, { share: config.pruning_ratio, magnitudes: true, earlier: adapter })
  const scores = await scoresOf(adapted, method, config)
  await addMasks(masks, scores, { share: config.ad_pruning_ratio, magnitudes: false, earlier: adapter })
  for (const { score } of scores) score.dispose()
  return await prunedBy(adapter, method, masks)
}

interface Scored {
  readonly site: Site
  /** In the weight's shape. */
  readonly score: Tensor
}

async function scoresOf(
  adapted: readonly AttachedSite[],
  { lora_alpha: alpha, lora_r: r }: DseeConfig,
  { prune_mode: mode, seed, ad_pruning_ratio: share }: z.infer<typeof pruneSchema>,
): Promise<Scored[]> {
  if (share === 0) return []
  using words = seedTensor(seed)
  const scores: Scored[] = []
  for (const [stream, attached] of adapted.entries()) {
    const { site } = attached
    const score = await computed(
      (given) => {
        if (mode === 'random') return randomUniform(given!, stream, site.weight.shape)
        if (mode === 'W') return abs(read(site.weight))
        const part = mode.endsWith('S') ? 'both' : 'low-rank'
        const update = oriented(site, updateAt(attached, alpha / r, part))
        if (mode.startsWith('N')) return neg(abs(update))
        return abs(mode.startsWith('W') ? add(read(site.weight), update) : update)
      },
      [words],
    )
    scores.push({ site, score })
    await pause()
  }
  return scores
}

interface MaskOptions {
  /** Share of all numbers that is left out. */
  readonly share: number
  /** Numbers go by their magnitude. */
  readonly magnitudes: boolean
  /** The adapter whose masks stay in force. */
  readonly earlier: Adapter
}

/** Masks that leave out the numbers with the lowest scores of all. */
async function addMasks(masks: Map<string, Tensor>, pool: readonly Scored[], options: MaskOptions): Promise<void> {
  const { share, magnitudes, earlier } = options
  const count = Math.round(share * pool.reduce((total, { score }) => total + score.size, 0))
  if (count === 0) return
  const tensors = pool.map(({ score }) => score)
  const [threshold] = (await orderStatistics([{ tensors, index: count - 1 }], { magnitudes })) as [number]
  const comparedOf = (score: Tensor): Sym => (magnitudes ? abs(read(score)) : read(score))
  let ties = count - (await totalOf(tensors, (score) => less(comparedOf(score), threshold)))
  for (const { site, score } of pool) {
    using left = tensor(Float64Array.of(ties), [])
    const { bits, equals } = await computed(
      (most) => {
        const value = comparedOf(score)
        const isEqual = equal(value, threshold)
        const isOut = maximum(less(value, threshold), mul(isEqual, firstOnes(isEqual, most!)))
        return {
          bits: packed(kept(site, sub(1, isOut), earlier)),
          equals: sum(cast(sum(isEqual, { axes: [1] }), 'f64')),
        }
      },
      [left],
    )
    masks.set(site.path, bits)
    ties -= Math.min(ties, equals.item())
    equals.dispose()
    await pause()
  }
}

/** 1 at all places up to the one that is the `most`-th 1 of x `[rows, columns]`, row by row; `most` f64 `[]`. */
function firstOnes(x: Sym, most: Sym): Sym {
  const perRow = cast(sum(x, { axes: [1] }), 'f64')
  const before = sub(cumsum(perRow, 0), perRow)
  const limit = cast(minimum(maximum(sub(most, before), 0), x.shape[1]!), 'f32')
  return greaterEqual(reshape(limit, [-1, 1]), cumsum(x, 1))
}

/** How many ones `of` gives over all tensors. */
async function totalOf(tensors: readonly Tensor[], of: (each: Tensor) => Sym): Promise<number> {
  using total = await computed(() =>
    tensors.map((each) => sum(cast(sum(of(each), { axes: [1] }), 'f64'))).reduce((a, b) => add(a, b)),
  )
  return total.item()
}

/** A mask under the one that the adapter has already. */
export function kept(site: Site, mask: Sym, earlier: Adapter): Sym {
  const before = earlier.attachments.get(site.path)?.buffers[maskName]
  return before ? mul(mask, unpacked(read(before), site.weight.shape)) : mask
}

/** The adapter with these masks, and with those that it had at other modules. */
export async function prunedBy(adapter: Adapter, method: DseeConfig, masks: Map<string, Tensor>): Promise<DseePruned> {
  for (const [path, { buffers }] of adapter.attachments) {
    const before = buffers[maskName]
    if (before && !masks.has(path)) masks.set(path, await copied(before))
  }
  const made = methodOf({ ...method, pruned_modules: [...masks.keys()] }, { isRestored: true })
  const result = await Adapter.masked(adapter, made, masks)
  return { adapter: result, sparsity: await sparsityOf(result) }
}

async function sparsityOf(adapter: Adapter): Promise<number> {
  let [zeros, all] = [0, 0]
  for (const { site, buffers } of adapter.attachments.values()) {
    const mask = buffers[maskName]
    if (!mask) continue
    using ones = await computed(() => sum(cast(sum(unpacked(read(mask), site.weight.shape), { axes: [1] }), 'f64')))
    zeros += site.weight.size - ones.item()
    all += site.weight.size
  }
  return all === 0 ? 0 : zeros / all
}

export function expectDsee(adapter: Adapter, place: string): DseeConfig {
  if (adapter.method.name !== 'dsee') throw misuse(place, 'an adapter of dsee', adapter.method.name)
  if (adapter.isMerged) throw misuse(place, 'an adapter that is not merged', 'a merged one')
  return adapter.method.config as DseeConfig
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
