/**
 * A process that loads SmolLM2, attaches LoRA, trains, generates and cleans up, and reports how long the event loop was
 * held: by `monitorEventLoopDelay`, and, on Linux, without the time in which the machine gave the processor to others.
 */
import { readFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { loadModel, lora } from '../../lib/index.js'
import { train } from '../../lib/train/train.js'

export interface EventLoopReport {
  /** Longest hold in milliseconds, per phase. */
  readonly held: Readonly<Record<string, number>>
  /** The same without the time that the thread was ready to run and others ran; undefined where no one counts that. */
  readonly own: Readonly<Record<string, number>> | undefined
  readonly steps: number
  readonly text: string
}

const [modelPath, data, outputFolder] = process.argv.slice(2) as [string, string, string]
const resolution = 2

/** Milliseconds so far that the main thread was ready to run and others ran, and that the hypervisor took; on Linux. */
function lost(): { readonly waited: number; readonly stolen: number } | undefined {
  try {
    const waited = Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6
    const stolen = Number(/^cpu +(?:\d+ ){7}(\d+)/.exec(readFileSync('/proc/stat', 'latin1'))?.[1] ?? 0)
    return { waited, stolen }
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

function watch(time: number, before: ReturnType<typeof lost>): void {
  if (before === undefined) return
  setTimeout(() => {
    const [now, after] = [performance.now(), lost()]
    if (after?.stolen === before.stolen)
      own[phase] = Math.max(own[phase] ?? 0, now - time - resolution - (after.waited - before.waited))
    watch(now, after)
  }, resolution).unref()
}

begin('load')
watch(performance.now(), lost())
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
const report: EventLoopReport = { held, own: lost() && own, steps, text }
process.send?.(report)
