/**
 * Fine-tunes a model on a small help desk's answers and asks it a question before and after.
 *
 *   node dist/examples/fine-tune/main.js [model]     a folder, a .gguf file or a hub id; default: the one that ships
 */
import { fileURLToPath } from 'node:url'
import { adamw, loadModel, lora, train } from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const isShort = process.argv.includes('--ci')
const source = process.argv.slice(2).find((argument) => !argument.startsWith('--')) ?? file('models/heddle-tiny')

const model = await loadModel(source)
const adapter = await model.attach(lora({ r: 8, lora_alpha: 16 }))

async function ask(question: string): Promise<void> {
  process.stdout.write(`\n> ${question}\n`)
  for await (const text of model.generate(question, { adapter, maxTokens: 40 })) process.stdout.write(text)
  process.stdout.write('\n')
}

await ask('How do I reset my password?')
const run = train(model, {
  data: file('examples/data/support.jsonl'),
  epochs: isShort ? 2 : 20,
  optimizer: adamw({ lr: 2e-3 }),
})
for await (const { index, total, loss } of run) console.log(`step ${index}/${total}  loss ${loss.toFixed(3)}`)
await ask('How do I reset my password?')
await model.dispose()
