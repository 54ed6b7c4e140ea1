/** Heddle's side of `train-lora` and `randlora`: one step at the SmolLM2-135M shape per line `step` on standard input. */

import { access, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { Adapter } from '../../lib/adapters/adapter.js'
import { lora } from '../../lib/adapters/methods/lora.js'
import { randlora } from '../../lib/adapters/methods/randlora.js'
import { openCheckpoint } from '../../lib/formats/checkpoint.js'
import type { Precision } from '../../lib/graph/ops/matmul.js'
import { llama } from '../../lib/models/llama.js'
import { writeRandomCheckpoint } from '../../lib/models/random_checkpoint.js'
import { checkpointWeights } from '../../lib/models/weights.js'
import { causalLm } from '../../lib/objectives/causal_lm.js'
import { adamw } from '../../lib/optim/adamw.js'
import { clipByGlobalNorm } from '../../lib/optim/clip.js'
import { chain } from '../../lib/optim/gradient_transform.js'
import { trainingStep } from '../../lib/optim/training_step.js'

const [precision = 'f32', layers = '30', methodName = 'lora', profile] = process.argv.slice(2)
const rows = 4
const length = 256
const config = {
  hidden_size: 576,
  num_hidden_layers: Number(layers),
  num_attention_heads: 9,
  num_key_value_heads: 3,
  intermediate_size: 1536,
  vocab_size: 49152,
  tie_word_embeddings: true,
  max_position_embeddings: 8192,
  rope_theta: 100000,
}

const folder = fileURLToPath(new URL('../../../.cache/bench/smollm2-shape', import.meta.url))
const complete = await access(join(folder, 'model.safetensors')).then(
  () => true,
  () => false,
)
if (!complete) {
  await mkdir(folder, { recursive: true })
  await writeRandomCheckpoint(folder, { ...config, num_hidden_layers: 30 }, { dtype: 'bf16' })
}
const { tensors } = await openCheckpoint(folder)
const network = llama(config, checkpointWeights(tensors, folder))
const method =
  methodName === 'randlora'
    ? randlora({ r: 32, randlora_alpha: 32, target_modules: 'all-linear' })
    : lora({ r: 16, lora_alpha: 32, target_modules: 'all-linear' })
const adapter = await Adapter.attach(network, method)
const step = await trainingStep({
  network,
  objective: causalLm(),
  parameters: [...adapter.parameters().values()],
  optimizer: chain(clipByGlobalNorm(1), adamw({ lr: 2e-4 })),
  hook: adapter.hook,
  precision: precision as Precision,
})
const ids = Int32Array.from({ length: rows * length }, (_, i) => (i * 7919 + 13) % config.vocab_size)
const targets = ids.map((_, i) => ((i + 1) % length === 0 ? -100 : ids[i + 1]!))
const batch = {
  rows,
  length,
  inputIds: ids,
  targets,
  segments: new Int32Array(rows * length),
  tokens: targets.filter((target) => target >= 0).length,
}

let count = 0
async function timedStep(): Promise<{ seconds: number; loss: number }> {
  const start = performance.now()
  count += 1
  const { loss } = await step.run({ batches: [batch], step: count, learningRate: 2e-4 })
  return { seconds: (performance.now() - start) / 1000, loss }
}

const first = await timedStep()
await timedStep()
console.log(JSON.stringify({ ready: true, first: first.seconds, ...(await step.plan(batch)) }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
  else console.log(JSON.stringify(await timedStep()))
}
if (profile)
  for (const entry of step.profile()) console.error(`${entry.op}\t${entry.calls}\t${entry.seconds.toFixed(3)}`)
