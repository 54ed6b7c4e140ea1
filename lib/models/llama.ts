/**
 * The Llama family: pre-norm decoders with rotary positions, grouped-query attention and SwiGLU (Touvron et al. 2023,
 * arXiv 2302.13971). Mistral adds a sliding window, Qwen2 biases on q, k and v, Qwen3 norms on each head's q and k.
 */
import { z } from 'zod'
import { activationNames } from '../nn/activation.js'
import type { CausalLm } from './causal_lm.js'
import { layerCount, layerTypes, parseModelConfig, refuseField, size } from './config_fields.js'
import { type DecoderSpec, decoder } from './decoder.js'
import { ropeScalingSchema, rotaryOf } from './rope_scaling.js'
import type { WeightSource } from './weights.js'

const shared = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().default(10000),
  rope_scaling: ropeScalingSchema.nullish(),
  rope_parameters: ropeScalingSchema.nullish(),
  tie_word_embeddings: z.boolean().default(false),
  max_position_embeddings: size.default(2048),
  hidden_act: z.enum(activationNames).default('silu'),
}

const llamaSchema = z.looseObject({
  ...shared,
  architectures: z.array(z.string()).nonempty().default(['LlamaForCausalLM']),
  model_type: z.literal('llama').default('llama'),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  rope_interleaved: z.literal(false).default(false),
})

const mistralSchema = z.looseObject({ ...shared, model_type: z.literal('mistral'), sliding_window: size.nullish() })

const qwenSliding = {
  use_sliding_window: z.boolean().default(false),
  sliding_window: size.nullish(),
  max_window_layers: z.int().min(0).default(28),
  layer_types: layerTypes,
}
const qwen2Schema = z.looseObject({ ...shared, ...qwenSliding, model_type: z.literal('qwen2') })
const qwen3Schema = z.looseObject({
  ...shared,
  ...qwenSliding,
  model_type: z.literal('qwen3'),
  head_dim: size.default(128),
  attention_bias: z.boolean().default(false),
})

/** Llama 1 to 3 and what is built like them. @throws ERR_HEDDLE_FORMAT */
export function llama(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(llamaSchema, configuration, place)
  const { attention_bias: bias, mlp_bias } = config
  const spec = specOf(config, place)
  return decoder(
    {
      ...spec,
      attention: { ...spec.attention, bias, outputBias: bias },
      feedForward: { ...spec.feedForward, bias: mlp_bias },
    },
    source,
    place,
  )
}

/** Mistral (Jiang et al. 2023, arXiv 2310.06825). @throws ERR_HEDDLE_FORMAT */
export function mistral(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(mistralSchema, configuration, place)
  const spec = specOf(config, place)
  const window = (): number | undefined => config.sliding_window ?? undefined
  return decoder({ ...spec, attention: { ...spec.attention, window } }, source, place)
}

/** Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv 2407.10671). @throws ERR_HEDDLE_FORMAT */
export function qwen2(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(qwen2Schema, configuration, place)
  const spec = specOf(config, place)
  const window = qwenWindow(config, place)
  return decoder({ ...spec, attention: { ...spec.attention, bias: true, window } }, source, place)
}

/** Qwen3 (Yang et al. 2025, arXiv 2505.09388). @throws ERR_HEDDLE_FORMAT */
export function qwen3(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(qwen3Schema, configuration, place)
  const { attention_bias: bias } = config
  const spec = specOf(config, place)
  const headNorms = { q: 'self_attn.q_norm', k: 'self_attn.k_norm' }
  const window = qwenWindow(config, place)
  return decoder(
    { ...spec, attention: { ...spec.attention, bias, outputBias: bias, headNorms, window } },
    source,
    place,
  )
}

type SharedConfig = z.infer<z.ZodObject<typeof shared>> & { readonly model_type: string }

/** What the family has in common, without biases. */
function specOf(config: SharedConfig, place: string): DecoderSpec {
  const { hidden_size: dim, num_attention_heads: heads } = config
  const headDim = config.head_dim ?? dim / heads
  const rotary = rotaryOf(headDim, config, place)
  return {
    architecture: config.model_type,
    config,
    vocabulary: config.vocab_size,
    dim,
    layers: config.num_hidden_layers,
    heads,
    kvHeads: config.num_key_value_heads ?? heads,
    headDim,
    maxPositions: config.max_position_embeddings,
    embedding: { path: 'model.embed_tokens' },
    rotary: () => rotary,
    norm: { kind: 'rms', eps: config.rms_norm_eps, bias: false },
    layerList: 'model.layers',
    attention: {
      projections: { q: 'self_attn.q_proj', k: 'self_attn.k_proj', v: 'self_attn.v_proj' },
      output: 'self_attn.o_proj',
      bias: false,
      outputBias: false,
      scale: headDim ** -0.5,
    },
    feedForward: {
      projections: { gate: 'mlp.gate_proj', up: 'mlp.up_proj', down: 'mlp.down_proj' },
      inner: config.intermediate_size,
      activation: config.hidden_act,
      bias: false,
    },
    block: {
      kind: 'sequential',
      attentionNorm: 'input_layernorm',
      feedForwardNorm: 'post_attention_layernorm',
    },
    finalNorm: 'model.norm',
    output: { path: 'lm_head', tied: config.tie_word_embeddings },
  }
}

interface QwenWindow {
  readonly use_sliding_window: boolean
  readonly sliding_window?: number | null | undefined
  readonly max_window_layers: number
  readonly num_hidden_layers: number
  readonly layer_types?: readonly string[] | null | undefined
}

/** Layers from `max_window_layers` on slide, unless `layer_types` says which. */
function qwenWindow(config: QwenWindow, place: string): (layer: number) => number | undefined {
  const { use_sliding_window, sliding_window, max_window_layers, num_hidden_layers, layer_types: types } = config
  if (types && types.length !== num_hidden_layers)
    refuseField(place, 'layer_types', `${num_hidden_layers} entries`, types.length)
  if (!use_sliding_window || !sliding_window) return () => undefined
  return (layer) =>
    (types ? types[layer] === 'sliding_attention' : layer >= max_window_layers) ? sliding_window : undefined
}
