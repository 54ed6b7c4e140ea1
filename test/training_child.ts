/** A training run in a process of its own that is killed while step 6 runs. */
import { lora } from '../lib/index.js'
import { train } from '../lib/train/train.js'
import { tinyModel } from './tiny_model.js'

const [data, outputFolder] = process.argv.slice(2) as [string, string]
const model = await tinyModel()
const steps = train(model, {
  data,
  method: lora({ r: 4, lora_dropout: 0.1 }),
  maxLength: 32,
  maxSteps: 10,
  batchSize: 2,
  accumulation: 2,
  outputFolder,
  checkpointEvery: 2,
})
for await (const { index } of steps) if (index === 5) setImmediate(() => process.kill(process.pid, 'SIGKILL'))
