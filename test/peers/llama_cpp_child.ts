/** Runs the jobs of llama_cpp.ts in a process of its own. Usage: llama_cpp_child.js <folder of node_modules> <jobs> */
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { LlamaCppJob } from './llama_cpp.js'

interface Disposable {
  dispose(): Promise<void>
}
interface Sequence {
  clearHistory(): Promise<void>
  evaluate(tokens: readonly number[], options: { temperature: number }): AsyncIterable<number>
}
interface Context extends Disposable {
  getSequence(): Sequence
}
interface LlamaModel extends Disposable {
  createContext(options: object): Promise<Context>
}
interface Llama extends Disposable {
  loadModel(options: { modelPath: string }): Promise<LlamaModel>
}

const [folder, text] = process.argv.slice(2) as [string, string]
const { jobs, count } = JSON.parse(text) as { jobs: readonly LlamaCppJob[]; count: number }
const entry = pathToFileURL(join(folder, 'node_modules/node-llama-cpp/dist/index.js')).href
const { getLlama } = (await import(entry)) as { getLlama: (options: object) => Promise<Llama> }
const llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, logLevel: 'error', maxThreads: 2 })

const answers: number[][][] = []
for (const { model: modelPath, lora, prompts } of jobs) {
  const model = await llama.loadModel({ modelPath })
  const adapters = lora === undefined ? {} : { lora: { adapters: [{ filePath: lora }] } }
  const context = await model.createContext({ contextSize: 128, threads: 2, ...adapters })
  const sequence = context.getSequence()
  const found: number[][] = []
  for (const prompt of prompts) {
    await sequence.clearHistory()
    const tokens: number[] = []
    for await (const token of sequence.evaluate(prompt, { temperature: 0 })) if (tokens.push(token) >= count) break
    found.push(tokens)
  }
  answers.push(found)
  await model.dispose()
}
await llama.dispose()
process.stdout.write(`\n${JSON.stringify(answers)}\n`)
