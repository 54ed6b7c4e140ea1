/** A training step of a network with random weights, whose checkpoint is written once into `.cache/bench`. */
import { access, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Adapter } from '../../lib/adapters/adapter.js'
import type { Parametrization } from '../../lib/adapters/parametrization.js'
import { openCheckpoint } from '../../lib/formats/checkpoint.js'
import type { Precision } from '../../lib/graph/ops/matmul.js'
import { llama } from '../../lib/models/llama.js'
import { writeRandomCheckpoint } from '../../lib/models/random_checkpoint.js'
import { checkpointWeights } from '../../lib/models/weights.js'
import type { Device } from '../../lib/native.js'
import { causalLm } from '../../lib/objectives/causal_lm.js'
import { adamw } from '../../lib/optim/adamw.js'
import { clipByGlobalNorm } from '../../lib/optim/clip.js'
import { chain } from '../../lib/optim/gradient_transform.js'
import { trainingStep } from '../../lib/optim/training_step.js'
import { syntheticBatch } from '../../test/support/lora_step.js'

export const smollm2Config = {
  hidden_size: 576,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  intermediate_size: 1536,
  vocab_size: 49152,
  tie_word_embeddings: true,
  max_position_embeddings: 8192,
  rope_theta: 100000,
}

export interface SyntheticStepOptions {
  /** The checkpoint's folder in `.cache/bench`. */
  readonly folder: string
  /** Of the checkpoint. */
  readonly config: typeof smollm2Config
  /** Of the network: the first of the checkpoint's. */
  readonly layers?: number
  readonly method: Parametrization
  readonly precision: Precision
  readonly device?: Device
  readonly rows: number
  readonly length: number
}

/** Counts steps from 1 on. */
export async function syntheticStep({
  folder: name,
  config,
  layers = config.num_hidden_layers,
  method,
  precision,
  device,
  rows,
  length,
}: SyntheticStepOptions) {
  const folder = fileURLToPath(new URL(`../../../.cache/bench/${name}`, import.meta.url))
  const complete = await access(join(folder, 'model.safetensors')).then(
    () => true,
    () => false,
  )
  if (!complete) {
    await mkdir(folder, { recursive: true })
    await writeRandomCheckpoint(folder, config, { dtype: 'bf16' })
  }
  const { tensors } = await openCheckpoint(folder)
  const network = llama({ ...config, num_hidden_layers: layers }, checkpointWeights(tensors, folder))
  if (device) network.device = device
  const adapter = await Adapter.attach(network, method)
  const step = await trainingStep({
    network,
    objective: causalLm(),
    parameters: [...adapter.parameters().values()],
    optimizer: chain(clipByGlobalNorm(1), adamw({ lr: 2e-4 })),
    hook: adapter.hook,
    precision,
  })
  const batch = syntheticBatch(rows, length, config.vocab_size)
  let count = 0
  const timed = async (): Promise<{ seconds: number; loss: number }> => {
    const start = performance.now()
    count += 1
    const { loss } = await step.run({ batches: [batch], step: count, learningRate: 2e-4 })
    return { seconds: (performance.now() - start) / 1000, loss }
  }
  return { step, batch, timed }
}
