/** OPT (Zhang et al. 2022, arXiv 2205.01068): learned positions from row 2 on, ReLU; OPT-350m normalises after sums. */
import { z } from 'zod'
import { activationNames } from '../nn/activation.js'
import type { CausalLm } from './causal_lm.js'
import { layerCount, parseModelConfig, size } from './config_fields.js'
import { decoder } from './decoder.js'
import type { WeightSource } from './weights.js'

const schema = z.looseObject({
  model_type: z.literal('opt'),
  vocab_size: size,
  hidden_size: size,
  num_hidden_layers: layerCount,
  ffn_dim: size,
  num_attention_heads: size,
  max_position_embeddings: size.default(2048),
  do_layer_norm_before: z.boolean().default(true),
  _remove_final_layer_norm: z.boolean().default(false),
  word_embed_proj_dim: size.nullish(),
  activation_function: z.enum(activationNames).default('relu'),
  enable_bias: z.boolean().default(true),
  layer_norm_elementwise_affine: z.literal(true).default(true),
  tie_word_embeddings: z.boolean().default(true),
})

/** @throws ERR_HEDDLE_FORMAT */
export function opt(configuration: unknown, source: WeightSource, place = 'config.json'): CausalLm {
  const config = parseModelConfig(schema, configuration, place)
  const { hidden_size: dim, num_attention_heads: heads, enable_bias: bias, do_layer_norm_before: isPre } = config
  const width = config.word_embed_proj_dim ?? dim
  const isProjected = width !== dim
  const hasFinalNorm = isPre && !config._remove_final_layer_norm
  return decoder(
    {
      architecture: config.model_type,
      config,
      vocabulary: config.vocab_size,
      dim,
      layers: config.num_hidden_layers,
      heads,
      kvHeads: heads,
      headDim: dim / heads,
      maxPositions: config.max_position_embeddings,
      embedding: {
        path: 'model.decoder.embed_tokens',
        projection: isProjected ? { path: 'model.decoder.project_in', width } : undefined,
        positions: { path: 'model.decoder.embed_positions', rows: config.max_position_embeddings + 2, offset: 2 },
      },
      norm: { kind: 'layer', eps: 1e-5, bias: true },
      layerList: 'model.decoder.layers',
      attention: {
        projections: { q: 'self_attn.q_proj', k: 'self_attn.k_proj', v: 'self_attn.v_proj' },
        output: 'self_attn.out_proj',
        bias,
        outputBias: bias,
        scale: (dim / heads) ** -0.5,
      },
      feedForward: {
        projections: { up: 'fc1', down: 'fc2' },
        inner: config.ffn_dim,
        activation: config.activation_function,
        bias,
      },
      block: {
        kind: isPre ? 'sequential' : 'post',
        attentionNorm: 'self_attn_layer_norm',
        feedForwardNorm: 'final_layer_norm',
      },
      finalNorm: hasFinalNorm ? 'model.decoder.final_layer_norm' : undefined,
      output: {
        path: 'lm_head',
        tied: config.tie_word_embeddings,
        projection: isProjected ? 'model.decoder.project_out' : undefined,
      },
    },
    source,
    place,
  )
}
