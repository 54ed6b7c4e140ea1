/**
 * Two adapters on one base model: each is trained on texts of its own, chosen by each call, and then joined into one.
 *
 *   node dist/examples/adapters/main.js
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Adapter, adamw, combineAdapters, evaluate, loadModel, lora, train } from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const epochs = process.argv.includes('--ci') ? 4 : 20
const folder = await mkdtemp(join(tmpdir(), 'heddle-example-'))
const model = await loadModel(file('models/heddle-tiny'))

const texts = {
  sea: 'The whale rose beside the boat, and the crew held their breath.\n'.repeat(24),
  house: 'The speaker called the house to order, and the members took their seats.\n'.repeat(24),
}

async function taught(name: keyof typeof texts): Promise<Adapter> {
  const data = join(folder, `${name}.txt`)
  await writeFile(data, texts[name])
  const adapter = await model.attach(lora({ r: 4, target_modules: ['q_proj', 'v_proj'] }))
  const options = { data, adapter, epochs, maxLength: 64, optimizer: adamw({ lr: 5e-3 }) }
  for await (const { index, total, loss } of train(model, options))
    if (index === total) console.log(`${name}: ${total} steps, last loss ${loss.toFixed(2)}`)
  return adapter
}

const [sea, house] = [await taught('sea'), await taught('house')]
const both = await combineAdapters([sea, house], [0.5, 0.5], { combination_type: 'cat' })

const losses: Record<string, Record<string, number>> = {}
for (const [name, adapter] of Object.entries({ 'no adapter': undefined, sea, house, both })) {
  losses[name] = {}
  for (const text of Object.keys(texts))
    losses[name][text] = Number((await evaluate(model, join(folder, `${text}.txt`), { adapter })).loss.toFixed(3))
}
console.table(losses)

await model.merge(sea)
console.log('merged:', (await evaluate(model, join(folder, 'sea.txt'))).loss.toFixed(3))
model.unmerge(sea)
await model.dispose()
await rm(folder, { recursive: true })
