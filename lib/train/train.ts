/** The training loop: data to batches, batches to steps, and around them evaluation, checkpoints and resuming. */
import type { Adapter } from '../adapters/adapter.js'
import { lora } from '../adapters/lora.js'
import { type Batch, Dataset } from '../data/dataset.js'
import { HeddleError } from '../errors.js'
import { copy } from '../graph/ops/index.js'
import { pause } from '../graph/pause.js'
import { program } from '../graph/program.js'
import { read } from '../graph/sym.js'
import type { Model } from '../model.js'
import type { SiteHook } from '../nn/site.js'
import { clipByGlobalNorm } from '../optim/clip.js'
import { chain } from '../optim/gradient_transform.js'
import type { Tensor } from '../tensor/tensor.js'
import {
  latestCheckpoint,
  readTrainerState,
  removeCheckpoints,
  restoreCheckpoint,
  type TrainerState,
  writeCheckpoint,
} from './checkpoint.js'
import { defaultLength, type Evaluation, type Evaluator, evaluator } from './evaluate.js'
import { parseTrainOptions, scheduleOf, type TrainOptions, type TrainSettings } from './options.js'
import { type TrainingStep, throwIfAborted, trainingStep } from './training_step.js'

/** What one optimizer step did. */
export interface TrainStep {
  /** Counts from 1. */
  readonly index: number
  /** Steps in the whole run. */
  readonly total: number
  /** Pass over the data that the step belongs to, from 1. */
  readonly epoch: number
  /** Mean −log p per target token before the step. */
  readonly loss: number
  readonly learningRate: number
  /** Global norm before clipping. */
  readonly gradientNorm: number
  /** Tokens that went through the model, padding not counted. */
  readonly tokens: number
  readonly tokensPerSecond: number
  /** Duration of the step. */
  readonly seconds: number
  /** After the step, where one was due. */
  readonly evaluation?: Evaluation
}

/**
 * Trains a model's adapter (or all its weights) and yields after every optimizer step. The event loop stays free:
 * steps run natively on threads of their own, and nothing is computed ahead of the consumer.
 *
 * With an `outputFolder`, checkpoints are written there as the run goes, and at the end the adapter as a PEFT folder.
 * A signal stops the run after the step it is in; the step's checkpoint is written before ERR_HEDDLE_ABORTED is thrown.
 * @throws ERR_HEDDLE_ARGUMENT for options that do not fit, before anything is trained
 */
export async function* train(model: Model, options: TrainOptions): AsyncGenerator<TrainStep, void, undefined> {
  const run = await prepare(model, parseTrainOptions(options))
  try {
    yield* steps(run)
    const { outputFolder } = run.settings
    if (outputFolder !== undefined) await run.trained.adapter?.save(outputFolder)
  } finally {
    run.step.dispose()
    run.score?.evaluator.dispose()
  }
}

interface Run {
  readonly settings: TrainSettings
  readonly trained: Trained
  readonly data: Dataset
  readonly plan: Plan
  readonly step: TrainingStep
  readonly score: { readonly evaluator: Evaluator; readonly data: Dataset } | undefined
  readonly trainer: TrainerState
}

/** What is trained. */
interface Trained {
  readonly parameters: Readonly<Record<string, Tensor>>
  readonly adapter: Adapter | undefined
  readonly hook: SiteHook | undefined
  /** For the comparison at resume. */
  readonly description: unknown
}

interface Plan {
  /** Batches per epoch. */
  readonly batches: number
  readonly stepsPerEpoch: number
  readonly total: number
}

async function prepare(model: Model, settings: TrainSettings): Promise<Run> {
  const { outputFolder, resume } = settings
  const checkpoint = await checkpointToResume(settings)
  const { data, evaluation } = await openData(model, settings)
  const trained = settings.full ? await wholeModel(model) : await oneAdapter(model, settings)
  const plan = planOf(data, settings)
  const fresh: TrainerState = {
    format: 1,
    step: 0,
    total: plan.total,
    settings: fingerprint(model, settings, trained, data, plan),
  }
  const saved = checkpoint === undefined ? undefined : await readTrainerState(checkpoint)
  if (saved && checkpoint) expectSameSettings(checkpoint, saved, fresh)

  const { hook, parameters } = trained
  const precision = settings.precision ?? model.precision
  const step = await trainingStep({
    network: model.network,
    hook,
    precision,
    parameters: Object.values(parameters),
    optimizer: settings.clip > 0 ? chain(clipByGlobalNorm(settings.clip), settings.optimizer) : settings.optimizer,
    accumulation: settings.accumulation,
  })
  try {
    if (checkpoint) await restoreCheckpoint(checkpoint, { parameters, optimizer: step.state })
    else if (outputFolder !== undefined && resume === false) await removeCheckpoints(outputFolder)
  } catch (error) {
    step.dispose()
    throw error
  }
  const score = evaluation && { evaluator: evaluator(model.network, { hook, precision }), data: evaluation }
  return { settings, trained, data, plan, step, score, trainer: saved ?? fresh }
}

async function* steps(run: Run): AsyncGenerator<TrainStep, void, undefined> {
  const { settings, trained, plan, step, trainer } = run
  const { outputFolder, checkpointEvery, signal, seed } = settings
  const { factor } = scheduleOf(settings, plan.total)
  const baseRate = settings.optimizer.learningRate ?? 1
  const evaluateEvery = settings.evaluateEvery ?? plan.stepsPerEpoch
  const tensors = { parameters: trained.parameters, optimizer: step.state }
  let done = trainer.step
  let safe = done
  const save = async (): Promise<void> => {
    if (outputFolder === undefined || done === safe) return
    await writeCheckpoint(outputFolder, tensors, { ...trainer, step: done })
    safe = done
  }
  try {
    for await (const { batches, epoch } of prefetched(stepBatches(run, done))) {
      throwIfAborted(signal)
      const index = done + 1
      const learningRate = baseRate * factor(index, plan.total)
      const start = performance.now()
      const { loss, gradientNorm } = await step.run({ batches, step: index, learningRate, seed, signal })
      const seconds = (performance.now() - start) / 1000
      done = index
      const isDue = index % evaluateEvery === 0 || index === plan.total
      const evaluation = run.score && isDue ? await scoreUnlessAborted(run.score, settings) : undefined
      if (index % checkpointEvery === 0 || index === plan.total) await save()
      const tokens = batches.reduce((total, batch) => total + realTokens(batch), 0)
      yield {
        index,
        total: plan.total,
        epoch,
        loss,
        learningRate,
        gradientNorm,
        tokens,
        tokensPerSecond: tokens / seconds,
        seconds,
        ...(evaluation ? { evaluation } : {}),
      }
    }
    throwIfAborted(signal)
  } catch (error) {
    if (isAborted(error)) await save()
    throw error
  }
}

/** A step whose evaluation is cut short is done all the same; the loop stops after it. */
async function scoreUnlessAborted(
  { evaluator: score, data }: NonNullable<Run['score']>,
  { signal, batchSize }: TrainSettings,
): Promise<Evaluation | undefined> {
  try {
    return await score.run(data, { signal, batchSize })
  } catch (error) {
    if (isAborted(error)) return undefined
    throw error
  }
}

const isAborted = (error: unknown): boolean => error instanceof HeddleError && error.code === 'ERR_HEDDLE_ABORTED'

/** The batches of each step, from the step after `done` on. An epoch's last step may have fewer than the others. */
async function* stepBatches(
  { data, settings: { batchSize, accumulation, seed }, plan }: Run,
  done: number,
): AsyncGenerator<{ readonly batches: readonly Batch[]; readonly epoch: number }> {
  let step = done
  while (step < plan.total) {
    const epoch = Math.floor(step / plan.stepsPerEpoch)
    let position = (step % plan.stepsPerEpoch) * accumulation
    let batches: Batch[] = []
    for await (const batch of data.batches({ batchSize, seed, epoch, start: position })) {
      batches.push(batch)
      position += 1
      if (batches.length < accumulation && position < plan.batches) continue
      yield { batches, epoch: epoch + 1 }
      batches = []
      step += 1
      if (step === plan.total) return
    }
  }
}

/** Makes the next value while the consumer works on the present one. */
async function* prefetched<T>(source: AsyncGenerator<T>): AsyncGenerator<T> {
  const request = (): Promise<IteratorResult<T>> => {
    const next = source.next()
    // Reported when it is awaited; until then a failure must not count as unhandled.
    next.catch(() => {})
    return next
  }
  try {
    let next = request()
    for (let result = await next; !result.done; result = await next) {
      next = request()
      yield result.value
    }
  } finally {
    await source.return(undefined)
  }
}

const realTokens = ({ segments }: Batch): number => segments.reduce((count, id) => count + (id >= 0 ? 1 : 0), 0)

function planOf(data: Dataset, { batchSize, accumulation, epochs = 1, maxSteps }: TrainSettings): Plan {
  const batches = data.batchCount(batchSize)
  const stepsPerEpoch = Math.ceil(batches / accumulation)
  return { batches, stepsPerEpoch, total: maxSteps ?? Math.max(1, Math.ceil(epochs * stepsPerEpoch)) }
}

async function openData(
  model: Model,
  settings: TrainSettings,
): Promise<{ readonly data: Dataset; readonly evaluation: Dataset | undefined }> {
  const { data, evaluationData, evaluationFraction, seed, signal, onDataProgress } = settings
  const maxLength = lengthFor(model, settings.maxLength)
  const open = (path: string, fraction: number): Promise<Dataset> =>
    Dataset.open(path, model.tokenizer, {
      maxLength,
      evaluationFraction: fraction,
      seed,
      signal,
      ...(onDataProgress ? { onProgress: onDataProgress } : {}),
    })
  const training = typeof data === 'string' ? await open(data, evaluationFraction) : data
  lengthFor(model, training.maxLength)
  const heldOut = typeof evaluationData === 'string' ? await open(evaluationData, 0) : evaluationData
  return { data: training, evaluation: heldOut ?? training.evaluation }
}

function lengthFor(model: Model, wanted: number | undefined): number {
  const { maxPositions } = model.network
  if (wanted === undefined) return defaultLength(model)
  if (wanted <= maxPositions) return wanted
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'train.maxLength',
    expected: `at most ${maxPositions} tokens, the model's maximum`,
    got: `${wanted}`,
  })
}

async function oneAdapter(model: Model, settings: TrainSettings): Promise<Trained> {
  const adapter = settings.adapter ?? (await attachedOrFresh(model, settings))
  if (adapter.model !== model.network)
    throw misuse('train.adapter', 'an adapter of the model that is trained', "another model's")
  if (adapter.isMerged) throw misuse('train.adapter', 'an adapter that is not merged', 'a merged one')
  const { name, config } = adapter.method
  return {
    parameters: Object.fromEntries(adapter.parameters()),
    adapter,
    hook: adapter.hook,
    description: { name, config },
  }
}

function attachedOrFresh(model: Model, { method, seed }: TrainSettings): Adapter | Promise<Adapter> {
  const [only, ...more] = model.adapters
  if (method || !only)
    return model.attach(method ?? lora({ r: 16, lora_alpha: 32, target_modules: 'all-linear' }), { seed })
  if (more.length === 0) return only
  throw misuse('train.adapter', 'the adapter to train', `none, and the model has ${model.adapters.length}`)
}

/** Gives the network writable weights of its own: those of a file are read-only. */
async function wholeModel(model: Model): Promise<Trained> {
  const sites = new Set([...model.network.sites.values(), model.network.outputSite])
  const own = new Map<Tensor, Tensor>()
  for (const site of sites) {
    const original = site.weight
    if (!own.has(original)) {
      const duplicate = program(() => copy(read(original)))
      own.set(original, await duplicate())
      duplicate.dispose()
    }
    site.weight = own.get(original)!
    await pause()
  }
  for (const original of own.keys()) original.dispose()
  const named = model.network.weights().map(({ name, tensor }) => [name, tensor] as const)
  return { parameters: Object.fromEntries(named), adapter: undefined, hook: undefined, description: 'all weights' }
}

/** Everything that decides the numbers of a run, except the data's content and the base model's weights. */
function fingerprint(
  model: Model,
  settings: TrainSettings,
  trained: Trained,
  data: Dataset,
  plan: Plan,
): TrainerState['settings'] {
  const { batchSize, accumulation, clip, schedule, seed, optimizer } = settings
  const { hidden_size, num_hidden_layers, vocab_size } = model.network.config
  return {
    model: { architecture: model.network.architecture, hidden_size, num_hidden_layers, vocab_size },
    method: trained.description,
    optimizer: { name: optimizer.name, learningRate: optimizer.learningRate ?? null },
    schedule,
    warmupSteps: scheduleOf(settings, plan.total).warmupSteps,
    steps: plan.total,
    batchSize,
    accumulation,
    maxLength: data.maxLength,
    clip,
    seed,
    precision: settings.precision ?? model.precision,
    data: { sequences: data.size, tokens: data.tokens },
  }
}

function expectSameSettings(checkpoint: string, saved: TrainerState, now: TrainerState): void {
  for (const [name, value] of Object.entries(now.settings)) {
    const [expected, got] = [saved.settings[name], value].map((each) => JSON.stringify(each))
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
  const latest = outputFolder === undefined ? undefined : await latestCheckpoint(outputFolder)
  if (resume || latest === undefined) return latest
  const { step, total } = await readTrainerState(latest)
  if (step < total)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'train.outputFolder',
      expected: 'a folder without an unfinished run',
      got: `${outputFolder}, where step ${step} of ${total} is done`,
      hint: 'Go on with resume (--resume), or remove its checkpoints folder to start anew',
    })
  return undefined
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
