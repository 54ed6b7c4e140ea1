/** A training step with LoRA and dropout, and a batch of made-up tokens for it. */
import { Adapter } from '../../lib/adapters/adapter.js'
import { lora } from '../../lib/adapters/methods/lora.js'
import type { RecomputePolicy } from '../../lib/graph/compile.js'
import type { CausalLm } from '../../lib/models/causal_lm.js'
import { causalLm } from '../../lib/objectives/causal_lm.js'
import { adamw } from '../../lib/optim/adamw.js'
import { trainingStep } from '../../lib/optim/training_step.js'

/** Every row is one text, and every token but its last has a target. */
export function syntheticBatch(rows: number, length: number, vocabulary: number) {
  const inputIds = Int32Array.from({ length: rows * length }, (_, i) => (i * 7919 + 13) % vocabulary)
  const targets = inputIds.map((_, i) => ((i + 1) % length === 0 ? -100 : inputIds[i + 1]!))
  return { rows, length, inputIds, targets, segments: new Int32Array(rows * length), tokens: rows * (length - 1) }
}

/** The step, and what it trains. */
export async function loraStep(network: CausalLm, recompute?: RecomputePolicy) {
  const adapter = await Adapter.attach(network, lora({ r: 4, lora_dropout: 0.1, target_modules: 'all-linear' }))
  const parameters = [...adapter.parameters().values()]
  const step = await trainingStep({
    network,
    objective: causalLm(),
    parameters,
    optimizer: adamw(),
    hook: adapter.hook,
    recompute,
  })
  return { step, parameters }
}
