/**
 * A process that loads SmolLM2, attaches LoRA, trains, generates, attaches EVA with data and cleans up, and reports how
 * long the event loop was held: by `monitorEventLoopDelay`, and, on Linux, without the time in which the machine gave the processor to others.
 */
import { calibrationOf, causalLm, Dataset, eva, loadModel, lora } from '../../lib/index.js'
import { train } from '../../lib/train/train.js'
import { watchEventLoop } from './event_loop.js'

export interface EventLoopReport {
  /** Longest hold in milliseconds, per phase. */
  readonly held: Readonly<Record<string, number>>
  /** The same without the time that the thread was ready to run and others ran; undefined where no one counts that. */
  readonly own: Readonly<Record<string, number>> | undefined
  readonly steps: number
  readonly text: string
}

const [modelPath, data, outputFolder] = process.argv.slice(2) as [string, string, string]
const look = watchEventLoop()
const held: Record<string, number> = {}
const own: Record<string, number> = {}
let phase = ''
function begin(next: string): void {
  const seen = look()
  if (phase !== '') {
    held[phase] = seen.held
    if (seen.own !== undefined) own[phase] = seen.own
  }
  phase = next
}

begin('load')
const model = await loadModel(modelPath)
begin('attach')
const adapter = await model.attach(lora({ r: 16, target_modules: 'all-linear' }))
begin('train')
let steps = 0
const run = train(model, {
  data,
  adapter,
  maxSteps: 3,
  batchSize: 2,
  maxLength: 64,
  evaluationFraction: 0.2,
  outputFolder,
})
for await (const { index } of run) steps = index
begin('generate')
let text = ''
for await (const piece of model.generate('What is a loom?', { adapter, maxTokens: 12 })) text += piece
begin('attach with data')
const shown = await Dataset.open(data, model.tokenizer, { maxLength: 64 })
await model.attach(eva({ r: 2, target_modules: 'all-linear', eva_config: { rho: 1, max_batches: 2 } }), {
  calibration: calibrationOf(causalLm(), shown, { batches: 2, batchSize: 2 }),
  onWarning() {},
})
begin('dispose')
await model.dispose()
begin('end')
const report: EventLoopReport = { held, own: 'load' in own ? own : undefined, steps, text }
process.send?.(report)
