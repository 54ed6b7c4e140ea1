/**
 * The Gemma family: Llama's blocks with scaled embeddings, norms that multiply with 1 + weight, and a GELU gate (Gemma
 * Team 2024, arXiv 2403.08295). Gemma 2 (arXiv 2408.00118) and 3 (arXiv 2503.19786) also normalise what a block adds,
 * and let most layers see a window only; 2 caps scores and logits, 3 normalises each head's query and key.
 */
import { z } from 'zod'
import { activationNames } from '../nn/activation.js'
import type { CausalLm } from './causal_lm.js'
import { layerCount, layerTypes, optionalNumber, parseModelConfig, refuseField, size } from './config_fields.js'
import { type DecoderSpec, decoder } from './decoder.js'
import { ropeScalingSchema, rotaryOf } from './rope_scaling.js'
import type { WeightSource } from './weights.js'

const activation = z.enum(activationNames)
const shared = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: size,
  head_dim: size.default(256),
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().default(10000),
  rope_scaling: ropeScalingSchema.nullish(),
  tie_word_embeddings: z.literal(true).default(true),
  max_position_embeddings: size.default(8192),
  hidden_act: activation.nullish(),
  hidden_activation: activation.nullish(),
  attention_bias: z.boolean().default(false),
  use_bidirectional_attention: z.literal(false).nullish(),
}

const gemmaSchema = z.looseObject({
  ...shared,
  model_type: z.literal('gemma'),
  rope_parameters: ropeScalingSchema.nullish(),
})

const windowed = {
  query_pre_attn_scalar: z.number().positive().default(256),
  sliding_window: size.nullish(),
  layer_types: layerTypes,
  attn_logit_softcapping: optionalNumber,
  final_logit_softcapping: optionalNumber,
}

const gemma2Schema = z.looseObject({
  ...shared,
  ...windowed,
  model_type: z.literal('gemma2'),
  rope_parameters: ropeScalingSchema.nullish(),
  attn_logit_softcapping: optionalNumber.default(50),
  final_logit_softcapping: optionalNumber.default(30),
})

const gemma3Schema = z.looseObject({
  ...shared,
  ...windowed,
  model_type: z.literal('gemma3_text'),
  rope_theta: z.number().positive().default(1e6),
  rope_local_base_freq: z.number().positive().default(10000),
  sliding_window_pattern: size.default(6),
  max_position_embeddings: size.default(131072),
  rope_parameters: z
    .strictObject({ full_attention: ropeScalingSchema, sliding_attention: ropeScalingSchema })
    .nullish(),
})

/** Gemma 1. @throws ERR_HEDDLE_FORMAT */
export function gemma(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(gemmaSchema, configuration, place)
  const rotary = rotaryOf(config.head_dim, config, place)
  return decoder({ ...specOf(config), rotary: () => rotary }, source, place)
}

/** Gemma 2. @throws ERR_HEDDLE_FORMAT */
export function gemma2(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(gemma2Schema, configuration, place)
  const rotary = rotaryOf(config.head_dim, config, place)
  return decoder({ ...windowedSpec(config, 2, place), rotary: () => rotary }, source, place)
}

/** Gemma 3, text only (`gemma3_text`). @throws ERR_HEDDLE_FORMAT */
export function gemma3(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(gemma3Schema, configuration, place)
  const { rope_parameters: parameters, rope_theta, rope_local_base_freq, head_dim } = config
  const { max_position_embeddings } = config
  const wide = parameters
    ? { rope_theta, rope_parameters: parameters.full_attention, max_position_embeddings }
    : { ...config, rope_parameters: null }
  const local = {
    rope_theta: rope_local_base_freq,
    rope_parameters: parameters?.sliding_attention,
    max_position_embeddings,
  }
  const [full, sliding] = [rotaryOf(head_dim, wide, place), rotaryOf(head_dim, local, place)]
  const isSliding = slidingLayers(config, config.sliding_window_pattern, place)
  const spec = windowedSpec(config, config.sliding_window_pattern, place)
  const headNorms = { q: 'self_attn.q_norm', k: 'self_attn.k_norm' }
  return decoder(
    {
      ...spec,
      attention: { ...spec.attention, headNorms },
      rotary: (layer) => (isSliding(layer) ? sliding : full),
    },
    source,
    place,
  )
}

type SharedConfig = z.infer<z.ZodObject<typeof shared>> & { readonly model_type: string }
type WindowedConfig = SharedConfig & z.infer<z.ZodObject<typeof windowed>>

function specOf(config: SharedConfig): DecoderSpec {
  const { hidden_size: dim, head_dim: headDim, attention_bias: bias } = config
  return {
    architecture: config.model_type,
    config,
    vocabulary: config.vocab_size,
    dim,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    kvHeads: config.num_key_value_heads,
    headDim,
    maxPositions: config.max_position_embeddings,
    embedding: { path: 'model.embed_tokens', scale: Math.sqrt(dim) },
    norm: { kind: 'rms', eps: config.rms_norm_eps, unitOffset: true, bias: false },
    layerList: 'model.layers',
    attention: {
      projections: { q: 'self_attn.q_proj', k: 'self_attn.k_proj', v: 'self_attn.v_proj' },
      output: 'self_attn.o_proj',
      bias,
      outputBias: bias,
      scale: headDim ** -0.5,
    },
    feedForward: {
      projections: { gate: 'mlp.gate_proj', up: 'mlp.up_proj', down: 'mlp.down_proj' },
      inner: config.intermediate_size,
      activation: config.hidden_activation ?? config.hidden_act ?? 'gelu_pytorch_tanh',
      bias: false,
    },
    block: {
      kind: 'sequential',
      attentionNorm: 'input_layernorm',
      feedForwardNorm: 'post_attention_layernorm',
    },
    finalNorm: 'model.norm',
    output: { path: 'lm_head', tied: true },
  }
}

/** Gemma 2 and 3: norms around both parts, windows, caps. */
function windowedSpec(config: WindowedConfig, pattern: number, place: string): DecoderSpec {
  const spec = specOf(config)
  const isSliding = slidingLayers(config, pattern, place)
  const width = config.sliding_window ?? undefined
  return {
    ...spec,
    attention: {
      ...spec.attention,
      scale: config.query_pre_attn_scalar ** -0.5,
      softcap: config.attn_logit_softcapping ?? undefined,
      window: (layer) => (isSliding(layer) ? width : undefined),
    },
    block: {
      kind: 'sequential',
      attentionNorm: 'input_layernorm',
      attentionOut: 'post_attention_layernorm',
      feedForwardNorm: 'pre_feedforward_layernorm',
      feedForwardOut: 'post_feedforward_layernorm',
    },
    output: { ...spec.output, softcap: config.final_logit_softcapping ?? undefined },
  }
}

/** As `layer_types` says, or all but every `pattern`-th layer. */
function slidingLayers(
  { layer_types: types, num_hidden_layers: layers }: WindowedConfig,
  pattern: number,
  place: string,
): (layer: number) => boolean {
  if (types && types.length !== layers) refuseField(place, 'layer_types', `${layers} entries`, types.length)
  return (layer) => (types ? types[layer] === 'sliding_attention' : (layer + 1) % pattern !== 0)
}
