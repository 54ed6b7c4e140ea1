/** node-llama-cpp's side of `decode` and `load`, with the faster of its two attentions. */
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

/** What is used of node-llama-cpp, which is not installed where this is compiled. */
interface Sequence {
  clearHistory(): Promise<void>
  evaluateWithoutGeneratingNewTokens(tokens: readonly number[]): Promise<void>
  evaluate(tokens: readonly number[], options: { readonly temperature: number }): AsyncGenerator<number>
}
interface LlamaModel {
  createContext(options: object): Promise<{ getSequence(): Sequence; dispose(): Promise<void> }>
}
interface Library {
  getLlama(options: object): Promise<{ loadModel(options: object): Promise<LlamaModel>; dispose(): Promise<void> }>
}

const [entry, path, promptTokens, newTokens, threads] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
]
const { getLlama } = (await import(pathToFileURL(entry).href)) as Library
const llama = await getLlama({ gpu: false, build: 'never', maxThreads: Number(threads), logLevel: 'error' })
const model = await llama.loadModel({ modelPath: path })
const prompt = Array.from({ length: Number(promptTokens) }, (_, i) => 100 + ((i * 37) % 5000))

async function measure(sequence: Sequence): Promise<{ prefill: number; decode: number }> {
  await sequence.clearHistory()
  const start = performance.now()
  if (prompt.length > 1) await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, -1))
  let middle = 0
  let count = 0
  for await (const _ of sequence.evaluate(prompt.slice(-1), { temperature: 0 })) {
    if (count === 0) middle = performance.now()
    if (count === Number(newTokens)) break
    count += 1
  }
  return { prefill: (middle - start) / 1000, decode: (performance.now() - middle) / 1000 }
}

async function open(flashAttention: boolean): Promise<Sequence> {
  const options = { contextSize: 1024, batchSize: 512, threads: Number(threads), flashAttention }
  const context = await model.createContext(options)
  return context.getSequence()
}

let sequence = await open(false)
let first = await measure(sequence)
if (prompt.length > 1) {
  const other = await open(true)
  await measure(other)
  const [plain, flash] = [await measure(sequence), await measure(other)]
  if (flash.prefill + flash.decode < plain.prefill + plain.decode) [sequence, first] = [other, flash]
}
console.log(JSON.stringify({ ready: true, ...first }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
  else console.log(JSON.stringify(await measure(sequence)))
}
await llama.dispose()
