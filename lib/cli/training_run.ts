/** A training run as the command line shows it: bar, metrics, report, summary. Shared by `train` and `quickstart`. */
import { join } from 'node:path'
import type { Adapter } from '../adapters/adapter.js'
import { writeFileAtomic } from '../formats/atomic_file.js'
import type { EvaluationResult, Objective, TrainingData } from '../objectives/objective.js'
import type { ClassificationEvaluation } from '../objectives/sequence_classification.js'
import { History } from '../train/history.js'
import type { CommonTrainOptions } from '../train/options.js'
import { renderReport, type TrainingReport } from '../train/report.js'
import { train } from '../train/train.js'
import type { Trainable } from '../train/trainable.js'
import { commandLineWith, type Session, type SessionOptions } from './session.js'

export interface TrainingRunOptions {
  readonly model: Trainable
  readonly objective: Objective
  /** Undefined when all weights are trained. */
  readonly adapter: Adapter | undefined
  readonly data: TrainingData<unknown>
  readonly evaluationData?: TrainingData<unknown> | undefined
  /** As the user named the data. */
  readonly dataName: string
  readonly outputFolder: string
  /** What else `train()` gets. */
  readonly options: Omit<CommonTrainOptions, 'adapter' | 'outputFolder' | 'signal' | 'evaluationFraction'>
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
  const { model, objective, adapter, data, evaluationData, outputFolder, options } = run
  const { signal } = session
  const steps = train(model, {
    ...options,
    objective,
    data,
    evaluationData,
    adapter,
    outputFolder,
    signal,
    evalOnStart: true,
    onEvaluation: ({ step, evaluation }) => {
      if (step === 0)
        session.report('evaluation', { step, ...evaluation }, `Held-out loss before: ${evaluationText(evaluation)}`)
    },
  })
  const bar = session.progress('Training', 0)
  for await (const step of steps) {
    bar.update(step.index, { total: step.total, note: `loss ${step.loss.toFixed(3)}` })
    session.report('step', { ...step })
  }
  bar.stop()
  const history = await History.open(outputFolder, { resume: true })
  const after = history.evaluations.at(-1)
  if (after)
    session.report(
      'evaluation',
      { step: after.step, ...after.evaluation },
      `Held-out loss after:  ${evaluationText(after.evaluation)}`,
    )
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
  const { model, adapter, data, evaluationData, dataName, outputFolder, config } = run
  const path = join(outputFolder, 'report.html')
  const heldOut = evaluationData ?? data.evaluation
  const report = renderReport({
    model: {
      name: model.source,
      architecture: model.network.architecture,
      parameters: parameterCount(model),
    },
    data: { file: dataName, examples: data.size, heldOut: heldOut?.size ?? 0 },
    adapter: {
      name: adapter?.method.name ?? 'all weights',
      trainedParameters: adapter?.parameterCount ?? parameterCount(model),
      folder: outputFolder,
    },
    config,
    steps: record.history.steps,
    evaluations: record.history.evaluations.map(({ step, evaluation }) => {
      const { perplexity, ...metrics } = metricsOf(evaluation)
      return { step, loss: evaluation.loss, ...(perplexity === undefined ? { metrics } : {}) }
    }),
    confusion: (record.history.evaluations.at(-1)?.evaluation as Partial<ClassificationEvaluation> | undefined)
      ?.confusion,
    written: record.history.samples,
    samples,
    tokensPerSecond: record.tokensPerSecond,
    peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
    seconds: record.seconds,
    finishedAt: new Date(),
  })
  await writeFileAtomic(path, report)
  return path
}

/** What says how much was scored, not how well. */
const counts = new Set(['tokens', 'examples', 'pairs'])

/** The numbers of an evaluation besides its loss, named in words. */
function metricsOf(evaluation: EvaluationResult): Record<string, number> {
  const found = Object.entries(evaluation).flatMap(([name, value]) =>
    typeof value === 'number' && name !== 'loss' && !counts.has(name) ? [[wordsOf(name), value] as const] : [],
  )
  return Object.fromEntries(found)
}

/** `rewardMargin` as reward margin, `recallAt5` as recall@5. */
const wordsOf = (name: string): string =>
  name.replace(/At(\d+)$/, '@$1').replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)

function evaluationText(evaluation: EvaluationResult): string {
  const metrics = Object.entries(metricsOf(evaluation)).map(
    ([name, value]) => `${name} ${value.toFixed(Math.abs(value) < 10 ? 3 : 1)}`,
  )
  return `${evaluation.loss.toFixed(3)}${metrics.length > 0 ? ` (${metrics.join(', ')})` : ''}`
}

/** Numbers in all weights of a model. */
export const parameterCount = (model: Trainable): number =>
  model.network.weights().reduce((total, { tensor }) => total + tensor.size, 0)
