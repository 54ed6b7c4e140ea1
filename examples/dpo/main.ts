/**
 * Teaches a model to prefer one way of answering over another with DPO: short answers in capitals over long ones in
 * lower case, on a small made-up set. The margin between the rewards of both grows.
 *
 *   node dist/examples/dpo/main.js [model]     a folder, a .gguf file or a hub id; default: the one that ships
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { adamw, dpo, loadModel, lora, train } from '../../lib/index.js'

const isShort = process.argv.includes('--ci')
const source =
  process.argv.slice(2).find((argument) => !argument.startsWith('--')) ??
  fileURLToPath(new URL('../../../models/heddle-tiny', import.meta.url))

const things = ['sea', 'ship', 'whale', 'captain', 'harpoon', 'storm', 'sail', 'island', 'rope', 'moon', 'mast', 'wave']
const places = ['north', 'south', 'harbour', 'deck']
const pairs = things.flatMap((thing) =>
  places.map((place) => ({
    prompt: `Where is the ${thing}? Look ${place}. `,
    chosen: `${place.toUpperCase()}!`,
    rejected: `well, as far as i can tell, the ${thing} might perhaps be somewhere near the ${place}.`,
  })),
)

const folder = await mkdtemp(join(tmpdir(), 'heddle-dpo-'))
const data = join(folder, 'pairs.jsonl')
await writeFile(data, pairs.map((pair) => `${JSON.stringify(pair)}\n`).join(''))

const model = await loadModel(source)
const adapter = await model.attach(lora({ r: 8, lora_alpha: 16 }))
const steps = train(model, {
  objective: dpo({ beta: 0.1 }),
  data,
  evaluationFraction: 0.25,
  adapter,
  epochs: isShort ? 2 : 6,
  evalOnStart: true,
  optimizer: adamw({ lr: 1e-3 }),
  onEvaluation: ({ step, evaluation }) =>
    console.log(
      `after step ${step}: margin ${evaluation.rewardMargin.toFixed(3)}, ` +
        `${(100 * evaluation.rewardAccuracy).toFixed(0)} % of held-out pairs the right way round`,
    ),
})
for await (const { index, total, loss } of steps) console.log(`step ${index}/${total}  loss ${loss.toFixed(3)}`)

const prompt = 'Where is the anchor? Look north. '
for await (const text of model.generate(prompt, { adapter, chat: false, maxTokens: 16 })) process.stdout.write(text)
process.stdout.write('\n')
await model.dispose()
await rm(folder, { recursive: true })
