/** What a linear module does in its transformer block, by the names that the architectures here give it. */
import type { Network } from '../nn/network.js'
import { linearShape, type Site } from '../nn/site.js'
import { escaped } from './target_modules.js'

/** A part of a transformer block. */
export type BlockRole = 'query' | 'key' | 'value' | 'attention_output' | 'gate' | 'up' | 'down'

/** Paths within a block. */
const names = {
  query: ['self_attn.q_proj', 'attention.self.query', 'attention.q_lin', 'attention.attention.query'],
  key: ['self_attn.k_proj', 'attention.self.key', 'attention.k_lin', 'attention.attention.key'],
  value: ['self_attn.v_proj', 'attention.self.value', 'attention.v_lin', 'attention.attention.value'],
  attention_output: [
    'self_attn.o_proj',
    'self_attn.out_proj',
    'self_attn.dense',
    'attn.c_proj',
    'attention.dense',
    'attention.output.dense',
    'attention.out_lin',
  ],
  gate: ['mlp.gate_proj'],
  up: ['mlp.up_proj', 'mlp.c_fc', 'mlp.dense_h_to_4h', 'mlp.fc1', 'fc1', 'intermediate.dense', 'ffn.lin1'],
  down: ['mlp.down_proj', 'mlp.c_proj', 'mlp.dense_4h_to_h', 'mlp.fc2', 'fc2', 'output.dense', 'ffn.lin2'],
} as const satisfies Readonly<Record<BlockRole, readonly string[]>>

const roles = new Map(
  Object.entries(names).flatMap(([role, paths]) => paths.map((path) => [path as string, role as BlockRole] as const)),
)

/** Modules that compute several parts at once, and how the rows of these stand: one after the other, or so in each head. */
interface Fused {
  readonly parts: readonly BlockRole[]
  readonly layout: 'split' | 'per head'
}

const attentionParts = ['query', 'key', 'value'] as const
const fused = new Map<string, Fused>([
  ['attn.c_attn', { parts: attentionParts, layout: 'split' }],
  ['self_attn.qkv_proj', { parts: attentionParts, layout: 'split' }],
  ['attention.query_key_value', { parts: attentionParts, layout: 'per head' }],
  ['mlp.gate_up_proj', { parts: ['gate', 'up'], layout: 'split' }],
])

/** A module's path by its block and what it is called there. */
function placed(path: string): { readonly block: string; readonly name: string } | undefined {
  const [, block, name] = /^(.*\.\d+)\.(.+)$/u.exec(path) ?? []
  return block !== undefined && name !== undefined ? { block, name } : undefined
}

/** The block that a module is in, and the parts that it computes: none where they are not known. */
export function blockParts(path: string): { readonly block: string; readonly parts: readonly BlockRole[] } | undefined {
  const place = placed(path)
  if (!place) return undefined
  const role = roles.get(place.name)
  return { block: place.block, parts: role ? [role] : (fused.get(place.name)?.parts ?? []) }
}

/**
 * The modules of every block by what they compute, in the network's order. A module that computes several parts stands
 * under each of them.
 */
export function blocksOf({ sites }: Pick<Network, 'sites'>): ReadonlyMap<string, ReadonlyMap<BlockRole, Site>> {
  const blocks = new Map<string, Map<BlockRole, Site>>()
  for (const site of sites.values()) {
    const place = blockParts(site.path)
    if (!place || place.parts.length === 0) continue
    const own = blocks.get(place.block) ?? new Map<BlockRole, Site>()
    for (const part of place.parts) own.set(part, site)
    blocks.set(place.block, own)
  }
  return blocks
}

/** Where the units of a part, its heads or channels, stand among a module's rows, or the columns of one that reads them. */
export interface UnitPlaces {
  readonly units: number
  /** Rows of a unit, which stand together. */
  readonly width: number
  /** Of the first unit. */
  readonly first: number
  /** From one unit to the next. */
  readonly stride: number
}

/** Parts that are made of heads. */
export type HeadRole = Exclude<BlockRole, 'gate' | 'up' | 'down'>

/**
 * @param role one of the parts that the module computes
 * @param heads of a part; keys and values can have fewer than queries
 * @returns widths are no integers where the module's rows are none of so many heads
 */
export function unitPlaces(site: Site, role: BlockRole, heads: (role: HeadRole) => number): UnitPlaces {
  const [out, inner] = linearShape(site)
  const size = unitAxis(role) === 'in' ? inner : out
  const { parts, layout } = fused.get(placed(site.path)?.name ?? '') ?? { parts: [role], layout: 'split' }
  const counts = parts.map((part) =>
    part === 'gate' || part === 'up' || part === 'down' ? size / parts.length : heads(part),
  )
  const width = size / counts.reduce((total, count) => total + count, 0)
  const index = parts.indexOf(role)
  const units = counts[index]!
  if (layout === 'per head') return { units, width, first: index * width, stride: parts.length * width }
  const before = counts.slice(0, index).reduce((total, count) => total + count, 0)
  return { units, width, first: before * width, stride: width }
}

/** Where a part's units stand: among the rows of what computes them, or the columns of what reads them. */
export const unitAxis = (role: BlockRole): 'in' | 'out' =>
  role === 'attention_output' || role === 'down' ? 'in' : 'out'

/** 0, 1, … */
export const counting = (count: number): number[] => Array.from({ length: count }, (_, i) => i)

/** The rows of a unit, in order. */
export const unitRows = ({ first, stride, width }: UnitPlaces, unit: number): number[] =>
  Array.from({ length: width }, (_, i) => first + unit * stride + i)

/** Query heads of a network's attention; undefined where its configuration says nothing of them. */
export function attentionHeads({ config }: Pick<Network, 'config'>): number | undefined {
  const heads = config.num_attention_heads ?? config.n_head ?? config.n_heads
  return typeof heads === 'number' ? heads : undefined
}

/** Heads that a part is made of: keys and values have their own number under grouped-query attention. */
export function headCount(network: Pick<Network, 'config'>, role: HeadRole): number | undefined {
  const heads = attentionHeads(network)
  const own = role === 'key' || role === 'value' ? network.config.num_key_value_heads : undefined
  return typeof own === 'number' ? own : heads
}

/** A regular expression for the whole paths of the modules with these roles. */
export const rolePattern = (wanted: readonly BlockRole[]): string =>
  `.*\\.\\d+\\.(?:${wanted
    .flatMap((role) => names[role])
    .map(escaped)
    .join('|')})`
