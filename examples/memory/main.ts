/**
 * What a training step needs, known before it runs, and what recomputing does about it.
 *
 *   node dist/examples/memory/main.js [model]
 */
import { fileURLToPath } from 'node:url'
import { adamw, causalLm, loadModel, lora, trainingStep } from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const source = process.argv.slice(2).find((argument) => !argument.startsWith('--')) ?? file('models/heddle-tiny')
const model = await loadModel(source)
const adapter = await model.attach(lora({ r: 8, target_modules: 'all-linear' }))

const [rows, length] = [4, 256]
const ids = Int32Array.from({ length: rows * length }, (_, i) => i % 1000)
const batch = {
  rows,
  length,
  inputIds: ids,
  targets: ids,
  segments: new Int32Array(rows * length),
  tokens: rows * length,
}

const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`

for (const [name, options] of Object.entries({
  f32: {},
  bf16: { precision: 'bf16' as const },
  'bf16, every layer recomputed': { precision: 'bf16' as const, recompute: { scopes: 'model.layers.*' } },
})) {
  const step = await trainingStep({
    network: model.network,
    objective: causalLm(),
    parameters: [...adapter.parameters().values()],
    optimizer: adamw(),
    hook: adapter.hook,
    ...options,
  })
  const { peakBytes, flops, recomputedFlops } = await step.plan(batch)
  const more = ((100 * recomputedFlops) / (flops - recomputedFlops)).toFixed(0)
  console.log(`${name.padEnd(30)} ${mebibytes(peakBytes).padStart(8)}   + ${more} % operations`)
  step.dispose()
}
await model.dispose()
