/**
 * GPT-2 (Radford et al. 2019): learned positions, layer norm, q, k and v in one projection `c_attn`. Its linear
 * modules are Conv1D, which store weights `[in, out]`; adapters see them as PEFT does with `fan_in_fan_out`.
 */
import { z } from 'zod'
import { activationNames } from '../nn/activation.js'
import type { CausalLm } from './causal_lm.js'
import { layerCount, parseModelConfig, size } from './config_fields.js'
import { decoder } from './decoder.js'
import type { WeightSource } from './weights.js'

const schema = z.looseObject({
  model_type: z.literal('gpt2'),
  vocab_size: size,
  n_positions: size.default(1024),
  n_embd: size,
  n_layer: layerCount,
  n_head: size,
  n_inner: size.nullish(),
  activation_function: z.enum(activationNames).default('gelu_new'),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  scale_attn_weights: z.boolean().default(true),
  scale_attn_by_inverse_layer_idx: z.literal(false).default(false),
  add_cross_attention: z.literal(false).default(false),
  tie_word_embeddings: z.boolean().default(true),
})

/** @throws ERR_HEDDLE_FORMAT */
export function gpt2(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(schema, configuration, place)
  const { n_embd: dim, n_head: heads } = config
  return decoder(
    {
      architecture: config.model_type,
      config,
      vocabulary: config.vocab_size,
      dim,
      layers: config.n_layer,
      heads,
      kvHeads: heads,
      headDim: dim / heads,
      maxPositions: config.n_positions,
      embedding: {
        path: 'transformer.wte',
        positions: { path: 'transformer.wpe', rows: config.n_positions, offset: 0 },
      },
      norm: { kind: 'layer', eps: config.layer_norm_epsilon, bias: true },
      layerList: 'transformer.h',
      attention: {
        projections: { fused: 'attn.c_attn', layout: 'split' },
        output: 'attn.c_proj',
        bias: true,
        outputBias: true,
        scale: config.scale_attn_weights ? (dim / heads) ** -0.5 : 1,
      },
      feedForward: {
        projections: { up: 'mlp.c_fc', down: 'mlp.c_proj' },
        inner: config.n_inner ?? 4 * dim,
        activation: config.activation_function,
        bias: true,
      },
      block: { kind: 'sequential', attentionNorm: 'ln_1', feedForwardNorm: 'ln_2', transposed: true },
      finalNorm: 'transformer.ln_f',
      output: { path: 'lm_head', tied: config.tie_word_embeddings },
    },
    source,
    place,
  )
}
