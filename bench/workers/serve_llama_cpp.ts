/**
 * node-llama-cpp's side of `serve`: the sequences of one context, which it puts into batches by itself. For every number
 * of streams a context of its own, with the faster of its two attentions.
 */
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'
import { promptOf, throughput } from './serve_streams.js'

/** What is used of node-llama-cpp, which is not installed where this is compiled. */
interface Sequence {
  clearHistory(): Promise<void>
  evaluate(tokens: readonly number[], options: object): AsyncGenerator<number>
}
interface Context {
  getSequence(): Sequence
  dispose(): Promise<void>
}
interface Library {
  getLlama(options: object): Promise<{
    loadModel(options: object): Promise<{ createContext(options: object): Promise<Context> }>
    dispose(): Promise<void>
  }>
}

const [entry, path, threads] = process.argv.slice(2) as [string, string, string]
const { getLlama } = (await import(pathToFileURL(entry).href)) as Library
const llama = await getLlama({ gpu: false, build: 'never', maxThreads: Number(threads), logLevel: 'error' })
const model = await llama.loadModel({ modelPath: path })

interface Opened {
  readonly context: Context
  readonly sequences: readonly Sequence[]
}

async function open(streams: number, flashAttention: boolean): Promise<Opened> {
  const options = { contextSize: 256, sequences: streams, batchSize: 512, threads: Number(threads), flashAttention }
  const context = await model.createContext(options)
  return { context, sequences: Array.from({ length: streams }, () => context.getSequence()) }
}

async function* stream(sequence: Sequence, index: number, tokens: number): AsyncGenerator<number> {
  let count = 0
  // It goes on behind an end of the text, as the other side does.
  for await (const token of sequence.evaluate([...promptOf(index)], { temperature: 0, yieldEogToken: true })) {
    yield token
    count += 1
    if (count === tokens) return
  }
  throw new Error(`stream ${index} ended after ${count} tokens`)
}

async function measured({ sequences }: Opened, tokens: number): Promise<{ speed: number; first: number }> {
  for (const sequence of sequences) await sequence.clearHistory()
  return throughput(sequences.length, tokens, (index, count) => stream(sequences[index]!, index, count))
}

const contexts = new Map<number, Opened>()

async function fastest(streams: number, tokens: number): Promise<Opened> {
  const both = [await open(streams, false), await open(streams, true)] as const
  const speeds: number[] = []
  for (const each of both) {
    await measured(each, 4)
    speeds.push((await measured(each, tokens)).speed)
  }
  const [chosen, other] = speeds[0]! > speeds[1]! ? both : [both[1], both[0]]
  await other.context.dispose()
  return chosen
}

console.log(JSON.stringify({ ready: true }))
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'report') {
    console.log(JSON.stringify({ peak_bytes: process.resourceUsage().maxRSS * 1024 }))
    continue
  }
  const [streams, tokens] = line.split(' ').map(Number) as [number, number]
  const opened = contexts.get(streams) ?? (await fastest(streams, tokens))
  contexts.set(streams, opened)
  console.log(JSON.stringify(await measured(opened, tokens)))
}
await llama.dispose()
