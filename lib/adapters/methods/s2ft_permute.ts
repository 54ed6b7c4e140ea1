/** Heads and feed-forward channels of a block moved to other places, with all matrices that they run through. */
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { indexSelect } from '../../graph/ops/gather.js'
import { read } from '../../graph/sym.js'
import type { Network } from '../../nn/network.js'
import { linearShape, type Site } from '../../nn/site.js'
import { type Tensor, tensor } from '../../tensor/tensor.js'
import { type BlockRole, blocksOf, counting, unitAxis, unitPlaces, unitRows } from '../block_roles.js'
import { headsOf, type S2ftAxis } from './s2ft_selection.js'

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
 * @throws ERR_HEDDLE_ARGUMENT when an order is no permutation, or the block has no such modules
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
  const down = expectModule(modules, 'down', block)
  expectModule(modules, 'up', block)
  expectPermutation('channels', channels, linearShape(down)[1])
  const orders = (['gate', 'up', 'down'] as const).flatMap((role): UnitOrder[] =>
    modules.has(role) ? [{ role, order: channels }] : [],
  )
  return movesOf(network, modules, orders)
}

function headMoves(network: Network, block: string, { keyValueHeads, queryHeads }: CoupledOrders): Move[] {
  const modules = blocksOf(network).get(block) ?? new Map<BlockRole, Site>()
  const [heads, groups] = [headsOf(network, 'query'), headsOf(network, 'key')]
  const perGroup = heads / groups
  for (const role of ['query', 'key', 'value', 'attention_output'] as const) expectModule(modules, role, block)
  const groupOrder = keyValueHeads ?? counting(groups)
  const headOrder = queryHeads ?? counting(heads)
  expectPermutation('keyValueHeads', groupOrder, groups)
  expectPermutation('queryHeads', headOrder, heads)
  if (headOrder.some((from, to) => Math.floor(from / perGroup) !== Math.floor(to / perGroup)))
    throw misuse('queryHeads', `heads that stay in their groups of ${perGroup}`, `[${headOrder}]`)
  const ofHeads = groupOrder.flatMap((group) => counting(perGroup).map((i) => headOrder[group * perGroup + i]!))
  return movesOf(network, modules, [
    { role: 'query', order: ofHeads },
    { role: 'key', order: groupOrder },
    { role: 'value', order: groupOrder },
    { role: 'attention_output', order: ofHeads },
  ])
}

/** The units of a part come from these places. */
interface UnitOrder {
  readonly role: BlockRole
  readonly order: readonly number[]
}

/** By module, which can compute several of the parts. */
function movesOf(network: Network, modules: ReadonlyMap<BlockRole, Site>, orders: readonly UnitOrder[]): Move[] {
  const moves = new Map<Site, Move & { readonly from: number[] }>()
  for (const { role, order } of orders) {
    const site = modules.get(role)!
    const axis = unitAxis(role)
    const move = moves.get(site) ?? { site, axis, from: counting(linearShape(site)[axis === 'in' ? 1 : 0]) }
    const places = unitPlaces(site, role, (part) => headsOf(network, part))
    for (const [to, unit] of order.entries()) {
      const source = unitRows(places, unit)
      for (const [i, row] of unitRows(places, to).entries()) move.from[row] = source[i]!
    }
    moves.set(site, move)
  }
  return [...moves.values()]
}

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
  throw misuse(block, `a dense ${role.replace('_', ' ')} projection`, found ? found.structure!.kind : 'none')
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
