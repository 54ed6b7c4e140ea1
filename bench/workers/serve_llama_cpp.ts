/** node-llama-cpp's side of `serve`: sixteen sequences of one context, which it puts into batches by itself. */
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

/** What is used of node-llama-cpp, which is not installed where this is compiled. */
interface Sequence {
  clearHistory(): Promise<void>
  evaluate(tokens: readonly number[], options: { readonly temperature: number }): AsyncGenerator<number>
}
interface Context {
  getSequence(): Sequence
}
interface Library {
  getLlama(options: object): Promise<{
    loadModel(options: object): Promise<{ createContext(options: object): Promise<Context> }>
    dispose(): Promise<void>
  }>
}

const [entry, path, threads] = process.argv.slice(2) as [string, string, string]
const [streams, promptTokens, newTokens] = [16, 32, 64]
const { getLlama } = (await import(pathToFileURL(entry).href)) as Library
const llama = await getLlama({ gpu: false, build: 'never', maxThreads: Number(threads), logLevel: 'error' })
const model = await llama.loadModel({ modelPath: path })

async function open(flashAttention: boolean): Promise<Sequence[]> {
  const options = { contextSize: 256, sequences: streams, batchSize: 512, threads: Number(threads), flashAttention }
  const context = await model.createContext(options)
  return Array.from({ length: streams }, () => context.getSequence())
}

async function stream(sequence: Sequence, index: number): Promise<void> {
  await sequence.clearHistory()
  const prompt = Array.from({ length: promptTokens }, (_, i) => 100 + ((i * 37 + index * 101) % 5000))
  let count = 0
  for await (const _ of sequence.evaluate(prompt, { temperature: 0 })) {
    count += 1
    if (count === newTokens) break
  }
}

async function throughput(sequences: readonly Sequence[]): Promise<number> {
  const start = performance.now()
  await Promise.all(sequences.map(stream))
  return (1000 * streams * newTokens) / (performance.now() - start)
}

let sequences = await open(false)
await throughput(sequences)
const other = await open(true)
await throughput(other)
if ((await throughput(other)) > (await throughput(sequences))) sequences = other
console.log(JSON.stringify({ ready: true }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
  else console.log(JSON.stringify({ sixteen: await throughput(sequences) }))
}
await llama.dispose()
