/** GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745): parallel residual, partial rotary, q, k, v by head. */
import { z } from 'zod'
import { activationNames } from '../nn/activation.js'
import type { CausalLm } from './causal_lm.js'
import { layerCount, parseModelConfig, size } from './config_fields.js'
import { decoder } from './decoder.js'
import { ropeScalingSchema, rotaryOf } from './rope_scaling.js'
import type { WeightSource } from './weights.js'

const schema = z.looseObject({
  model_type: z.literal('gpt_neox'),
  vocab_size: size,
  hidden_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  intermediate_size: size,
  hidden_act: z.enum(activationNames).default('gelu'),
  rotary_pct: z.number().positive().max(1).default(0.25),
  rotary_emb_base: z.number().positive().default(10000),
  rope_theta: z.number().positive().optional(),
  partial_rotary_factor: z.number().positive().max(1).optional(),
  rope_scaling: ropeScalingSchema.nullish(),
  rope_parameters: ropeScalingSchema.nullish(),
  max_position_embeddings: size.default(2048),
  layer_norm_eps: z.number().positive().default(1e-5),
  use_parallel_residual: z.boolean().default(true),
  attention_bias: z.boolean().default(true),
  tie_word_embeddings: z.boolean().default(false),
})

/** @throws ERR_HEDDLE_FORMAT */
export function gptNeox(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(schema, configuration, place)
  const { hidden_size: dim, num_attention_heads: heads, attention_bias: bias } = config
  const headDim = dim / heads
  const share = config.rope_parameters?.partial_rotary_factor ?? config.partial_rotary_factor ?? config.rotary_pct
  const theta = config.rope_theta ?? config.rotary_emb_base
  const rotary = rotaryOf(Math.trunc(headDim * share), { ...config, rope_theta: theta }, place)
  return decoder(
    {
      architecture: config.model_type,
      config,
      vocabulary: config.vocab_size,
      dim,
      layers: config.num_hidden_layers,
      heads,
      kvHeads: heads,
      headDim,
      maxPositions: config.max_position_embeddings,
      embedding: { path: 'gpt_neox.embed_in' },
      rotary: () => rotary,
      norm: { kind: 'layer', eps: config.layer_norm_eps, bias: true },
      layerList: 'gpt_neox.layers',
      attention: {
        projections: { fused: 'attention.query_key_value', layout: 'per head' },
        output: 'attention.dense',
        bias,
        outputBias: bias,
        scale: headDim ** -0.5,
      },
      feedForward: {
        projections: { up: 'mlp.dense_h_to_4h', down: 'mlp.dense_4h_to_h' },
        inner: config.intermediate_size,
        activation: config.hidden_act,
        bias: true,
      },
      block: {
        kind: config.use_parallel_residual ? 'parallel' : 'sequential',
        attentionNorm: 'input_layernorm',
        feedForwardNorm: 'post_attention_layernorm',
      },
      finalNorm: 'gpt_neox.final_layer_norm',
      output: { path: 'embed_out', tied: config.tie_word_embeddings },
    },
    source,
    place,
  )
}
