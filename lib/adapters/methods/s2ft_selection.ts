/** Which heads and channels S²FT trains: a share of those of the whole model, drawn or by a score. */
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { add, cast, mul, sqrt, square } from '../../graph/ops/elementwise.js'
import { arange, indexSelect } from '../../graph/ops/gather.js'
import { concat } from '../../graph/ops/index.js'
import { randomUniform } from '../../graph/ops/random.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { topk } from '../../graph/ops/sort.js'
import { assign, read, type Sym } from '../../graph/sym.js'
import type { Network } from '../../nn/network.js'
import { linearShape, type Site } from '../../nn/site.js'
import { observeInputs, type SharedInput } from '../../observers/site_inputs.js'
import { weightGradients } from '../../observers/weight_gradients.js'
import { seedTensor } from '../../tensor/seed.js'
import { type Tensor, zeros } from '../../tensor/tensor.js'
import {
  type BlockRole,
  blockParts,
  blocksOf,
  type HeadRole,
  headCount,
  type UnitPlaces,
  unitAxis,
  unitPlaces,
  unitRows,
} from '../block_roles.js'
import type { ResolveContext } from '../parametrization.js'

/** How heads and channels are chosen. */
export type S2ftSelection = 'random' | 'weight' | 'activation' | 'product' | 'gradient'

/** The side of a weight `[out, in]` that indices count along. */
export type S2ftAxis = 'in' | 'out'

/** Rows or columns of a module. */
export interface SelectedChannels {
  readonly axis: S2ftAxis
  readonly indices: readonly number[]
}

/** A projection that heads or channels are chosen of, by the letter of its ratio. */
type Projection = 'v' | 'o' | 'u' | 'd'

/** The part of the config that decides. */
export interface SelectionConfig extends Readonly<Record<`${Projection}_ratio`, number>> {
  readonly selection: S2ftSelection
  readonly selection_order: 'largest' | 'smallest'
}

interface Kind {
  readonly role: BlockRole
  readonly unit: 'query head' | 'key-value head' | 'channel'
}

const kinds: Readonly<Record<Projection, Kind>> = {
  v: { role: 'value', unit: 'key-value head' },
  o: { role: 'attention_output', unit: 'query head' },
  u: { role: 'up', unit: 'channel' },
  d: { role: 'down', unit: 'channel' },
}

export const projections = Object.keys(kinds) as readonly Projection[]

/** The units of one site, along the axis. */
interface Part extends UnitPlaces {
  readonly site: Site
  readonly axis: S2ftAxis
}

/**
 * By module path. Of each projection ⌊ratio · units of all layers⌋ units are taken, whichever layers they are in, in the
 * order in which they stand.
 * @throws ERR_HEDDLE_ARGUMENT where a ratio is above 0 and there is no such projection, or nothing is left of it
 */
export async function selectChannels(
  config: SelectionConfig,
  context: ResolveContext,
): Promise<Map<string, SelectedChannels>> {
  const selected = new Map<string, SelectedChannels>()
  for (const [stream, projection] of projections.entries()) {
    const ratio = config[`${projection}_ratio`]
    if (ratio === 0) continue
    const parts = partsOf(projection, context)
    if (readsWeights.has(config.selection)) expectDense(config.selection, parts)
    const total = parts.reduce((count, { units }) => count + units, 0)
    const count = Math.floor(ratio * total)
    if (count === 0)
      throw misuse(
        `s2ft.${projection}_ratio`,
        `a share that makes one of ${total} ${kinds[projection].unit}s`,
        `${ratio}`,
      )
    using scores = await unitScores(projection, parts, config, context, stream)
    const largest = config.selection_order === 'largest'
    using found = await computed(() => topk(read(scores), count, { largest }).indices)
    const units = [...((await found.data()) as Int32Array)].sort((a, b) => a - b)
    for (const [path, channels] of channelsOf(parts, units)) selected.set(path, channels)
  }
  return selected
}

const readsWeights: ReadonlySet<S2ftSelection> = new Set(['weight', 'product', 'gradient'])

function expectDense(selection: S2ftSelection, parts: readonly Part[]): void {
  const structured = parts.find(({ site }) => site.structure)?.site
  if (structured)
    throw misuse(`s2ft.selection: ${structured.path}`, `a dense weight for ${selection}`, structured.structure!.kind)
}

/** Units counted over all parts, as channels of each. */
function channelsOf(parts: readonly Part[], units: readonly number[]): [string, SelectedChannels][] {
  let before = 0
  return parts.flatMap((part) => {
    const { site, axis, units: count } = part
    const own = units.filter((unit) => unit >= before && unit < before + count).map((unit) => unit - before)
    before += count
    const indices = own.flatMap((unit) => unitRows(part, unit))
    return indices.length > 0 ? [[site.path, { axis, indices }] as [string, SelectedChannels]] : []
  })
}

function partsOf(projection: Projection, { network, sites }: ResolveContext): readonly Part[] {
  const { role } = kinds[projection]
  const found = sites.filter(({ path }) => blockParts(path)?.parts.includes(role))
  if (found.length === 0)
    throw misuse(
      `s2ft.${projection}_ratio`,
      `${role.replace('_', ' ')} projections among the target modules`,
      sites.map(({ path }) => path).join(', '),
    )
  return found.map((site) => {
    const places = unitPlaces(site, role, (part) => headsOf(network, part))
    if (!Number.isInteger(places.width))
      throw misuse(`s2ft.${projection}_ratio`, `${places.units} heads of equal size`, `[${linearShape(site)}]`)
    return { site, axis: unitAxis(role), ...places }
  })
}

/** Heads of a part. @throws ERR_HEDDLE_ARGUMENT where the network's configuration says nothing of them */
export function headsOf(network: Network, role: HeadRole): number {
  const count = headCount(network, role)
  if (count !== undefined) return count
  throw misuse('s2ft', 'a network with attention heads for v_ratio and o_ratio', network.architecture)
}

/** One number per unit of all parts, `f32 [units]`. */
async function unitScores(
  projection: Projection,
  parts: readonly Part[],
  { selection }: SelectionConfig,
  context: ResolveContext,
  stream: number,
): Promise<Tensor> {
  const total = parts.reduce((count, { units }) => count + units, 0)
  switch (selection) {
    case 'random': {
      using words = seedTensor(context.seed)
      return await computed((seed) => randomUniform(seed!, stream, [total]), [words])
    }
    case 'weight':
      return await computed(() => concat(parts.map((part) => blockNorms(part, read(part.site.weight)))))
    case 'activation':
      return await activationNorms(projection, parts, context)
    case 'product': {
      using activations = await activationNorms(projection, parts, context)
      return await computed(() =>
        mul(concat(parts.map((part) => blockNorms(part, read(part.site.weight)))), read(activations)),
      )
    }
    case 'gradient':
      return await gradientNorms(parts, context)
  }
}

/** ‖·‖ of each unit's rows or columns of a matrix that is stored as the site's weight is: `[units]`. */
function blockNorms(part: Part, matrix: Sym): Sym {
  const isRow = (part.axis === 'out') !== (part.site.transposed === true)
  const squares = sum(square(matrix), { axes: [isRow ? 1 : 0] })
  return groupNorms(indexSelect(squares, 0, rowsOf(part)), part.units)
}

/** The rows of all units, one unit after the other, `i32 [units · width]`. */
function rowsOf({ units, width, first, stride }: UnitPlaces): Sym {
  const starts = reshape(add(mul(arange(units, { dtype: 'f32' }), stride), first), [units, 1])
  return cast(reshape(add(starts, arange(width, { dtype: 'f32' })), [-1]), 'i32')
}

/** Roots of the sums of equal parts of `squares`. */
const groupNorms = (squares: Sym, units: number): Sym => sqrt(sum(reshape(squares, [units, -1]), { axes: [1] }))

async function gradientNorms(parts: readonly Part[], context: ResolveContext): Promise<Tensor> {
  const { network, calibration } = context
  const norms = new Map<Site, Tensor>()
  const sites = parts.map(({ site }) => site)
  try {
    const visit = async (site: Site, gradient: Tensor): Promise<void> => {
      const part = parts.find((each) => each.site === site)!
      norms.set(site, await computed(() => blockNorms(part, read(gradient))))
    }
    await weightGradients(network, sites, calibration(), visit, context.watch)
    return await computed(() => concat(sites.map((site) => read(norms.get(site)!))))
  } finally {
    for (const each of norms.values()) each.dispose()
  }
}

/**
 * ‖·‖ over all tokens of what each unit gives: an intermediate channel of a feed-forward part, the output of a head or of
 * all heads of a key–value group. It is the input of the block's down or output projection.
 */
async function activationNorms(
  projection: Projection,
  parts: readonly Part[],
  context: ResolveContext,
): Promise<Tensor> {
  const { network, calibration } = context
  const blocks = blocksOf(network)
  const readers = parts.map(({ site }) => readerOf(projection, site, blocks))
  const sums = new Map(readers.map((site) => [site, zeros([linearShape(site)[1]])] as const))
  try {
    const visit = async ({ sites, input }: SharedInput): Promise<undefined> => {
      await computed(() => {
        for (const site of sites) {
          const target = sums.get(site)!
          assign(target, add(read(target), sum(square(reshape(read(input), [-1, target.size])), { axes: [0] })))
        }
        return []
      })
    }
    await observeInputs(network, readers, calibration(), visit, context.watch)
    return await computed(() => concat(parts.map(({ units }, i) => groupNorms(read(sums.get(readers[i]!)!), units))))
  } finally {
    for (const each of sums.values()) each.dispose()
  }
}

/** The module of the same block that reads what the projection's units give. */
function readerOf(projection: Projection, site: Site, blocks: ReturnType<typeof blocksOf>): Site {
  const wanted = projection === 'v' || projection === 'o' ? kinds.o.role : kinds.d.role
  const reader = blocks.get(blockParts(site.path)!.block)?.get(wanted)
  if (reader) return reader
  throw misuse('s2ft.selection', `${wanted.replace('_', ' ')} projections beside ${site.path}`, 'none')
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
