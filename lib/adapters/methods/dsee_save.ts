/** A model without the heads and feed-forward channels that DSEE has pruned: smaller matrices instead of masks. */
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { abs } from '../../graph/ops/elementwise.js'
import { indexSelect } from '../../graph/ops/gather.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { pause } from '../../graph/pause.js'
import { read } from '../../graph/sym.js'
import { type SaveModelOptions, saveNetwork } from '../../models/save.js'
import type { Network } from '../../nn/network.js'
import { linearShape, oriented, type Site } from '../../nn/site.js'
import { type Tensor, tensor } from '../../tensor/tensor.js'
import type { Tokenizer } from '../../tokenize/tokenizer.js'
import type { Adapter } from '../adapter.js'
import {
  type BlockRole,
  blocksOf,
  counting,
  type HeadRole,
  headCount,
  unitAxis,
  unitPlaces,
  unitRows,
} from '../block_roles.js'
import { headsOf } from './dsee.js'
import { expectDsee } from './dsee_prune.js'

/** Options of {@link dseeSave}. */
export interface DseeSaveOptions extends SaveModelOptions {
  /** Written beside the weights; default none. */
  readonly tokenizer?: Tokenizer
}

/** What is left in each layer of a network. */
export interface DseeSizes {
  readonly heads: number
  readonly keyValueHeads: number
  readonly channels: number
}

/** The sizes of a model folder that {@link dseeSave} wrote, and of the model that it was made from. */
export interface DseeSaved {
  readonly before: DseeSizes
  readonly after: DseeSizes
}

/**
 * Writes the model with the adapter merged and without the heads and feed-forward channels that are read by zeros alone:
 * a folder that is loaded as any other and computes what the model with the adapter does, up to the order of sums. All
 * layers keep as many heads and channels as the one with most of them, so that config.json can say it in its own fields:
 * `num_attention_heads`, `num_key_value_heads`, `head_dim`, `intermediate_size`. Under grouped-query attention key–value
 * heads go with all query heads of their group; query heads go where every group loses some. The adapter and the model
 * stay as they are.
 * @throws ERR_HEDDLE_ARGUMENT for an adapter of another method, when nothing is read by zeros alone in every layer, or where
 *   heads are lost and the architecture ties their size to their number; ERR_HEDDLE_IO
 */
export async function dseeSave(adapter: Adapter, folder: string, options: DseeSaveOptions = {}): Promise<DseeSaved> {
  expectDsee(adapter, 'dseeSave')
  const { tokenizer, ...rest } = options
  const { model } = adapter
  await adapter.merge()
  try {
    const layers = await layersOf(model)
    const [before, after] = [sizesOf(layers, whole), sizesOf(layers, alive)]
    if (before.heads === after.heads && before.channels === after.channels) throw nothingLeftOut(layers)
    const config = smallerConfig(model, before, after)
    const sliced = new Map<Tensor, Tensor>()
    try {
      for (const layer of layers) for (const slice of slicesOf(layer, after)) await cut(sliced, slice)
      const weights = () =>
        model.weights().map(({ name, tensor: each }) => ({ name, tensor: sliced.get(each) ?? each }))
      await saveNetwork({ ...model, config, ...wholeConfig(model), weights }, tokenizer, folder, rest)
    } finally {
      for (const each of sliced.values()) each.dispose()
    }
    return { before, after }
  } finally {
    adapter.unmerge()
  }
}

/** Defaults that follow from other fields would follow from the new ones: none may be left out. */
const wholeConfig = ({ configSource: source }: Network): Pick<Network, 'configSource'> =>
  source ? { configSource: { ...source, completed: {} } } : {}

/** The modules of a block, and which of its units are read. */
interface Layer {
  readonly modules: ReadonlyMap<BlockRole, Site>
  /** By key–value head: its query heads. */
  readonly heads: readonly (readonly boolean[])[]
  readonly channels: readonly boolean[]
  readonly headsOf: (role: HeadRole) => number
}

async function layersOf(network: Network): Promise<Layer[]> {
  const layers: Layer[] = []
  const heads = headsOf(network)
  const groups = headCount(network, 'key') ?? heads
  for (const modules of blocksOf(network).values()) {
    const [output, down] = [modules.get('attention_output'), modules.get('down')]
    if (!output || !down || !modules.has('value') || !modules.has('up')) continue
    for (const site of modules.values())
      if (site.structure) throw misuse(site.path, 'a dense weight', site.structure.kind)
    const all = await readUnits(output, heads)
    layers.push({
      modules,
      heads: counting(groups).map((group) => all.slice((group * heads) / groups, ((group + 1) * heads) / groups)),
      channels: await readUnits(down, linearShape(down)[1]),
      headsOf: (role) => headCount(network, role) ?? heads,
    })
    await pause()
  }
  if (layers.length > 0) return layers
  throw misuse('model', 'a network with attention and feed-forward modules that are known', network.architecture)
}

/** Of each unit, whether any of the columns that read it is not zero. */
async function readUnits(site: Site, units: number): Promise<boolean[]> {
  using sizes = await computed(() => {
    const columns = sum(abs(oriented(site, read(site.weight))), { axes: [0] })
    return sum(reshape(columns, [units, -1]), { axes: [1] })
  })
  return [...((await sizes.data()) as Float32Array)].map((size) => size > 0)
}

const isAlive = (units: readonly boolean[]): boolean => units.includes(true)
const countOf = (units: readonly boolean[]): number => units.filter(Boolean).length

/** What counts in {@link sizesOf}: all units, or those that are read. */
const whole = (units: readonly boolean[]): number => units.length
const alive = (units: readonly boolean[]): number => Math.max(1, countOf(units))

/** Sizes that every layer, and every group of heads, can have. */
function sizesOf(layers: readonly Layer[], count: (units: readonly boolean[]) => number): DseeSizes {
  const most = (of: (layer: Layer) => number): number => Math.max(...layers.map(of))
  const keyValueHeads = most(({ heads }) => count(heads.map(isAlive)))
  const perGroup = most(({ heads }) => Math.max(...heads.map(count)))
  return { heads: keyValueHeads * perGroup, keyValueHeads, channels: most(({ channels }) => count(channels)) }
}

/** What stays of a module: rows, or columns. */
interface Slice {
  readonly site: Site
  readonly isRow: boolean
  readonly kept: readonly number[]
}

function slicesOf({ modules, heads, channels, headsOf }: Layer, sizes: DseeSizes): Slice[] {
  const groups = keptUnits(heads.map(isAlive), sizes.keyValueHeads)
  const perGroup = heads[0]!.length
  const queries = groups.flatMap((group) =>
    keptUnits(heads[group]!, sizes.heads / sizes.keyValueHeads).map((head) => group * perGroup + head),
  )
  const inner = keptUnits(channels, sizes.channels)
  const units = {
    query: queries,
    key: groups,
    value: groups,
    attention_output: queries,
    gate: inner,
    up: inner,
    down: inner,
  } as const satisfies Readonly<Record<BlockRole, readonly number[]>>
  const rows = new Map<Site, Slice & { readonly kept: number[] }>()
  for (const [role, site] of modules) {
    const isRow = unitAxis(role) === 'out'
    const slice = rows.get(site) ?? { site, isRow, kept: [] }
    const places = unitPlaces(site, role, headsOf)
    slice.kept.push(...units[role].flatMap((unit) => unitRows(places, unit)))
    rows.set(site, slice)
  }
  return [...rows.values()]
}

/** The units that are read, and as many of the others as make up the number, in order. */
function keptUnits(units: readonly boolean[], count: number): number[] {
  const all = counting(units.length)
  const [read, unread] = [all.filter((unit) => units[unit]), all.filter((unit) => !units[unit])]
  return [...read, ...unread.slice(0, count - read.length)].sort((a, b) => a - b)
}

/** Adds the smaller tensors of a module, by the whole ones. */
async function cut(sliced: Map<Tensor, Tensor>, { site, isRow, kept }: Slice): Promise<void> {
  const { weight, bias, transposed } = site
  // Parts of one module stand in it as before.
  using index = tensor(Int32Array.from(kept.toSorted((a, b) => a - b)))
  const axis = isRow !== (transposed === true) ? 0 : 1
  sliced.set(weight, await computed(() => indexSelect(read(weight), axis, read(index))))
  if (isRow && bias) sliced.set(bias, await computed(() => indexSelect(read(bias), 0, read(index))))
}

/** Architectures whose heads can be of another size than the width divided by their number. */
const withHeadSize = new Set([
  ...['llama', 'mistral', 'qwen2', 'qwen3', 'gemma', 'gemma2', 'gemma3_text'],
  ...['bert', 'roberta', 'xlm-roberta', 'distilbert'],
])

function smallerConfig(
  { config, architecture, sites }: Network,
  before: DseeSizes,
  after: DseeSizes,
): Readonly<Record<string, unknown>> {
  const named = (...names: readonly string[]): string => names.find((name) => name in config) ?? names[0]!
  // GPT-2's may be left out, four times the width then being meant.
  const width = architecture === 'gpt2' ? 'n_inner' : named('intermediate_size', 'ffn_dim', 'hidden_dim')
  const channels = { [width]: after.channels }
  if (after.heads === before.heads) return { ...config, ...channels }
  if (!withHeadSize.has(architecture))
    throw misuse('config', `an architecture whose heads have a size of their own`, architecture)
  const output = [...blocksOf({ sites }).values()].find((modules) => modules.has('attention_output'))!
  return {
    ...config,
    ...channels,
    [named('num_attention_heads', 'n_heads')]: after.heads,
    ...('num_key_value_heads' in config ? { num_key_value_heads: after.keyValueHeads } : {}),
    head_dim: linearShape(output.get('attention_output')!)[1] / before.heads,
  }
}

/** @returns why nothing can be left out */
function nothingLeftOut(layers: readonly Layer[]): HeddleError {
  const isShared = layers.some(({ heads }) => heads.some((group) => group.length > 1))
  return new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'dseeSave',
    expected: 'heads or channels that are read by zeros alone, as many in each layer',
    got: 'fewer in some layer than one, or an update at the modules that read them',
    hint: `Prune by dseePruneStructured${
      isShared ? ' with prune_key_value_heads_num' : ''
    }, and leave the output and down projections out of target_modules.`,
  })
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `dseeSave: ${place}`, expected, got })
