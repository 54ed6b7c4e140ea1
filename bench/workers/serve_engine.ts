/** Heddle's side of `serve`: rounds of concurrent streams, per line on standard input. */
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { createEngine, loadModel, lora, type Precision } from '../../lib/index.js'

const [path, precision] = process.argv.slice(2) as [string, Precision]
const adapterCount = 100
const ranks = [4, 8, 16, 32]
const promptTokens = 32

const model = await loadModel(path, { precision })
const folder = await mkdtemp(join(tmpdir(), 'heddle-bench-serve-'))
for (const r of ranks) {
  const adapter = await model.attach(lora({ r, target_modules: 'all-linear', init_lora_weights: false, lora_alpha: 1 }))
  await adapter.save(join(folder, `${r}`))
  adapter.dispose()
}
// Adapters of one folder are still a hundred in memory.
const engine = await createEngine(model, { maxBatch: 64, memory: { adapters: 2 ** 31 } })
for (let i = 0; i < adapterCount; i += 1) {
  await engine.addAdapter(`even-${i}`, join(folder, '8'))
  await engine.addAdapter(`mixed-${i}`, join(folder, `${ranks[i % ranks.length]}`))
}

/** Tokens per second of so many streams at once. */
async function throughput(streams: number, tokens: number, adapterOf?: (stream: number) => string): Promise<number> {
  const start = performance.now()
  await Promise.all(Array.from({ length: streams }, (_, i) => stream(i, tokens, adapterOf?.(i))))
  return (1000 * streams * tokens) / (performance.now() - start)
}

async function stream(index: number, maxTokens: number, adapter: string | undefined): Promise<void> {
  const prompt = Int32Array.from({ length: promptTokens }, (_, i) => 100 + ((i * 37 + index * 101) % 5000))
  for await (const _ of engine.generate(prompt, { maxTokens, minTokens: maxTokens, adapter })) {
  }
}

const nth = (kind: string) => (stream: number) => `${kind}-${(37 * stream) % adapterCount}`

const measure = async (): Promise<Record<string, number>> => ({
  one: await throughput(1, 64),
  sixteen: await throughput(16, 64),
  base: await throughput(64, 32),
  adapters: await throughput(64, 32, nth('even')),
  mixed: await throughput(64, 32, nth('mixed')),
})

for (const kind of ['even', 'mixed']) for (let i = 0; i < adapterCount; i += 1) await stream(i, 1, `${kind}-${i}`)
console.log(JSON.stringify({ ready: true, ...(await measure()) }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
  else console.log(JSON.stringify(await measure()))
}
await engine.close()
await model.dispose()
