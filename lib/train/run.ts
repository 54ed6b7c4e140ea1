/** Everything that is settled before the first step: data, what is trained, the plan, and where to go on from. */
import { dirname } from 'node:path'
import { HeddleError } from '../errors.js'
import type { TrainingData } from '../objectives/objective.js'
import { type TrainingStep, trainingStep } from '../optim/training_step.js'
import {
  checkpointFolder,
  latestCheckpoint,
  readTrainerState,
  removeCheckpoints,
  restoreCheckpoint,
  type TrainerState,
} from './checkpoint.js'
import { defaultLength, type Evaluator, evaluator } from './evaluate.js'
import { History } from './history.js'
import { scheduleOf, type TrainSettings } from './options.js'
import type { Trainable } from './trainable.js'
import { optimizerOf, type Trained, trainedPart } from './trained.js'

/** A run that is ready to go. */
export interface Run {
  readonly model: Trainable
  readonly settings: TrainSettings
  readonly trained: Trained
  readonly data: TrainingData<unknown>
  readonly plan: Plan
  readonly step: TrainingStep
  readonly score: { readonly evaluator: Evaluator; readonly data: TrainingData<unknown> } | undefined
  readonly history: History | undefined
  /** Where the run stands: at its beginning, or as its checkpoint says. */
  readonly trainer: TrainerState
  /** Folders that may hold the best checkpoint of a resumed run. */
  readonly checkpointFolders: readonly string[]
}

/** How long a run is. */
export interface Plan {
  /** Batches per epoch. */
  readonly batches: number
  readonly stepsPerEpoch: number
  readonly total: number
}

/** Opens data, attaches what is missing, compiles nothing yet. @throws ERR_HEDDLE_ARGUMENT and what reading throws */
export async function prepare(model: Trainable, settings: TrainSettings): Promise<Run> {
  const { outputFolder, resume, objective, batchSize, signal } = settings
  if (settings.samplePrompts.length > 0 && !model.generate)
    throw misuse('train.samplePrompts', 'a model that generates text', 'one that does not')
  const checkpoint = await checkpointToResume(settings)
  const history =
    outputFolder === undefined ? undefined : await History.open(outputFolder, { resume: resume !== false })
  const { data, evaluation } = await openData(model, settings)
  const trained = await trainedPart(model, settings, data)
  const plan = planOf(data, settings)
  const fresh: TrainerState = {
    format: 1,
    step: 0,
    total: plan.total,
    settings: fingerprint(model, settings, trained, { data, plan }),
  }
  const saved = checkpoint === undefined ? undefined : await readTrainerState(checkpoint)
  if (saved && checkpoint) expectSameSettings(checkpoint, saved, fresh)

  const { hook, parameters, buffers, adapter } = trained
  const precision = settings.precision ?? model.precision
  for (const each of [data, evaluation])
    if (each) await objective.prepare?.(model.network, each, { batchSize, precision, signal })
  const step = await trainingStep({
    network: model.network,
    objective,
    hook,
    precision,
    parameters: Object.values(parameters),
    optimizer: optimizerOf(settings, trained, plan.total),
    penalty: adapter && (() => adapter.penalty()),
    accumulation: settings.accumulation,
    recompute: settings.recompute,
  })
  try {
    if (checkpoint)
      await restoreCheckpoint(checkpoint, { parameters: { ...parameters, ...buffers }, optimizer: step.state })
    else if (outputFolder !== undefined && resume === false) await removeCheckpoints(outputFolder)
    const score = evaluation && {
      evaluator: evaluator(model.network, { objective, hook, precision }),
      data: evaluation,
    }
    const checkpointFolders = [
      ...(outputFolder === undefined ? [] : [checkpointFolder(outputFolder)]),
      ...(checkpoint === undefined ? [] : [dirname(checkpoint)]),
    ]
    return { model, settings, trained, data, plan, step, score, history, trainer: saved ?? fresh, checkpointFolders }
  } catch (error) {
    step.dispose()
    throw error
  }
}

interface OpenData {
  readonly data: TrainingData<unknown>
  readonly evaluation: TrainingData<unknown> | undefined
}

async function openData(model: Trainable, settings: TrainSettings): Promise<OpenData> {
  const { objective, data, evaluationData, evaluationFraction, seed, signal, onDataProgress } = settings
  const maxLength = lengthFor(model, settings.maxLength)
  const open = (path: string, fraction: number): Promise<TrainingData<unknown>> =>
    objective.open(path, {
      tokenizer: model.tokenizer,
      network: model.network,
      maxLength,
      evaluationFraction: fraction,
      seed,
      signal,
      ...(onDataProgress ? { onProgress: onDataProgress } : {}),
    })
  const training = typeof data === 'string' ? await open(data, evaluationFraction) : data
  lengthFor(model, training.maxLength)
  const heldOut = typeof evaluationData === 'string' ? await open(evaluationData, 0) : evaluationData
  const evaluation = heldOut ?? training.evaluation
  const needs = settings.loadBestModelAtEnd || settings.earlyStoppingPatience !== undefined
  if (needs && !evaluation)
    throw misuse('train.evaluationData', 'held-out data, by which the best step is found', 'none')
  return { data: training, evaluation }
}

function lengthFor(model: Trainable, wanted: number | undefined): number {
  const { maxPositions } = model.network
  if (wanted === undefined) return defaultLength(model)
  if (wanted <= maxPositions) return wanted
  throw misuse('train.maxLength', `at most ${maxPositions} tokens, the model's maximum`, `${wanted}`)
}

function planOf(data: TrainingData<unknown>, settings: TrainSettings): Plan {
  const { batchSize, accumulation, epochs = 1, maxSteps } = settings
  const batches = data.batchCount(batchSize)
  const stepsPerEpoch = Math.ceil(batches / accumulation)
  return { batches, stepsPerEpoch, total: maxSteps ?? Math.max(1, Math.ceil(epochs * stepsPerEpoch)) }
}

/** Everything that decides the numbers of a run, except the data's content and the base model's weights. */
function fingerprint(
  model: Trainable,
  settings: TrainSettings,
  trained: Trained,
  { data, plan }: { readonly data: TrainingData<unknown>; readonly plan: Plan },
): TrainerState['settings'] {
  const { batchSize, accumulation, clip, schedule, schedulerOptions, seed, optimizer } = settings
  const { parameterGroups, loraplusLrRatio } = settings
  const { hidden_size, num_hidden_layers, vocab_size } = model.network.config
  return {
    model: { architecture: model.network.architecture, hidden_size, num_hidden_layers, vocab_size },
    objective: { name: settings.objective.name, ...settings.objective.config },
    method: trained.description,
    optimizer: { name: optimizer.name, learningRate: optimizer.learningRate ?? null, ...optimizer.config },
    parameterGroups: { own: parameterGroups, loraplusLrRatio },
    schedule: { name: schedule, ...schedulerOptions },
    warmupSteps: scheduleOf(settings, plan.total).warmupSteps,
    steps: plan.total,
    batchSize,
    accumulation,
    maxLength: data.maxLength,
    clip,
    seed,
    precision: settings.precision ?? model.precision,
    data: { sequences: data.size, tokens: data.tokens },
    ...stoppingOf(settings, plan),
  }
}

/** What decides when a run stops early and which step is the best, where that is asked for. */
function stoppingOf(settings: TrainSettings, plan: Plan): Readonly<Record<string, unknown>> {
  const { earlyStoppingPatience: patience, earlyStoppingThreshold: threshold, loadBestModelAtEnd } = settings
  if (patience === undefined && !loadBestModelAtEnd) return {}
  const { metricForBestModel: metric, greaterIsBetter, evaluateEvery = plan.stepsPerEpoch } = settings
  return { stopping: { patience, threshold, metric, greaterIsBetter, evaluateEvery } }
}

function expectSameSettings(checkpoint: string, saved: TrainerState, now: TrainerState): void {
  for (const name of new Set([...Object.keys(now.settings), ...Object.keys(saved.settings)])) {
    const [expected, got] = [saved.settings[name], now.settings[name]].map((each) => JSON.stringify(each))
    if (expected !== got)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: `train.resume: ${name}`,
        expected: `${expected} as in ${checkpoint}`,
        got: `${got}`,
        hint: 'Resume with the options that the run was started with, or start anew in another folder',
      })
  }
}

async function checkpointToResume({ outputFolder, resume }: TrainSettings): Promise<string | undefined> {
  if (typeof resume === 'string') return resume
  if (outputFolder === undefined) return undefined
  if (resume) return latestCheckpoint(outputFolder)
  await expectNoUnfinishedRun(outputFolder)
  return undefined
}

/** @throws ERR_HEDDLE_ARGUMENT when the folder has the checkpoint of a run that is to be gone on with */
export async function expectNoUnfinishedRun(outputFolder: string): Promise<void> {
  const latest = await latestCheckpoint(outputFolder)
  if (latest === undefined) return
  const { step, total, stopped } = await readTrainerState(latest)
  if (step < total && !stopped)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'train.outputFolder',
      expected: 'a folder without an unfinished run',
      got: `${outputFolder}, where step ${step} of ${total} is done`,
      hint: 'Go on with resume (--resume), or remove its checkpoints folder to start anew',
    })
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
