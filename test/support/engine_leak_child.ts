/**
 * Serves requests, some of which are aborted or left, again and again: `engine_leak_child.js <folder> <requests>`. Prints
 * resident bytes, after collecting garbage, at every sixth of them. Run with --expose-gc.
 */
import { setTimeout } from 'node:timers/promises'
import { createEngine } from '../../lib/engine/engine.js'
import { loadModel } from '../../lib/model.js'

const [folder, requests] = process.argv.slice(2) as [string, string]
const model = await loadModel(folder)
const engine = await createEngine(model, { maxBatch: 4, memory: { cache: 2 ** 18 } })

async function request(index: number): Promise<void> {
  const controller = new AbortController()
  const prompt = Int32Array.from({ length: 20 }, (_, i) => 1 + ((i * (index % 17)) % 200))
  const options = { maxTokens: 12, temperature: 1, seed: index, topK: index % 3, signal: controller.signal }
  let count = 0
  try {
    for await (const _ of engine.generateTokens(prompt, options)) {
      count += 1
      if (index % 5 === 0 && count === 6) break
      if (index % 7 === 0 && count === 4) controller.abort()
    }
  } catch (error) {
    if (index % 7 !== 0) throw error
  }
}

const total = Number(requests)
for (let index = 0; index < total; index += 4) {
  await Promise.all([0, 1, 2, 3].map((offset) => request(index + offset)))
  if ((index + 4) % (total / 6) !== 0) continue
  globalThis.gc!()
  // Finalizers run after the collection.
  await setTimeout(20)
  globalThis.gc!()
  console.log(process.memoryUsage.rss())
}
await engine.close()
await model.dispose()
