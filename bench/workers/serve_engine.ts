/** Heddle's side of `serve`: so many streams at once per line on standard input. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { createEngine, loadModel, lora, type Precision } from '../../lib/index.js'
import { promptOf, throughput } from './serve_streams.js'

const [path, precision] = process.argv.slice(2) as [string, Precision]
const adapterCount = 100
const ranks = [4, 8, 16]

const model = await loadModel(path, { precision })
const engine = await createEngine(model, { maxBatch: 64, memory: { adapters: 2 ** 30 } })

async function* stream(index: number, maxTokens: number, adapter?: string): AsyncGenerator<unknown> {
  yield* engine.generate(promptOf(index), { maxTokens, minTokens: maxTokens, adapter })
}

/** Adapters of one folder are still as many in memory. */
async function loadAdapters(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'heddle-bench-serve-'))
  try {
    for (const r of ranks) {
      const method = lora({ r, target_modules: 'all-linear', init_lora_weights: false, lora_alpha: 1 })
      const adapter = await model.attach(method)
      await adapter.save(join(folder, `${r}`))
      adapter.dispose()
    }
    for (let i = 0; i < adapterCount; i += 1)
      await engine.addAdapter(`${i}`, join(folder, `${ranks[i % ranks.length]}`))
    const start = performance.now()
    for (let i = 0; i < adapterCount; i += 1) for await (const _ of stream(i, 1, `${i}`));
    const each = (performance.now() - start) / adapterCount
    console.error(`${adapterCount} adapters loaded and used once: ${each.toFixed(0)} ms each`)
  } finally {
    await rm(folder, { recursive: true })
  }
}

console.log(JSON.stringify({ ready: true }))
for await (const line of createInterface({ input: process.stdin })) {
  const [streams, tokens, kind] = line.split(' ')
  if (kind === 'adapters' && engine.adapterNames.length === 0) await loadAdapters()
  const result =
    line === 'report'
      ? { peak_bytes: process.resourceUsage().maxRSS * 1024 }
      : await throughput(Number(streams), Number(tokens), (index, count) =>
          stream(index, count, kind === 'adapters' ? `${(37 * index) % adapterCount}` : undefined),
        )
  console.log(JSON.stringify(result))
}
await engine.close()
await model.dispose()
