/**
 * S²FT (Yang et al. 2024, arXiv 2412.06289): whole rows or columns of the weights are trained, those of a few heads and
 * feed-forward channels. They are gathered and scattered where they stand; {@link permuteCoupled} moves them together.
 */
import { z } from 'zod'
import { parseConfig } from '../../config.js'
import { HeddleError } from '../../errors.js'
import { add, broadcastTo } from '../../graph/ops/elementwise.js'
import { gather, oneHot, scatterAdd } from '../../graph/ops/gather.js'
import { scatterAddRows, transpose } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { read, type Sym } from '../../graph/sym.js'
import { linearShape, type Site } from '../../nn/site.js'
import { type Tensor, tensor } from '../../tensor/tensor.js'
import type { Adapter } from '../adapter.js'
import { declared, zero } from '../initial_values.js'
import type {
  Factors,
  MergeContext,
  Merged,
  Parametrization,
  ParametrizationType,
  SiteContext,
  SitePlan,
} from '../parametrization.js'
import { storedFields, type TargetOptions, targetFields, targeting, unsuited } from '../targeting.js'
import {
  projections,
  type S2ftAxis,
  type S2ftSelection,
  type SelectedChannels,
  selectChannels,
} from './s2ft_selection.js'

/** Options of {@link s2ft}; the ratios in the names of the reference code. */
export interface S2ftOptions extends TargetOptions<'s2ft_only'> {
  /** Share of the key–value heads of all layers whose rows of v are trained; default 0. */
  readonly v_ratio?: number
  /** Share of the query heads of all layers whose columns of the attention's output projection are trained; default 0. */
  readonly o_ratio?: number
  /** Share of the channels of all layers whose rows of the up projection are trained; default 0. */
  readonly u_ratio?: number
  /** Share of the channels of all layers whose columns of the down projection are trained; default 0. */
  readonly d_ratio?: number
  /**
   * How they are chosen: drawn (`random`, default), by the norm of their weights, of what they give on data, by both
   * norms' `product`, or by the norm of their weights' gradient on data.
   */
  readonly selection?: S2ftSelection
  /** Which end of the scores; default `smallest`, which disturbs what the model knows least. */
  readonly selection_order?: 'largest' | 'smallest'
  /** By module path, in the place of ratios and `target_modules`: which channels, in this order. */
  readonly selected?: Readonly<Record<string, SelectedChannels>>
}

const ratio = z.number().min(0).max(1).default(0)
const axis = z.enum(['in', 'out'])
const { target_modules, ...otherTargets } = targetFields('s2ft_only')
const fields = {
  v_ratio: ratio,
  o_ratio: ratio,
  u_ratio: ratio,
  d_ratio: ratio,
  selection: z.enum(['random', 'weight', 'activation', 'product', 'gradient']).default('random'),
  selection_order: z.enum(['largest', 'smallest']).default('smallest'),
  ...otherTargets,
} as const
const schema = z.strictObject({
  ...fields,
  target_modules: target_modules.unwrap().optional(),
  selected: z.record(z.string(), z.strictObject({ axis, indices: z.array(z.int().min(0)).min(1) })).optional(),
})
const storedSchema = z.strictObject({
  ...fields,
  target_modules,
  selected: z.record(z.string(), z.strictObject({ axis, size: z.int().positive() })),
})

type Config = z.infer<typeof schema>

/** What is known of a module's channels: all of it when chosen, the file's tensor has the indices when loaded. */
interface Selected {
  readonly axis: S2ftAxis
  readonly size: number
  readonly indices?: readonly number[]
}

/**
 * With `indices` of k channels and S zero at the start. Columns of W `[out, in]` (axis in: o, down): S `[out, k]`,
 * y = base(x) + x[:, indices] Sᵀ. Rows (axis out: v, up): S `[k, in]`, y[:, indices] = base(x)[:, indices] + x Sᵀ. Numbers:
 * k · out or k · in.
 * @throws ERR_HEDDLE_ARGUMENT on a field that is unknown, out of range or at odds with another
 */
export function s2ft(options: S2ftOptions = {}): Parametrization {
  const config = parseConfig('s2ft', schema, options)
  const hasRatio = projections.some((projection) => config[`${projection}_ratio`] > 0)
  if (!config.selected && !hasRatio)
    throw misuse('s2ft', `${projections.map((each) => `${each}_ratio`).join(', ')} above 0, or selected`, 'neither')
  if (config.selected) return explicit(config, config.selected, hasRatio)
  return {
    ...attachable({ ...config, target_modules: config.target_modules ?? 'all-linear' }, undefined),
    async resolve(context) {
      const chosen = await selectChannels(config, context)
      return attachable({ ...config, target_modules: [...chosen.keys()] }, sized(chosen))
    },
  }
}

/** Registry entry. */
export const s2ftType: ParametrizationType = {
  name: 's2ft',
  peftType: 'S2FT',
  isPeft: false,
  title: 'S²FT',
  source: 'Yang et al. 2024, arXiv 2412.06289',
  purpose: 'trains heads and channels of the weights themselves, keeping few activations',
  initialChange: 'none',
  create: (config) => s2ft(config as S2ftOptions),
  restore(stored) {
    const config = parseConfig('s2ft', storedSchema, storedFields(storedSchema, stored))
    return attachable(config, new Map(Object.entries(config.selected)))
  },
}

/** Modules in which both adapters train the same channels: their changes add up there, and neither is alone. */
export async function s2ftOverlap(first: Adapter, second: Adapter): Promise<Map<string, readonly number[]>> {
  const shared = new Map<string, readonly number[]>()
  for (const [path, { buffers }] of first.attachments) {
    const other = second.attachments.get(path)
    if (!other?.buffers[indexName] || !buffers[indexName]) continue
    if (axisOf(first, path) !== axisOf(second, path)) continue
    const theirs = new Set(await indicesOf(other.buffers[indexName]))
    const both = (await indicesOf(buffers[indexName])).filter((index) => theirs.has(index))
    if (both.length > 0) shared.set(path, both)
  }
  return shared
}

const indicesOf = async (each: Tensor): Promise<number[]> => [...((await each.data()) as Int32Array)]

const axisOf = ({ method }: Adapter, path: string): S2ftAxis | undefined =>
  (method.config.selected as Readonly<Record<string, Selected>>)[path]?.axis

const changeName = 's2'
const indexName = 'indices'

/** The user's own choice. */
function explicit(config: Config, selected: NonNullable<Config['selected']>, hasRatio: boolean): Parametrization {
  if (hasRatio || config.target_modules !== undefined)
    throw misuse('s2ft.selected', 'neither ratios nor target_modules beside it', 'both')
  for (const [path, { indices }] of Object.entries(selected))
    if (new Set(indices).size !== indices.length)
      throw misuse(`s2ft.selected: ${path}`, 'each index once', indices.join(', '))
  return attachable({ ...config, target_modules: Object.keys(selected) }, sized(new Map(Object.entries(selected))))
}

const sized = (chosen: ReadonlyMap<string, SelectedChannels>): ReadonlyMap<string, Selected> =>
  new Map([...chosen].map(([path, { axis: side, indices }]) => [path, { axis: side, size: indices.length, indices }]))

/** @param selected undefined before anything is chosen */
function attachable(
  config: Omit<Config, 'selected' | 'target_modules'> & { readonly target_modules: string | readonly string[] },
  selected: ReadonlyMap<string, Selected> | undefined,
): Parametrization {
  const stored = [...(selected ?? [])].map(([path, { axis: side, size }]) => [path, { axis: side, size }] as const)
  return {
    name: 's2ft',
    config: { ...config, ...(selected ? { selected: Object.fromEntries(stored) } : {}) },
    ...targeting(config),
    plan: (site) => planAt(site, selected?.get(site.path)),
  }
}

function planAt(site: Site, selected: Selected | undefined): SitePlan {
  if (site.kind !== 'linear') throw unsuited('s2ft', site, 'a linear module', `a ${site.kind} module`)
  if (!selected) throw unsuited('s2ft', site, 'channels that attaching the method chooses', 'none so far')
  const [out, inner] = linearShape(site)
  const { axis: side, size, indices } = selected
  const channels = side === 'in' ? inner : out
  if (size > channels || indices?.some((index) => index >= channels))
    throw unsuited('s2ft', site, `indices below ${channels} along ${side}`, `${indices ?? size}`)
  const shape = side === 'in' ? [out, size] : [size, inner]
  return {
    parameters: { [changeName]: declared(shape, zero) },
    buffers: { [indexName]: { shape: [size], dtype: 'i32' } },
    ...(indices ? { prepare: async () => ({ values: { [indexName]: tensor(Int32Array.from(indices)) } }) } : {}),
    forward: (context) => (side === 'in' ? fromColumns(context) : intoRows(context, out)),
    merged: (context) => merged(site, side, context),
    factors: ({ parameters, buffers }) =>
      factors(side, channels, read(parameters[changeName]!), read(buffers[indexName]!)),
  }
}

/** Only the chosen columns of x are kept for the backward pass. */
function fromColumns({ x, base, parameters, buffers, forward: { precision } }: SiteContext): Sym {
  const change = read(parameters[changeName]!)
  const chosen = gather(x, -1, spread(read(buffers[indexName]!), x))
  return add(base(), matmul(chosen, change, { transposeB: true, precision }))
}

/** Only the chosen columns of the output's gradient reach S. */
function intoRows({ x, base, parameters, buffers, forward: { precision } }: SiteContext, out: number): Sym {
  const y = matmul(x, read(parameters[changeName]!), { transposeB: true, precision })
  return add(base(), scatterAdd(spread(read(buffers[indexName]!), x), y, out, -1))
}

/** The indices for every row of x. */
const spread = (indices: Sym, x: Sym): Sym => broadcastTo(indices, [...x.shape.slice(0, -1), indices.shape[0]!])

/** W + S at the chosen rows or columns, as the weight is stored. */
function merged({ transposed }: Site, side: S2ftAxis, { weight, parameters, buffers }: MergeContext): Merged {
  const [change, indices] = [read(parameters[changeName]!), read(buffers[indexName]!)]
  const isRow = (side === 'out') !== (transposed === true)
  const rows = side === 'out' ? change : transpose(change)
  // Rows of the stored matrix, or those of its transpose.
  const placed = scatterAddRows(indices, rows, weight.shape[isRow ? 0 : 1]!)
  return { weight: add(weight, isRow ? placed : transpose(placed)) }
}

/** The other factor has a single one in each row or column. */
function factors(side: S2ftAxis, channels: number, change: Sym, indices: Sym): Factors {
  const places = oneHot(indices, channels)
  return side === 'in' ? { a: places, b: change } : { a: change, b: transpose(places) }
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
