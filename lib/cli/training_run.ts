/** A training run as the command line shows it: bar, metrics, report, summary. Shared by `train` and `quickstart`. */
import { join } from 'node:path'
import type { Adapter } from '../adapters/adapter.js'
import type { Dataset } from '../data/dataset.js'
import { writeFileAtomic } from '../formats/atomic_file.js'
import type { Model } from '../model.js'
import { evaluate } from '../train/evaluate.js'
import type { TrainOptions } from '../train/options.js'
import { renderReport, type TrainingReport } from '../train/report.js'
import { train } from '../train/train.js'
import { History } from './history.js'
import { commandLineWith, type Session, type SessionOptions } from './session.js'

export interface TrainingRunOptions {
  readonly model: Model
  readonly adapter: Adapter
  readonly data: Dataset
  /** As the user named the data. */
  readonly dataName: string
  readonly outputFolder: string
  /** What else `train()` gets. */
  readonly options: Omit<TrainOptions, 'data' | 'adapter' | 'outputFolder' | 'signal' | 'evaluationFraction'>
  /** Shown in the report. */
  readonly config: TrainingReport['config']
}

export interface TrainingRecord {
  readonly history: History
  /** Of the training steps of all parts of the run. */
  readonly seconds: number
  readonly tokensPerSecond: number
}

/** How Ctrl-C ends a run that can be resumed. */
export const stopAndResume: SessionOptions = {
  onInterrupt: 'Stopping after this step.',
  afterInterrupt: () => `Stopped; the last completed step is saved. Go on with:\n\n  ${commandLineWith('--resume')}\n`,
}

/** Trains with a bar; with held-out data also says how good the model was before. */
export async function runTraining(session: Session, run: TrainingRunOptions): Promise<TrainingRecord> {
  const { model, adapter, data, outputFolder, options } = run
  const { signal } = session
  const resume = options.resume !== undefined && options.resume !== false
  const history = await History.open(outputFolder, { resume })
  const heldOut = typeof options.evaluationData === 'object' ? options.evaluationData : data.evaluation
  const steps = train(model, { ...options, data, adapter, outputFolder, signal })
  if (heldOut && history.evaluations.length === 0) {
    const before = await evaluate(model, heldOut, { adapter, signal })
    await history.addEvaluation(0, before)
    session.report('evaluation', { step: 0, ...before }, `Held-out loss before: ${lossText(before)}`)
  }
  const bar = session.progress('Training', 0)
  for await (const step of steps) {
    await history.addStep(step)
    bar.update(step.index, { total: step.total, note: `loss ${step.loss.toFixed(3)}` })
    session.report('step', { ...step })
  }
  bar.stop()
  const last = history.steps.at(-1)?.index ?? 0
  // An interrupted run may have come to its last step, but not to the evaluation after it.
  if (heldOut && history.evaluations.at(-1)?.step !== last)
    await history.addEvaluation(last, await evaluate(model, heldOut, { adapter, signal }))
  const after = history.evaluations.at(-1)
  if (after) session.report('evaluation', { ...after }, `Held-out loss after:  ${lossText(after)}`)
  const sum = (field: 'seconds' | 'tokens'): number => history.steps.reduce((total, step) => total + step[field], 0)
  const seconds = sum('seconds')
  return { history, seconds, tokensPerSecond: seconds > 0 ? sum('tokens') / seconds : 0 }
}

/** Writes `report.html` into the output folder and gives its path. */
export async function writeReport(
  run: TrainingRunOptions,
  record: TrainingRecord,
  samples: TrainingReport['samples'] = [],
): Promise<string> {
  const { model, adapter, data, dataName, outputFolder, options, config } = run
  const path = join(outputFolder, 'report.html')
  const heldOut = typeof options.evaluationData === 'object' ? options.evaluationData : data.evaluation
  const report = renderReport({
    model: {
      name: model.source,
      architecture: model.network.architecture,
      parameters: model.network.weights().reduce((total, { tensor }) => total + tensor.size, 0),
    },
    data: { file: dataName, examples: data.size, heldOut: heldOut?.size ?? 0 },
    adapter: { name: adapter.method.name, trainedParameters: adapter.parameterCount, folder: outputFolder },
    config,
    steps: record.history.steps,
    evaluations: record.history.evaluations,
    samples,
    tokensPerSecond: record.tokensPerSecond,
    peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
    seconds: record.seconds,
    finishedAt: new Date(),
  })
  await writeFileAtomic(path, report)
  return path
}

export const lossText = ({ loss, perplexity }: { readonly loss: number; readonly perplexity: number }): string =>
  `${loss.toFixed(3)} (perplexity ${perplexity.toFixed(1)})`
