/**
 * BERT (Devlin et al. 2019, arXiv 1810.04805) and its kin: token, position and type embeddings, then blocks that
 * normalise after each residual sum. RoBERTa, XLM-RoBERTa and DistilBERT differ in names and in where positions start.
 */
import { z } from 'zod'
import { attention } from '../graph/ops/attention.js'
import { add } from '../graph/ops/elementwise.js'
import { reshape } from '../graph/ops/reduce.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import { type ActivationName, activationNames, activations } from '../nn/activation.js'
import { norm } from '../nn/norm.js'
import { embedding, type Forward, linear, type Site } from '../nn/site.js'
import { tensor, zeros } from '../tensor/tensor.js'
import { layerCount, parseModelConfig, refuseField, size } from './config_fields.js'
import type { Encoder, EncoderInputs } from './encoder.js'
import { SiteBuilder, type WeightSource } from './weights.js'

const bertSchema = z.looseObject({
  model_type: z.enum(['bert', 'roberta', 'xlm-roberta']),
  vocab_size: size,
  hidden_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  /** Heddle's own, for a network that has lost heads; default hidden_size / num_attention_heads. */
  head_dim: size.nullish(),
  intermediate_size: size,
  hidden_act: z.enum(activationNames).default('gelu'),
  max_position_embeddings: size.default(512),
  type_vocab_size: size.default(2),
  layer_norm_eps: z.number().positive().default(1e-12),
  pad_token_id: z.int().min(0).nullish(),
  position_embedding_type: z.literal('absolute').default('absolute'),
  is_decoder: z.literal(false).default(false),
  add_cross_attention: z.literal(false).default(false),
  tie_word_embeddings: z.boolean().default(true),
})

const distilbertSchema = z.looseObject({
  model_type: z.literal('distilbert'),
  vocab_size: size,
  dim: size.default(768),
  n_layers: layerCount.default(6),
  n_heads: size.default(12),
  /** Heddle's own, for a network that has lost heads; default dim / n_heads. */
  head_dim: size.nullish(),
  hidden_dim: size.default(3072),
  activation: z.enum(activationNames).default('gelu'),
  max_position_embeddings: size.default(512),
  pad_token_id: z.int().min(0).nullish(),
  tie_word_embeddings: z.boolean().default(true),
})

/** What the architectures of this file differ in, in one vocabulary. */
interface Shape {
  readonly architecture: string
  readonly config: Readonly<Record<string, unknown>>
  readonly vocabulary: number
  readonly dim: number
  readonly layers: number
  readonly heads: number
  readonly headDim: number
  readonly inner: number
  readonly activation: ActivationName
  readonly positions: number
  /** Row of the position table that the first token takes. */
  readonly firstPosition: number
  readonly tokenTypes: number
  readonly eps: number
  readonly names: Names
}

/** Module paths, within a layer but for `layers`. */
interface Names {
  readonly layers: string
  readonly query: string
  readonly key: string
  readonly value: string
  readonly output: string
  readonly attentionNorm: string
  readonly up: string
  readonly down: string
  readonly outputNorm: string
}

const bertNames: Names = {
  layers: 'encoder.layer',
  query: 'attention.self.query',
  key: 'attention.self.key',
  value: 'attention.self.value',
  output: 'attention.output.dense',
  attentionNorm: 'attention.output.LayerNorm',
  up: 'intermediate.dense',
  down: 'output.dense',
  outputNorm: 'output.LayerNorm',
}

const distilbertNames: Names = {
  layers: 'transformer.layer',
  query: 'attention.q_lin',
  key: 'attention.k_lin',
  value: 'attention.v_lin',
  output: 'attention.out_lin',
  attentionNorm: 'sa_layer_norm',
  up: 'ffn.lin1',
  down: 'ffn.lin2',
  outputNorm: 'output_layer_norm',
}

/** BERT, RoBERTa or XLM-RoBERTa. @throws ERR_HEDDLE_FORMAT when the configuration or a tensor does not fit */
export function bert(configuration: unknown, source: WeightSource, place = 'config.json'): Encoder {
  const config = parseModelConfig(bertSchema, configuration, place)
  const isBert = config.model_type === 'bert'
  return build(
    {
      architecture: config.model_type,
      config,
      vocabulary: config.vocab_size,
      dim: config.hidden_size,
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      headDim: config.head_dim ?? config.hidden_size / config.num_attention_heads,
      inner: config.intermediate_size,
      activation: config.hidden_act,
      positions: config.max_position_embeddings,
      firstPosition: isBert ? 0 : (config.pad_token_id ?? 1) + 1,
      tokenTypes: config.type_vocab_size,
      eps: config.layer_norm_eps,
      names: bertNames,
    },
    source,
    place,
  )
}

/** DistilBERT (Sanh et al. 2019, arXiv 1910.01108). @throws ERR_HEDDLE_FORMAT */
export function distilbert(configuration: unknown, source: WeightSource, place = 'config.json'): Encoder {
  const config = parseModelConfig(distilbertSchema, configuration, place)
  return build(
    {
      architecture: config.model_type,
      config,
      vocabulary: config.vocab_size,
      dim: config.dim,
      layers: config.n_layers,
      heads: config.n_heads,
      headDim: config.head_dim ?? config.dim / config.n_heads,
      inner: config.hidden_dim,
      activation: config.activation,
      positions: config.max_position_embeddings,
      firstPosition: 0,
      tokenTypes: 0,
      eps: 1e-12,
      names: distilbertNames,
    },
    source,
    place,
  )
}

interface Layer {
  readonly path: string
  readonly query: Site
  readonly key: Site
  readonly value: Site
  readonly output: Site
  readonly attentionNorm: Site
  readonly up: Site
  readonly down: Site
  readonly outputNorm: Site
}

function build(shape: Shape, source: WeightSource, place: string): Encoder {
  const { dim, heads, headDim, inner, names } = shape
  if (!Number.isInteger(headDim)) refuseField(place, 'num_attention_heads', `a divisor of ${dim}`, heads)
  const attended = heads * headDim
  if (shape.firstPosition >= shape.positions)
    refuseField(place, 'max_position_embeddings', `more than ${shape.firstPosition}`, shape.positions)
  const builder = new SiteBuilder(source)
  const words = builder.embedding('embeddings.word_embeddings', shape.vocabulary, dim)
  const positions = builder.embedding('embeddings.position_embeddings', shape.positions, dim)
  const types = shape.tokenTypes
    ? builder.embedding('embeddings.token_type_embeddings', shape.tokenTypes, dim)
    : undefined
  const embeddingNorm = builder.norm('embeddings.LayerNorm', dim, true)
  const layers = Array.from({ length: shape.layers }, (_, index): Layer => {
    const path = `${names.layers}.${index}`
    const dense = (name: string, out: number, from: number): Site =>
      builder.linear(`${path}.${name}`, [out, from], { bias: true })
    return {
      path,
      query: dense(names.query, attended, dim),
      key: dense(names.key, attended, dim),
      value: dense(names.value, attended, dim),
      output: dense(names.output, dim, attended),
      attentionNorm: builder.norm(`${path}.${names.attentionNorm}`, dim, true),
      up: dense(names.up, inner, dim),
      down: dense(names.down, dim, inner),
      outputNorm: builder.norm(`${path}.${names.outputNorm}`, dim, true),
    }
  })
  const pooler = source.has('pooler.dense.weight')
    ? builder.linear('pooler.dense', [dim, dim], { bias: true })
    : undefined
  const style = { kind: 'layer', eps: shape.eps } as const
  const activate = activations[shape.activation]

  const embed = ({ ids, tokenTypes }: EncoderInputs, forward: Forward): Sym => {
    const [, time] = ids.shape as [number, number]
    const steps = Int32Array.from({ length: time }, (_, i) => shape.firstPosition + i)
    const sum = add(embedding(words, ids, forward), embedding(positions, read(tensor(steps, [time])), forward))
    // Type 0 for every token is one row of the table, which broadcasts.
    const type = types && embedding(types, tokenTypes ?? read(zeros([1], 'i32')), forward)
    return norm(embeddingNorm, type ? add(sum, type) : sum, style, forward)
  }

  const block = (layer: Layer, x: Sym, mask: Sym, forward: Forward): Sym => {
    const [batch, time] = mask.shape as [number, number]
    const split = (site: Site): Sym => reshape(linear(site, x, forward), [batch, time, heads, headDim])
    // Padding is a segment of its own: no token sees it.
    const mixed = attention(split(layer.query), split(layer.key), split(layer.value), { segments: mask })
    const output = linear(layer.output, reshape(mixed, [batch * time, attended]), forward)
    const middle = norm(layer.attentionNorm, add(x, output), style, forward)
    const fed = linear(layer.down, activate(linear(layer.up, middle, forward)), forward)
    return norm(layer.outputNorm, add(middle, fed), style, forward)
  }

  return {
    config: shape.config,
    architecture: shape.architecture,
    sites: builder.sites,
    embeddingTied: false,
    hiddenSize: dim,
    maxPositions: shape.positions - shape.firstPosition,
    pooler,
    weights: () => builder.weights(),
    async hidden(inputs, forward) {
      const [batch, time] = inputs.ids.shape as [number, number]
      let x = reshape(embed(inputs, forward), [batch * time, dim])
      for (const layer of layers) {
        x = x.node.trace.within(layer.path, () => block(layer, x, inputs.mask, forward))
        await pause()
      }
      return reshape(x, [batch, time, dim])
    },
  }
}
