/**
 * Phi-1 and Phi-2 (Gunasekar et al. 2023, arXiv 2306.11644): parallel blocks, layer norm, rotary on a part of each
 * head. Phi-3 (Abdin et al. 2024, arXiv 2404.14219) is Llama's block with q, k and v in one projection, `qkv_proj`, and
 * gate and up in another, `gate_up_proj`; each is one site, as it is one module for PEFT.
 */
import { z } from 'zod'
import { activationNames } from '../nn/activation.js'
import type { CausalLm } from './causal_lm.js'
import { layerCount, parseModelConfig, size } from './config_fields.js'
import { decoder } from './decoder.js'
import { ropeScalingSchema, rotaryOf } from './rope_scaling.js'
import type { WeightSource } from './weights.js'

const shared = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  rope_theta: z.number().positive().default(10000),
  rope_scaling: ropeScalingSchema.nullish(),
  rope_parameters: ropeScalingSchema.nullish(),
  partial_rotary_factor: z.number().positive().max(1).optional(),
  tie_word_embeddings: z.boolean().default(false),
}

const phiSchema = z.looseObject({
  ...shared,
  model_type: z.literal('phi'),
  layer_norm_eps: z.number().positive().default(1e-5),
  hidden_act: z.enum(activationNames).default('gelu_new'),
  qk_layernorm: z.boolean().default(false),
  max_position_embeddings: size.default(2048),
})

const phi3Schema = z.looseObject({
  ...shared,
  model_type: z.literal('phi3'),
  rms_norm_eps: z.number().positive().default(1e-5),
  hidden_act: z.enum(activationNames).default('silu'),
  sliding_window: size.nullish(),
  max_position_embeddings: size.default(4096),
  original_max_position_embeddings: size.optional(),
  attention_bias: z.literal(false).default(false),
})

/** Phi-1, Phi-1.5 and Phi-2. @throws ERR_HEDDLE_FORMAT */
export function phi(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(phiSchema, configuration, place)
  const { rotary, ...sizes } = sizesOf(config, 0.5, place)
  return decoder(
    {
      ...sizes,
      rotary: () => rotary,
      norm: { kind: 'layer', eps: config.layer_norm_eps, bias: true },
      attention: {
        projections: { q: 'self_attn.q_proj', k: 'self_attn.k_proj', v: 'self_attn.v_proj' },
        output: 'self_attn.dense',
        bias: true,
        outputBias: true,
        headNorms: config.qk_layernorm ? { q: 'self_attn.q_layernorm', k: 'self_attn.k_layernorm' } : undefined,
        scale: sizes.headDim ** -0.5,
      },
      feedForward: {
        projections: { up: 'mlp.fc1', down: 'mlp.fc2' },
        inner: config.intermediate_size,
        activation: config.hidden_act,
        bias: true,
      },
      block: { kind: 'parallel', attentionNorm: 'input_layernorm' },
      finalNorm: 'model.final_layernorm',
      output: { path: 'lm_head', tied: config.tie_word_embeddings, bias: true },
    },
    source,
    place,
  )
}

/** Phi-3, Phi-3.5-mini and Phi-4 of the same `model_type`. @throws ERR_HEDDLE_FORMAT */
export function phi3(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(phi3Schema, configuration, place)
  const { rotary, ...sizes } = sizesOf(withLongrope(config), 1, place)
  return decoder(
    {
      ...sizes,
      rotary: () => rotary,
      norm: { kind: 'rms', eps: config.rms_norm_eps, bias: false },
      attention: {
        projections: { fused: 'self_attn.qkv_proj', layout: 'split' },
        output: 'self_attn.o_proj',
        bias: false,
        outputBias: false,
        scale: sizes.headDim ** -0.5,
        window: () => config.sliding_window ?? undefined,
      },
      feedForward: {
        projections: { gateUp: 'mlp.gate_up_proj', down: 'mlp.down_proj' },
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
    },
    source,
    place,
  )
}

/** The first files call their longrope `su` or, as nothing else of the kind was there yet, `yarn`. */
function withLongrope(config: z.infer<typeof phi3Schema>): z.infer<typeof phi3Schema> {
  const scaling = config.rope_scaling ?? config.rope_parameters
  const type = scaling?.rope_type ?? scaling?.type
  return scaling && (type === 'su' || type === 'yarn')
    ? { ...config, rope_scaling: { ...scaling, rope_type: 'longrope' } }
    : config
}

type SharedConfig = z.infer<z.ZodObject<typeof shared>> & {
  readonly model_type: string
  readonly max_position_embeddings: number
}

function sizesOf(config: SharedConfig, rotaryShare: number, place: string) {
  const { hidden_size: dim, num_attention_heads: heads } = config
  const headDim = dim / heads
  const share = config.rope_parameters?.partial_rotary_factor ?? config.partial_rotary_factor ?? rotaryShare
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
    layerList: 'model.layers',
    rotary: rotaryOf(Math.trunc(headDim * share), config, place),
  } as const
}
