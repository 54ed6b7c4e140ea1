/**
 * There and back: an adapter that PEFT wrote is loaded, trained on, and saved as a folder that PEFT loads.
 *
 *   node dist/examples/peft/main.js [model adapter-folder data]
 */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { adamw, loadModel, lora, train } from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const [source = file('models/heddle-tiny'), given, data = file('examples/data/quickstart.txt')] = process.argv
  .slice(2)
  .filter((argument) => !argument.startsWith('--'))
const output = await mkdtemp(join(tmpdir(), 'heddle-example-'))

const model = await loadModel(source)
// Without a folder of yours, one is made first: get_peft_model(model, LoraConfig(…)) and save_pretrained in PEFT.
const start = given ?? join(output, 'start')
if (given === undefined) await (await model.attach(lora({ r: 8, lora_alpha: 16, use_dora: true }))).save(start)

const adapter = await model.loadAdapter(start)
console.log(`${adapter.method.name} at ${adapter.sitePaths.length} modules, ${adapter.parameterCount} parameters`)
const maxSteps = process.argv.includes('--ci') ? 5 : 50
for await (const { index, total, loss } of train(model, { data, adapter, maxSteps, optimizer: adamw({ lr: 1e-3 }) }))
  if (index % 5 === 0) console.log(`step ${index}/${total}  loss ${loss.toFixed(3)}`)

const folder = join(output, 'trained')
await adapter.save(folder)
console.log((await readdir(folder)).join(', '))
console.log(await readFile(join(folder, 'adapter_config.json'), 'utf8'))
await model.dispose()
await rm(output, { recursive: true })
