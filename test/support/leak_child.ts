/**
 * Loads, attaches, trains one step and frees, again and again: `leak_child.js <kind> <folder> <cycles>`. Prints resident
 * bytes, after collecting garbage, at every tenth of the cycles. Run with --expose-gc.
 */
import { setTimeout } from 'node:timers/promises'
import { Adapter } from '../../lib/adapters/adapter.js'
import { lora } from '../../lib/adapters/methods/lora.js'
import { openCheckpoint } from '../../lib/formats/checkpoint.js'
import { loadModel } from '../../lib/model.js'
import { buildNetwork } from '../../lib/models/build.js'
import type { CausalLm } from '../../lib/models/causal_lm.js'
import { decoders } from '../../lib/models/registry.js'
import { disposeWeights } from '../../lib/models/save.js'
import { causalLm } from '../../lib/objectives/causal_lm.js'
import { adamw } from '../../lib/optim/adamw.js'
import { trainingStep } from '../../lib/optim/training_step.js'

const [kind, folder, cycles] = process.argv.slice(2) as ['network' | 'model', string, string]
const [rows, length] = [1, 32]
const ids = Int32Array.from({ length: rows * length }, (_, i) => (i * 7) % 31)
const batch = { rows, length, inputIds: ids, targets: ids, segments: new Int32Array(rows * length), tokens: ids.length }

async function step(network: CausalLm, adapter: Adapter): Promise<void> {
  const made = await trainingStep({
    network,
    objective: causalLm(),
    hook: adapter.hook,
    parameters: [...adapter.parameters().values()],
    optimizer: adamw(),
  })
  await made.run({ batches: [batch], step: 1, learningRate: 1e-3 })
  made.dispose()
}

const method = () => lora({ r: 2, target_modules: ['q_proj'] })

async function networkCycle(): Promise<void> {
  const checkpoint = await openCheckpoint(folder)
  const network = buildNetwork(decoders, checkpoint)
  checkpoint.close()
  const adapter = await Adapter.attach(network, method())
  await step(network, adapter)
  adapter.dispose()
  await disposeWeights(network)
}

async function modelCycle(): Promise<void> {
  const model = await loadModel(folder)
  await step(model.network, await model.attach(method()))
  await model.dispose()
}

const total = Number(cycles)
const cycle = kind === 'network' ? networkCycle : modelCycle
for (let index = 1; index <= total; index += 1) {
  await cycle()
  if (index % (total / 10) !== 0) continue
  globalThis.gc!()
  // Finalizers run after the collection.
  await setTimeout(20)
  globalThis.gc!()
  console.log(process.memoryUsage.rss())
}
