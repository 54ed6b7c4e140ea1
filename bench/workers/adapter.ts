/** One run of bench/adapters: a method on spam and ham with MiniLM, or on texts with SmolLM2; a line of JSON at the end. */
import {
  adamw,
  causalLm,
  type EvaluationResult,
  loadModel,
  loadSequenceClassifier,
  type Network,
  type Objective,
  parametrizations,
  sequenceClassification,
  type Trainable,
  train,
} from '../../lib/index.js'
import { evaluate } from '../../lib/train/evaluate.js'
import type { Setting } from '../adapters/settings.js'

/** What the worker is told, as JSON in its first argument. */
export interface AdapterRun {
  readonly task: 'mails' | 'text'
  readonly model: string
  readonly setting: Omit<Setting, 'learningRates'>
  readonly learningRate: number
  readonly seed: number
  /** 0 for the model as it is. */
  readonly steps: number
  readonly training: string
  readonly validation: string
  readonly test: string
}

/** What it answers. */
export interface AdapterResult {
  readonly parameters: number
  /** Accuracy (mails) or loss (text). */
  readonly validation: number
  readonly test: number
  /** Median of the steps behind the third. */
  readonly stepSeconds: number
  readonly peakBytes: number
}

const run = JSON.parse(process.argv[2]!) as AdapterRun

function optionsOf({ setting, learningRate, seed, steps, training }: AdapterRun) {
  const type = parametrizations.find(({ name }) => name === setting.method)
  return {
    data: training,
    ...(setting.method === undefined ? { full: true } : { method: type!.create(setting.config) }),
    optimizer: adamw({ lr: learningRate, weightDecay: 0 }),
    ...(setting.loraplusLrRatio === undefined ? {} : { loraplusLrRatio: setting.loraplusLrRatio }),
    schedule: 'linear' as const,
    warmupRatio: 0.1,
    seed,
    maxSteps: steps,
  }
}

async function onMails(): Promise<AdapterResult> {
  const model = await loadSequenceClassifier(run.model, { labels: ['ham', 'spam'], seed: run.seed })
  const sizes = { batchSize: 16, maxLength: 64 }
  return await measured(model, sequenceClassification(), sizes, ({ accuracy }) => accuracy)
}

const onText = async (): Promise<AdapterResult> =>
  measured(await loadModel(run.model), causalLm(), { batchSize: 4, maxLength: 128 }, ({ loss }) => loss)

/** Trains as the run says, and scores what was held out. */
async function measured<N extends Network, B, E extends EvaluationResult>(
  model: Trainable<N>,
  objective: Objective<N, B, E>,
  { batchSize, maxLength }: { readonly batchSize: number; readonly maxLength: number },
  metricOf: (evaluation: E) => number,
): Promise<AdapterResult> {
  const seconds: number[] = []
  if (run.steps > 0)
    for await (const step of train(model, { ...optionsOf(run), objective, batchSize, maxLength }))
      seconds.push(step.seconds)
  const [adapter] = model.adapters
  const { tokenizer, network } = model
  const score = async (path: string): Promise<number> => {
    const data = await objective.open(path, { tokenizer, network, maxLength, evaluationFraction: 0, seed: 0 })
    return metricOf(await evaluate(model, data, { objective, adapter, batchSize }))
  }
  return await resultOf(seconds, adapter?.parameterCount ?? weightsOf(network), score)
}

const weightsOf = (network: { weights(): readonly { readonly tensor: { readonly size: number } }[] }): number =>
  network.weights().reduce((total, { tensor }) => total + tensor.size, 0)

async function resultOf(
  seconds: readonly number[],
  parameters: number,
  score: (path: string) => Promise<number>,
): Promise<AdapterResult> {
  // Evaluations need less memory than steps.
  const peakBytes = process.resourceUsage().maxRSS * 1024
  const later = seconds.slice(3).toSorted((a, b) => a - b)
  return {
    parameters,
    peakBytes,
    stepSeconds: later[Math.floor(later.length / 2)] ?? Number.NaN,
    validation: await score(run.validation),
    test: await score(run.test),
  }
}

console.log(JSON.stringify(await (run.task === 'mails' ? onMails() : onText())))
process.exit(0)
