/** Tokens a second of LoRA training steps on the CUDA device, on networks with random weights. */
import { lora } from '../../lib/adapters/methods/lora.js'
import { smollm2Config, syntheticStep } from '../workers/lora_step.js'
import type { Scale } from './cases.js'

interface LoraShape {
  readonly name: string
  readonly config: typeof smollm2Config
  readonly r: number
  readonly rows: number
  readonly length: number
}

const llama1bConfig = {
  hidden_size: 2048,
  num_hidden_layers: 16,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  intermediate_size: 8192,
  vocab_size: 128_256,
  tie_word_embeddings: true,
  max_position_embeddings: 8192,
  rope_theta: 500_000,
}

const tinyConfig = {
  ...smollm2Config,
  hidden_size: 16,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  intermediate_size: 24,
  vocab_size: 40,
}

export function loraShapes(scale: Scale): readonly LoraShape[] {
  if (scale === 'tiny') return [{ name: 'tiny', config: tinyConfig, r: 2, rows: 1, length: 6 }]
  return [
    { name: 'smollm2-shape', config: smollm2Config, r: 16, rows: 8, length: 1024 },
    { name: 'llama-1b-shape', config: llama1bConfig, r: 16, rows: 4, length: 1024 },
  ]
}

/** From the median of `steps` steps, after two that do not count: they compile and place the weights. */
export async function loraTokensPerSecond(
  { name, config, r, rows, length }: LoraShape,
  precision: 'f32' | 'bf16',
  steps: number,
): Promise<number> {
  const method = lora({ r, lora_alpha: 2 * r, target_modules: 'all-linear' })
  const { timed } = await syntheticStep({ folder: name, config, method, precision, device: 'cuda', rows, length })
  await timed()
  await timed()
  const seconds: number[] = []
  for (let i = 0; i < steps; i += 1) seconds.push((await timed()).seconds)
  return (rows * length) / seconds.toSorted((a, b) => a - b)[Math.floor(steps / 2)]!
}
