/**
 * A training run in a process of its own, for a test that ends it in the middle: `training_child.js <settings as JSON>`.
 * It prints `written` before each file of a checkpoint and `step <n>` after each step, so that a test can kill it at a
 * point of its choice.
 */
import { lora } from '../lib/index.js'
import { adamw } from '../lib/optim/adamw.js'
import { train } from '../lib/train/train.js'
import { tinyModel } from './tiny_model.js'

/** What the child is told. */
export interface ChildSettings {
  readonly data: string
  readonly outputFolder: string
  /** Kills itself while the step after this one runs. */
  readonly killAfter?: number
  /** Kills itself within the next so many milliseconds after the step before. */
  readonly killWithin?: number
}

const { data, outputFolder, killAfter, killWithin = 0 } = JSON.parse(process.argv[2]!) as ChildSettings
const model = await tinyModel()
const steps = train(model, {
  data,
  method: lora({ r: 4, lora_dropout: 0.1 }),
  evaluationFraction: 0.2,
  maxLength: 32,
  maxSteps: 10,
  batchSize: 2,
  accumulation: 2,
  schedule: 'cosine_with_restarts',
  schedulerOptions: { numCycles: 2 },
  optimizer: adamw({ lr: 2e-2 }),
  loraplusLrRatio: 4,
  evaluateEvery: 2,
  earlyStoppingPatience: 3,
  loadBestModelAtEnd: true,
  outputFolder,
  checkpointEvery: 1,
  resume: true,
})
for await (const { index } of steps)
  if (index === killAfter) setTimeout(() => process.kill(process.pid, 'SIGKILL'), killWithin)
await model.dispose()
