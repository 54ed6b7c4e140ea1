/** Heads and feed-forward channels of a block moved to other places, with all matrices that they run through. */
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { indexSelect } from '../../graph/ops/gather.js'
import { read } from '../../graph/sym.js'
import type { Network } from '../../nn/network.js'
import { linearShape, type Site } from '../../nn/site.js'
import { type Tensor, tensor } from '../../tensor/tensor.js'
import { type BlockRole, blocksOf } from '../block_roles.js'
import { headCount, type S2ftAxis } from './s2ft_selection.js'

/** Orders of {@link permuteCoupled}: place i gets what stands at order[i]. */
export interface CoupledOrders {
  /** Of the feed-forward channels: rows of gate and up, columns of down. */
  readonly channels?: readonly number[]
  /** Of the key–value heads, each with the query heads of its group: rows of q, k and v, columns of the output. */
  readonly keyValueHeads?: readonly number[]
  /** Of the query heads, each within its group, before the groups move: rows of q, columns of the output. */
  readonly queryHeads?: readonly number[]
}

/**
 * Permutes coupled matrices of one block, with the biases of their rows; the network computes the same. Adapters that
 * were attached before mean the old places. Programs traced before keep the old weights.
 * @param block path of the block, e.g. `model.layers.3`
 * @throws ERR_HEDDLE_ARGUMENT when an order is no permutation, or the block has no such modules of their own
 */
export async function permuteCoupled(network: Network, block: string, orders: CoupledOrders): Promise<void> {
  const { channels, keyValueHeads, queryHeads } = orders
  const moves = [
    ...(channels ? channelMoves(network, block, channels) : []),
    ...(keyValueHeads || queryHeads ? headMoves(network, block, orders) : []),
  ]
  for (const move of moves) await moveAlong(move)
}

/** What happens to a module: its rows or columns come from these. */
interface Move {
  readonly site: Site
  readonly axis: S2ftAxis
  readonly from: readonly number[]
}

function channelMoves(network: Network, block: string, channels: readonly number[]): Move[] {
  const modules = blocksOf(network).get(block) ?? new Map<BlockRole, Site>()
  const [up, down] = [expectModule(modules, 'up', block), expectModule(modules, 'down', block)]
  expectPermutation('channels', channels, linearShape(down)[1])
  const gate = modules.get('gate')
  return [
    ...[up, ...(gate ? [gate] : [])].map((site): Move => ({ site, axis: 'out', from: channels })),
    { site: down, axis: 'in', from: channels },
  ]
}

function headMoves(network: Network, block: string, { keyValueHeads, queryHeads }: CoupledOrders): Move[] {
  const modules = blocksOf(network).get(block) ?? new Map<BlockRole, Site>()
  const [heads, groups] = [headCount(network, 'query head'), headCount(network, 'key-value head')]
  const perGroup = heads / groups
  const [q, k, v, o] = (['query', 'key', 'value', 'attention_output'] as const).map((role) =>
    expectModule(modules, role, block),
  ) as [Site, Site, Site, Site]
  const size = linearShape(o)[1] / heads
  const groupOrder = keyValueHeads ?? counting(groups)
  const headOrder = queryHeads ?? counting(heads)
  expectPermutation('keyValueHeads', groupOrder, groups)
  expectPermutation('queryHeads', headOrder, heads)
  if (headOrder.some((from, to) => Math.floor(from / perGroup) !== Math.floor(to / perGroup)))
    throw misuse('queryHeads', `heads that stay in their groups of ${perGroup}`, `[${headOrder}]`)
  const ofGroups = spread(groupOrder, size)
  const ofHeads = spread(
    spread(groupOrder, perGroup).map((head) => headOrder[head]!),
    size,
  )
  return [
    { site: q, axis: 'out', from: ofHeads },
    { site: k, axis: 'out', from: ofGroups },
    { site: v, axis: 'out', from: ofGroups },
    { site: o, axis: 'in', from: ofHeads },
  ]
}

const counting = (count: number): number[] => Array.from({ length: count }, (_, i) => i)

/** Each place as `size` neighbouring ones. */
const spread = (order: readonly number[], size: number): number[] =>
  order.flatMap((place) => counting(size).map((i) => place * size + i))

async function moveAlong({ site, axis, from }: Move): Promise<void> {
  using index = tensor(Int32Array.from(from))
  const along = (each: Tensor, at: number): Promise<Tensor> => computed(() => indexSelect(read(each), at, read(index)))
  const isRow = (axis === 'out') !== (site.transposed === true)
  const { weight, bias } = site
  site.weight = await along(weight, isRow ? 0 : 1)
  weight.dispose()
  if (axis === 'in' || !bias) return
  site.bias = await along(bias, 0)
  bias.dispose()
}

function expectModule(modules: ReadonlyMap<BlockRole, Site>, role: BlockRole, block: string): Site {
  const found = modules.get(role)
  if (found && !found.structure) return found
  throw misuse(block, `a dense ${role.replace('_', ' ')} projection of its own`, found ? found.structure!.kind : 'none')
}

function expectPermutation(name: string, order: readonly number[], count: number): void {
  const known = new Set(order)
  if (order.length === count && counting(count).every((i) => known.has(i))) return
  throw misuse(
    name,
    `the numbers from 0 to ${count - 1} in an order`,
    `[${order.slice(0, 8)}${order.length > 8 ? ', …' : ''}]`,
  )
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `permuteCoupled: ${place}`, expected, got })
