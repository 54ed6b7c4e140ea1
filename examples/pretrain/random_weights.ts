/** Random initial weights of a Llama, as transformers draws them. */
import { join } from 'node:path'
import { mul, program, randomNormal, type Tensor, tensor } from '../../lib/index.js'
import { addon } from '../../lib/native.js'

export interface LlamaSizes {
  readonly vocab_size: number
  readonly hidden_size: number
  readonly intermediate_size: number
  readonly num_hidden_layers: number
  readonly num_attention_heads: number
  readonly num_key_value_heads: number
}

/** Writes model.safetensors: matrices normal with deviation 0.02, norms 1. The output embedding is tied. */
export async function writeRandomWeights(folder: string, sizes: LlamaSizes, seed: number): Promise<void> {
  const shapes = Object.entries(shapesOf(sizes))
  const draw = program((key) =>
    shapes.filter(([, shape]) => shape.length === 2).map(([, shape], i) => mul(randomNormal(key!, i, shape), 0.02)),
  )
  const matrices = [...(await draw(tensor(Uint32Array.of(seed, 0))))]
  const entries = shapes.map(([name, shape]) => ({ name, tensor: weightOf(shape, matrices).native }))
  await addon.writeSafetensors(join(folder, 'model.safetensors'), entries, { format: 'pt' })
}

function weightOf(shape: readonly number[], matrices: Tensor[]): Tensor {
  return shape.length === 2 ? matrices.shift()! : tensor(new Float32Array(shape[0]!).fill(1), shape)
}

function shapesOf(sizes: LlamaSizes): Record<string, readonly number[]> {
  const { vocab_size: v, hidden_size: d, intermediate_size: f, num_hidden_layers: layers } = sizes
  const kv = (d / sizes.num_attention_heads) * sizes.num_key_value_heads
  const layer = (i: number): Record<string, readonly number[]> => {
    const path = `model.layers.${i}`
    return {
      [`${path}.input_layernorm.weight`]: [d],
      [`${path}.self_attn.q_proj.weight`]: [d, d],
      [`${path}.self_attn.k_proj.weight`]: [kv, d],
      [`${path}.self_attn.v_proj.weight`]: [kv, d],
      [`${path}.self_attn.o_proj.weight`]: [d, d],
      [`${path}.post_attention_layernorm.weight`]: [d],
      [`${path}.mlp.gate_proj.weight`]: [f, d],
      [`${path}.mlp.up_proj.weight`]: [f, d],
      [`${path}.mlp.down_proj.weight`]: [d, f],
    }
  }
  return Object.assign({ 'model.embed_tokens.weight': [v, d] }, ...Array.from({ length: layers }, (_, i) => layer(i)), {
    'model.norm.weight': [d],
  }) as Record<string, readonly number[]>
}
