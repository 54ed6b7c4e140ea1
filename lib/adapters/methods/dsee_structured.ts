/** DSEE's masks on whole heads and neurons (Chen et al. 2023, arXiv 2111.00160). */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { abs, add, broadcastTo, constant, sub } from '../../graph/ops/elementwise.js'
import { repeatInterleave, scatterAdd } from '../../graph/ops/gather.js'
import { randomUniform } from '../../graph/ops/random.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { topk } from '../../graph/ops/sort.js'
import { pause } from '../../graph/pause.js'
import { read, type Sym } from '../../graph/sym.js'
import { linearShape, oriented, type Site } from '../../nn/site.js'
import { seedTensor } from '../../tensor/seed.js'
import type { Tensor } from '../../tensor/tensor.js'
import type { Adapter } from '../adapter.js'
import { blocksOf } from '../block_roles.js'
import { packed } from '../masked_weight.js'
import type { AttachedSite } from '../parametrization.js'
import { coefficientName, headsOf, updateAt } from './dsee.js'
import { type DseePruned, expectDsee, kept, prunedBy } from './dsee_prune.js'

/** Options of {@link dseePruneStructured}. */
export interface DseePruneStructuredOptions {
  /** Heads that each layer loses. Default 0; the authors' scripts: 3 of 12. */
  readonly prune_heads_num?: number
  /** In its place: key–value heads that each layer loses, each with the query heads that share it. Default 0. */
  readonly prune_key_value_heads_num?: number
  /** Neurons that each feed-forward block loses. Default 0. */
  readonly prune_neurons_num?: number
  /**
   * What a head or neuron is worth: Σ |B A + S| over its rows of query and value (of the block's matrices) (`ABS`, default),
   * that plus Σ |W| (`WABS`), |its coefficient|, trained by `head_coefficients` or `neuron_coefficients`, or `random`.
   */
  readonly prune_mode?: 'ABS' | 'WABS' | 'coefficients' | 'random'
  /** Of `random`; default 0. */
  readonly seed?: number
}

const structuredSchema = z.strictObject({
  prune_heads_num: z.int().min(0).default(0),
  prune_key_value_heads_num: z.int().min(0).default(0),
  prune_neurons_num: z.int().min(0).default(0),
  prune_mode: z.enum(['ABS', 'WABS', 'coefficients', 'random']).default('ABS'),
  seed: z.int().min(0).default(0),
})

/**
 * Sets the rows that make the least important heads and neurons of each layer, and the columns that read them, to 0
 * wherever the new adapter is active: what the network without them computes. Where several heads share a key and a
 * value, these stay.
 * @throws ERR_HEDDLE_ARGUMENT for an adapter of another method, a network whose layers are not known here, more heads than
 *   there are, or a layer about which the adapter says nothing
 */
export async function dseePruneStructured(
  adapter: Adapter,
  options: DseePruneStructuredOptions = {},
): Promise<DseePruned> {
  const config = parseConfig('dseePruneStructured', structuredSchema, options)
  const method = expectDsee(adapter, 'dseePruneStructured')
  const masks = new Map<string, Tensor>()
  using words = seedTensor(config.seed)
  const attached = new Map(adapter.attachedSites.map((each) => [each.site, each]))
  const given = { mode: config.prune_mode, words, adapter, attached }
  const { prune_heads_num: heads, prune_key_value_heads_num: shared, prune_neurons_num: neurons } = config
  if (heads > 0 && shared > 0)
    throw misuse('dseePruneStructured', 'one of prune_heads_num and prune_key_value_heads_num', 'both')
  for (const [index, layer] of layersOf(adapter).entries()) {
    if (heads > 0) await dropGroups(masks, headGroups(layer, headsOf(adapter.model)), heads, 2 * index, given)
    if (shared > 0) await dropGroups(masks, sharedHeadGroups(layer, headsOf(adapter.model)), shared, 2 * index, given)
    if (neurons > 0) await dropGroups(masks, neuronGroups(layer), neurons, 2 * index + 1, given)
  }
  return await prunedBy(adapter, method, masks)
}

interface Layer {
  readonly query: Site
  readonly key: Site
  readonly value: Site
  readonly output: Site
  readonly up: readonly Site[]
  readonly down: Site
}

function layersOf({ model }: Adapter): Layer[] {
  const layers = [...blocksOf(model).values()].flatMap((roles) => {
    const found = needed.map((role) => roles.get(role))
    // A module that computes several parts stands under each of them.
    if (found.includes(undefined) || new Set(found).size < needed.length) return []
    const [query, key, value, output, up, down] = found as [Site, Site, Site, Site, Site, Site]
    const gate = roles.get('gate')
    if (gate === up) return []
    return [{ query, key, value, output, up: gate ? [gate, up] : [up], down }]
  })
  if (layers.length > 0) return layers
  throw misuse('dseePruneStructured', `a network with layers of ${needed.join(', ')} projections`, model.architecture)
}

const needed = ['query', 'key', 'value', 'attention_output', 'up', 'down'] as const

/** Groups of channels that come and go together. */
interface Groups {
  readonly count: number
  /** Modules whose rows make the channels. */
  readonly makers: readonly Site[]
  /** Of these, and of readers, the ones whose rows or columns are scored. */
  readonly scored: readonly Site[]
  /** The module whose columns read them. */
  readonly reader: Site
}

function headGroups(layer: Layer, count: number): Groups {
  const { query, value, output } = layer
  const isShared = linearShape(value)[0] !== linearShape(query)[0]
  return isShared ? { count, makers: [query], scored: [query], reader: output } : sharedHeadGroups(layer, count)
}

function sharedHeadGroups({ query, key, value, output }: Layer, heads: number): Groups {
  const size = linearShape(query)[0] / heads
  return {
    count: linearShape(value)[0] / size,
    makers: [query, key, value],
    scored: [query, value],
    reader: output,
  }
}

const neuronGroups = ({ up, down }: Layer): Groups => ({
  count: linearShape(down)[1],
  makers: up,
  scored: [...up, down],
  reader: down,
})

interface DropContext {
  readonly mode: z.infer<typeof structuredSchema>['prune_mode']
  readonly words: Tensor
  readonly adapter: Adapter
  readonly attached: ReadonlyMap<Site, AttachedSite>
}

/** Masks of the modules without the `count` groups of the lowest scores. */
async function dropGroups(
  masks: Map<string, Tensor>,
  groups: Groups,
  count: number,
  stream: number,
  { mode, words, adapter, attached }: DropContext,
): Promise<void> {
  const { makers, reader } = groups
  if (count >= groups.count)
    throw misuse(`dseePruneStructured: ${reader.path}`, `fewer than ${groups.count} to prune`, `${count}`)
  expectScores(groups, mode, attached)
  const sites = [...makers, reader]
  const bits = await computed(
    (seed) => {
      const scores = mode === 'random' ? randomUniform(seed!, stream, [groups.count]) : scoresIn(groups, mode, attached)
      const { indices } = topk(reshape(scores, [1, -1]), count, { largest: false })
      const isOut = scatterAdd(indices, broadcastTo(constant(1), indices.shape), groups.count, 1)
      const keep = reshape(sub(1, isOut), [-1])
      return sites.map((site) => packed(kept(site, alongGroups(site, keep, site === reader), adapter)))
    },
    [words],
  )
  for (const [i, site] of sites.entries()) masks.set(site.path, bits[i]!)
  await pause()
}

/** @throws ERR_HEDDLE_ARGUMENT where there is nothing to score groups by */
function expectScores(
  { scored, reader }: Groups,
  mode: DropContext['mode'],
  attached: ReadonlyMap<Site, AttachedSite>,
): void {
  const place = `dseePruneStructured: ${reader.path}`
  if (mode === 'random') return
  if (mode === 'coefficients') {
    if (!attached.get(reader)?.parameters[coefficientName])
      throw misuse(place, 'head_coefficients or neuron_coefficients of this module in the adapter', 'none')
    return
  }
  if (!scored.some((site) => attached.has(site) && !(coefficientName in attached.get(site)!.parameters)))
    throw misuse(place, `an update at ${scored.map(({ path }) => path).join(' or ')} to score by`, 'none')
}

/** `[groups]` */
function scoresIn(
  { count, scored, reader }: Groups,
  mode: 'ABS' | 'WABS' | 'coefficients',
  attached: ReadonlyMap<Site, AttachedSite>,
): Sym {
  if (mode === 'coefficients')
    return sum(reshape(abs(read(attached.get(reader)!.parameters[coefficientName]!)), [count, -1]), { axes: [1] })
  const terms = scored.flatMap((site) => {
    const each = attached.get(site)
    const hasUpdate = each !== undefined && !(coefficientName in each.parameters)
    const rows = oriented(site, read(site.weight))
    const matrices = [...(hasUpdate ? [updateAt(each, 1)] : []), ...(mode === 'WABS' ? [rows] : [])]
    return matrices.map((matrix) => groupSums(abs(matrix), count, site === reader))
  })
  return terms.reduce((total, each) => add(total, each))
}

/** Sums over the rows (columns) of each group of a matrix `[out, in]`. */
function groupSums(matrix: Sym, count: number, areColumns: boolean): Sym {
  const perChannel = sum(matrix, { axes: [areColumns ? 0 : 1] })
  return sum(reshape(perChannel, [count, -1]), { axes: [1] })
}

/** A number per group as a mask of the weight, as it is stored. */
function alongGroups(site: Site, keep: Sym, areColumns: boolean): Sym {
  const [out, inner] = linearShape(site)
  const size = areColumns ? inner : out
  const channels = repeatInterleave(keep, size / keep.shape[0]!, 0)
  const isLast = areColumns !== (site.transposed === true)
  return broadcastTo(reshape(channels, isLast ? [1, size] : [size, 1]), site.weight.shape)
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
