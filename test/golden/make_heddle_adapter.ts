/**
 * Makes `heddle-adapter/`, an adapter trained and written by Heddle on tiny-llama, and `heddle-adapter.ids.json`.
 * Then real PEFT says what it computes:
 *
 *   node dist/test/golden/make_heddle_adapter.js
 *   python test/golden/check_in_peft.py test/golden/heddle-adapter test/golden/tiny-llama \
 *     test/golden/heddle-adapter.ids.json test/golden/heddle-adapter.golden.safetensors
 */
import { causalLm } from '../../lib/objectives/causal_lm.js'
import { writeFile } from 'node:fs/promises'
import { Adapter } from '../../lib/adapters/adapter.js'
import { lora } from '../../lib/adapters/methods/lora.js'
import { adamw } from '../../lib/optim/adamw.js'
import { trainingStep } from '../../lib/optim/training_step.js'
import { golden, goldenLlama } from '../golden.js'

const rows = 2
const length = 16
const network = await goldenLlama('tiny-llama')
const method = lora({ r: 4, lora_alpha: 8, use_rslora: true, target_modules: ['q_proj', 'v_proj', 'down_proj'] })
const adapter = await Adapter.attach(network, method, { seed: 5, baseModel: 'tiny-llama' })
const step = await trainingStep({
  network,
  objective: causalLm(),
  parameters: [...adapter.parameters().values()],
  optimizer: adamw({ lr: 1e-2 }),
  hook: adapter.hook,
})
const inputIds = Int32Array.from({ length: rows * length }, (_, i) => (i * 37 + 11) % 257)
const targets = inputIds.map((_, i) => ((i + 1) % length === 0 ? -100 : inputIds[i + 1]!))
const batch = { rows, length, inputIds, targets, segments: new Int32Array(rows * length), tokens: rows * (length - 1) }
for (let index = 1; index <= 5; index += 1) await step.run({ batches: [batch], step: index, learningRate: 1e-2 })
await adapter.save(golden('heddle-adapter'))
const ids = Array.from({ length: rows }, (_, row) => [...inputIds.subarray(row * length, (row + 1) * length)])
await writeFile(golden('heddle-adapter.ids.json'), `${JSON.stringify(ids)}\n`)
