/** What a linear module does in its transformer block, by the names that the architectures here give it. */
import type { Network } from '../nn/network.js'
import type { Site } from '../nn/site.js'
import { escaped } from './target_modules.js'

/** A part of a transformer block. Modules that compute several parts at once have no role. */
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

/** The block that a module is in, and what it does there; undefined where either is not known. */
export function blockPlace(path: string): { readonly block: string; readonly role: BlockRole } | undefined {
  const [, block, name] = /^(.*\.\d+)\.(.+)$/u.exec(path) ?? []
  const role = roles.get(name ?? '')
  return block !== undefined && role ? { block, role } : undefined
}

/** The modules of every block by what they do, in the network's order. */
export function blocksOf({ sites }: Pick<Network, 'sites'>): ReadonlyMap<string, ReadonlyMap<BlockRole, Site>> {
  const blocks = new Map<string, Map<BlockRole, Site>>()
  for (const site of sites.values()) {
    const place = blockPlace(site.path)
    if (!place) continue
    const own = blocks.get(place.block) ?? new Map<BlockRole, Site>()
    blocks.set(place.block, own.set(place.role, site))
  }
  return blocks
}

/** Query heads of a network's attention; undefined where its configuration says nothing of them. */
export function attentionHeads({ config }: Pick<Network, 'config'>): number | undefined {
  const heads = config.num_attention_heads ?? config.n_head ?? config.n_heads
  return typeof heads === 'number' ? heads : undefined
}

/** A regular expression for the whole paths of the modules with these roles. */
export const rolePattern = (wanted: readonly BlockRole[]): string =>
  `.*\\.\\d+\\.(?:${wanted
    .flatMap((role) => names[role])
    .map(escaped)
    .join('|')})`
