/** Heddle's side of `train-lora`: one LoRA step at the SmolLM2-135M shape per line `step` on standard input. */
import { createInterface } from 'node:readline'
import { Adapter } from '../../lib/adapters/adapter.js'
import { lora } from '../../lib/adapters/lora.js'
import { mul } from '../../lib/graph/ops/elementwise.js'
import type { Precision } from '../../lib/graph/ops/matmul.js'
import { randomNormal } from '../../lib/graph/ops/random.js'
import { program } from '../../lib/graph/program.js'
import { assign } from '../../lib/graph/sym.js'
import { llama } from '../../lib/models/llama.js'
import { adamw } from '../../lib/optim/adamw.js'
import { clipByGlobalNorm } from '../../lib/optim/clip.js'
import { chain } from '../../lib/optim/gradient_transform.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import { trainingStep } from '../../lib/train/training_step.js'

const [precision = 'f32', layers = '30', profile] = process.argv.slice(2)
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

const weights = new Map<string, Tensor>()
const network = llama(config, (name) => weights.get(name) ?? reserve(name))
await Promise.all([...weights].map(async ([name, weight]) => fill(name, weight)))
const adapter = await Adapter.attach(network, lora({ r: 16, lora_alpha: 32, target_modules: 'all-linear' }))
const step = await trainingStep({
  network,
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

/** A tensor of the shape that the name stands for; filled later. */
function reserve(name: string): Tensor {
  const { hidden_size: d, intermediate_size: f, vocab_size: v } = config
  const shapes: Readonly<Record<string, readonly number[]>> = {
    embed_tokens: [v, d],
    q_proj: [d, d],
    k_proj: [192, d],
    v_proj: [192, d],
    o_proj: [d, d],
    gate_proj: [f, d],
    up_proj: [f, d],
    down_proj: [d, f],
  }
  const shape = shapes[name.split('.').at(-2)!] ?? [d]
  const made = tensor(new Float32Array(shape.reduce((a, b) => a * b)).fill(1), shape)
  weights.set(name, made)
  return made
}

/** Normal numbers of standard deviation 0.02 for matrices, as transformers initialises them; norms stay 1. */
async function fill(name: string, weight: Tensor): Promise<void> {
  if (weight.shape.length === 1) return
  const initialise = program((seed) => {
    assign(weight, mul(randomNormal(seed!, 0, weight.shape), 0.02))
    return []
  })
  await initialise(
    tensor(Uint32Array.of(name.length, [...name].reduce((sum, c) => sum * 31 + c.charCodeAt(0), 7) >>> 0)),
  )
  initialise.dispose()
}
