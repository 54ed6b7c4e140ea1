/** The Llama family (Touvron et al. 2023, arXiv 2302.13971): pre-norm decoder, rope, grouped-query attention, SwiGLU. */
import { z } from 'zod'
import { HeddleError } from '../errors.js'
import { attention, attentionCached } from '../graph/ops/attention.js'
import { add, cast, mul, silu } from '../graph/ops/elementwise.js'
import { cacheUpdate } from '../graph/ops/index.js'
import { rmsNorm } from '../graph/ops/norm.js'
import { reshape } from '../graph/ops/reduce.js'
import { type RopeTable, rope, ropeTable } from '../graph/ops/rope.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import { embedding, type Forward, linear, type Site, type SiteKind } from '../nn/site.js'
import { tensor, zeros } from '../tensor/tensor.js'
import type { CausalLm, DecoderInputs, KeyValueCache } from './causal_lm.js'
import { inverseFrequencies, ropeScalingSchema } from './rope_scaling.js'
import type { WeightSource } from './weights.js'

/** Far beyond any real model; bounds the work that a hostile config can cause. */
const maxLayers = 1 << 12

const configSchema = z.looseObject({
  architectures: z.array(z.string()).nonempty().default(['LlamaForCausalLM']),
  model_type: z.string().default('llama'),
  vocab_size: z.int().positive(),
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().positive().max(maxLayers),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive().optional(),
  head_dim: z.int().positive().nullish(),
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().default(10000),
  rope_scaling: ropeScalingSchema.nullish(),
  rope_parameters: ropeScalingSchema.nullish(),
  tie_word_embeddings: z.boolean().default(false),
  max_position_embeddings: z.int().positive().default(2048),
  hidden_act: z.literal('silu').default('silu'),
  attention_bias: z.literal(false).default(false),
  mlp_bias: z.literal(false).default(false),
})

export type LlamaConfig = z.infer<typeof configSchema>

interface Layer {
  readonly path: string
  readonly inputNorm: Site
  readonly q: Site
  readonly k: Site
  readonly v: Site
  readonly o: Site
  readonly postNorm: Site
  readonly gate: Site
  readonly up: Site
  readonly down: Site
}

/** Checks a Llama `config.json`. @throws ERR_HEDDLE_FORMAT naming the field */
export function parseLlamaConfig(config: unknown, place: string): LlamaConfig {
  const parsed = configSchema.safeParse(config)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    throw misfit(`${place}: ${issue?.path.join('.') || 'config'}`, 'a Llama configuration', issue?.message ?? 'another')
  }
  const { heads, kvHeads, dim } = headShape(parsed.data)
  if (!Number.isInteger(dim) || dim % 2 !== 0)
    throw misfit(`${place}: head_dim`, 'an even integer, by default hidden_size / num_attention_heads', `${dim}`)
  if (heads % kvHeads !== 0)
    throw misfit(`${place}: num_key_value_heads`, `a divisor of num_attention_heads, which is ${heads}`, `${kvHeads}`)
  return parsed.data
}

/**
 * Builds the network over a checkpoint's tensors.
 * @throws ERR_HEDDLE_FORMAT when the configuration or a tensor's shape does not fit
 */
export function llama(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseLlamaConfig(configuration, place)
  const shape = headShape(config)
  const sites = new Map<string, Site>()
  for (const { path, kind, dims, isOutput } of layout(config)) {
    const weight = source.take(`${path}.weight`, dims, kind === 'norm' ? 'ones' : 'normal')
    sites.set(path, { path, kind, weight, isOutput })
  }
  const { hidden_size: d, vocab_size: v } = config
  const at = (path: string): Site => sites.get(path)!
  const words = at('model.embed_tokens')
  const layers = Array.from({ length: config.num_hidden_layers }, (_, index): Layer => {
    const path = `model.layers.${index}`
    return {
      path,
      inputNorm: at(`${path}.input_layernorm`),
      q: at(`${path}.self_attn.q_proj`),
      k: at(`${path}.self_attn.k_proj`),
      v: at(`${path}.self_attn.v_proj`),
      o: at(`${path}.self_attn.o_proj`),
      postNorm: at(`${path}.post_attention_layernorm`),
      gate: at(`${path}.mlp.gate_proj`),
      up: at(`${path}.mlp.up_proj`),
      down: at(`${path}.mlp.down_proj`),
    }
  })
  const norm = at('model.norm')
  const output: Site = config.tie_word_embeddings
    ? { path: 'lm_head', kind: 'linear', weight: words.weight, isOutput: true }
    : at('lm_head')
  const frequencies = inverseFrequencies(shape.dim, config, place)
  const eps = config.rms_norm_eps

  const block = (layer: Layer, x: Sym, view: View, cache: LayerCache | undefined, forward: Forward): Sym => {
    const normed = rmsNorm(x, read(layer.inputNorm.weight), eps)
    const heads = (part: Site, count: number): Sym =>
      reshape(linear(part, normed, forward), [view.batch, view.time, count, shape.dim])
    const q = rope(heads(layer.q, shape.heads), view.table)
    const k = rope(heads(layer.k, shape.kvHeads), view.table)
    const values = heads(layer.v, shape.kvHeads)
    const mixed = cache
      ? attentionCached(
          q,
          cacheUpdate(read(cache.keys), k, view.position!),
          cacheUpdate(read(cache.values), values, view.position!),
          view.position!,
        )
      : attention(q, k, values, { causal: true, segments: view.segments })
    const attended = add(x, linear(layer.o, reshape(mixed, [view.batch * view.time, -1]), forward))
    const inner = rmsNorm(attended, read(layer.postNorm.weight), eps)
    const gated = mul(silu(linear(layer.gate, inner, forward)), linear(layer.up, inner, forward))
    return add(attended, linear(layer.down, gated, forward))
  }

  return {
    config,
    architecture: 'llama',
    sites,
    vocabularySize: v,
    maxPositions: config.max_position_embeddings,
    embeddingTied: config.tie_word_embeddings,
    outputSite: output,
    logits: (hidden, forward) => linear(output, hidden, forward),
    hasPlainLogits: true,
    async hidden(inputs, forward) {
      const view = viewOf(inputs, frequencies)
      let x = reshape(embedding(words, inputs.ids, forward), [-1, d])
      for (const [index, layer] of layers.entries()) {
        const { trace } = x.node
        x = trace.within(layer.path, () => block(layer, x, view, inputs.cache?.layers[index], forward))
        await pause()
      }
      return rmsNorm(x, read(norm.weight), eps)
    },
    createCache: (batch, capacity) => createCache(config, batch, capacity),
    weights: () =>
      [...sites.values()].map(({ path, weight: tensorOf }) => ({ name: `${path}.weight`, tensor: tensorOf })),
  }
}

interface SitePlace {
  readonly path: string
  readonly kind: SiteKind
  readonly dims: readonly number[]
  readonly isOutput: boolean
}

function layout(config: LlamaConfig): SitePlace[] {
  const { hidden_size: d, intermediate_size: f, vocab_size: v } = config
  const { heads, kvHeads, dim } = headShape(config)
  const place = (path: string, kind: SiteKind, dims: readonly number[], isOutput = false): SitePlace => ({
    path,
    kind,
    dims,
    isOutput,
  })
  const layers = Array.from({ length: config.num_hidden_layers }, (_, index) => {
    const path = `model.layers.${index}`
    return [
      place(`${path}.input_layernorm`, 'norm', [d]),
      place(`${path}.self_attn.q_proj`, 'linear', [heads * dim, d]),
      place(`${path}.self_attn.k_proj`, 'linear', [kvHeads * dim, d]),
      place(`${path}.self_attn.v_proj`, 'linear', [kvHeads * dim, d]),
      place(`${path}.self_attn.o_proj`, 'linear', [d, heads * dim]),
      place(`${path}.post_attention_layernorm`, 'norm', [d]),
      place(`${path}.mlp.gate_proj`, 'linear', [f, d]),
      place(`${path}.mlp.up_proj`, 'linear', [f, d]),
      place(`${path}.mlp.down_proj`, 'linear', [d, f]),
    ]
  })
  const output = config.tie_word_embeddings ? [] : [place('lm_head', 'linear', [v, d], true)]
  return [
    place('model.embed_tokens', 'embedding', [v, d]),
    ...layers.flat(),
    place('model.norm', 'norm', [d]),
    ...output,
  ]
}

type LayerCache = KeyValueCache['layers'][number]

interface View {
  readonly batch: number
  readonly time: number
  readonly table: RopeTable
  readonly segments: Sym | undefined
  readonly position: Sym | undefined
}

function viewOf({ ids, segments, position, positions: places }: DecoderInputs, frequencies: readonly number[]): View {
  const [batch, time] = ids.shape as [number, number]
  const steps = read(
    tensor(
      Int32Array.from({ length: time }, (_, i) => i),
      [1, time],
    ),
  )
  const positions = places ?? (position ? cast(add(reshape(position, [-1, 1]), steps), 'i32') : steps)
  return { batch, time, table: ropeTable(positions, frequencies), segments, position }
}

function headShape(config: LlamaConfig): { heads: number; kvHeads: number; dim: number } {
  const heads = config.num_attention_heads
  return {
    heads,
    kvHeads: config.num_key_value_heads ?? heads,
    dim: config.head_dim ?? config.hidden_size / heads,
  }
}

async function createCache(config: LlamaConfig, batch: number, capacity: number): Promise<KeyValueCache> {
  const { kvHeads, dim } = headShape(config)
  const layers: LayerCache[] = []
  while (layers.length < config.num_hidden_layers) {
    const [keys, values] = [zeros([batch, capacity, kvHeads, dim]), zeros([batch, capacity, kvHeads, dim])]
    layers.push({ keys, values })
    await pause()
  }
  return { layers, capacity }
}

const misfit = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
