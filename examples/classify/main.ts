/**
 * Teaches MiniLM to tell spam from ham: a LoRA adapter and a new classification head, judged on mails that it never saw.
 *
 *   node dist/examples/classify/main.js [encoder] [--ci]     a folder or hub id; default: all-MiniLM-L6-v2, fetched once
 */
import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  adamw,
  History,
  loadSequenceClassifier,
  lora,
  renderReport,
  sequenceClassification,
  train,
} from '../../lib/index.js'
import type { ClassificationEvaluation } from '../../lib/objectives/sequence_classification.js'
import { fetchModel } from '../../test/models/fetch.js'
import { mails } from './mails.js'

const isShort = process.argv.includes('--ci')
const source = process.argv.slice(2).find((argument) => !argument.startsWith('--')) ?? (await fetchModel('minilm'))

const folder = await mkdtemp(join(tmpdir(), 'heddle-classify-'))
const data = join(folder, 'mails.jsonl')
const rows = (await mails()).filter((_, index) => !isShort || index % 12 === 0)
await writeFile(data, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))

const model = await loadSequenceClassifier(source, { labels: ['ham', 'spam'] })
const adapter = await model.attach(lora({ r: 8, lora_alpha: 16 }))
const started = performance.now()
const evaluations: ClassificationEvaluation[] = []
const steps = train(model, {
  objective: sequenceClassification(),
  data,
  adapter,
  evaluationFraction: 0.1,
  epochs: 1,
  batchSize: 16,
  maxLength: isShort ? 48 : 128,
  evaluateEvery: 100,
  optimizer: adamw({ lr: 1e-3 }),
  schedule: 'linear',
  warmupRatio: 0.1,
  outputFolder: join(folder, 'adapter'),
  onEvaluation: ({ step, evaluation }) => {
    evaluations.push(evaluation)
    console.log(
      `after step ${step}: accuracy ${(100 * evaluation.accuracy).toFixed(2)} %, ` +
        `macro F1 ${evaluation.f1.toFixed(4)} on ${evaluation.examples} held-out mails`,
    )
  },
})
let tokens = 0
for await (const step of steps) {
  tokens += step.tokens
  if (step.index % 10 === 0) console.log(`step ${step.index}/${step.total}  loss ${step.loss.toFixed(4)}`)
}
const seconds = (performance.now() - started) / 1000
console.log(`${seconds.toFixed(0)} s, evaluations included`)

const history = await History.open(join(folder, 'adapter'), { resume: true })
await writeFile(
  join(folder, 'report.html'),
  renderReport({
    model: {
      name: model.source,
      architecture: model.network.architecture,
      parameters: model.network.weights().reduce((total, { tensor }) => total + tensor.size, 0),
    },
    data: { file: 'mails.jsonl', examples: rows.length, heldOut: evaluations.at(-1)!.examples },
    adapter: { name: 'LoRA', trainedParameters: adapter.parameterCount, folder: join(folder, 'adapter') },
    config: { rank: 8, 'batch size': 16, 'learning rate': 1e-3 },
    steps: history.steps,
    evaluations: history.evaluations.map(({ step, evaluation }) => {
      const { loss, accuracy, f1 } = evaluation as ClassificationEvaluation
      return { step, loss, metrics: { accuracy, 'macro F1': f1 } }
    }),
    samples: [],
    confusion: evaluations.at(-1)!.confusion,
    tokensPerSecond: tokens / seconds,
    peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
    seconds,
  }),
)
console.log(`Adapter and report: ${folder}`)

const texts = ['Lunch on Thursday? I booked the small room.', 'FREE!!! Lose 20 pounds while you sleep, click here']
for (const [i, { label, score }] of (await model.classify(texts, { adapter })).entries())
  console.log(`${label} (${(100 * score).toFixed(1)} %): ${texts[i]}`)
await model.dispose()
