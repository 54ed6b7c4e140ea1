/**
 * A process that loads SmolLM2, attaches LoRA, trains, generates and cleans up, and reports how long the event loop was
 * held: by `monitorEventLoopDelay`, and, where Linux says how long this thread waited for a processor that others used,
 * without that time.
 */
import { readFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { loadModel, lora } from '../../lib/index.js'
import { train } from '../../lib/train/train.js'

export interface EventLoopReport {
  /** Longest hold in milliseconds, per phase. */
  readonly held: Readonly<Record<string, number>>
  /** Longest hold without the time that the thread was ready and others ran; undefined where the system has no such count. */
  readonly own: Readonly<Record<string, number>> | undefined
  readonly steps: number
  readonly text: string
}

const [modelPath, data, outputFolder] = process.argv.slice(2) as [string, string, string]
const resolution = 2

/** Milliseconds that the main thread has waited for a processor. */
function waited(): number | undefined {
  try {
    return Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6
  } catch {
    return undefined
  }
}

const held: Record<string, number> = {}
const own: Record<string, number> = {}
let phase = ''
const histogram = monitorEventLoopDelay({ resolution })
histogram.enable()

function begin(next: string): void {
  if (phase !== '') held[phase] = Math.max(0, histogram.max / 1e6 - resolution)
  phase = next
  histogram.reset()
}

function watch(lastTime: number, lastWaited: number): void {
  setTimeout(() => {
    const [time, wait] = [performance.now(), waited()]
    if (wait === undefined) return
    own[phase] = Math.max(own[phase] ?? 0, time - lastTime - resolution - (wait - lastWaited))
    watch(time, wait)
  }, resolution).unref()
}
const before = waited()
if (before !== undefined) watch(performance.now(), before)

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
begin('dispose')
await model.dispose()
begin('end')
const report: EventLoopReport = { held, own: before === undefined ? undefined : own, steps, text }
process.send?.(report)
