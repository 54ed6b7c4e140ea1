/** The main module of a process that trains one job, and ends as soon as its server is gone. */
import { mkdir } from 'node:fs/promises'
import { getPriority, setPriority } from 'node:os'
import { join } from 'node:path'
import type { Adapter } from '../../adapters/adapter.js'
import { disposeFactors, factorsOf } from '../../adapters/as_lora.js'
import { methodOf } from '../../adapters/registry.js'
import { HeddleError } from '../../errors.js'
import { loadModel, type Model } from '../../model.js'
import type { EvaluationResult, Objective, TrainingData } from '../../objectives/objective.js'
import { objectiveType } from '../../objectives/registry.js'
import { adamw } from '../../optim/adamw.js'
import { History } from '../../train/history.js'
import { type TrainStep, train } from '../../train/train.js'
import { attachShown } from '../../train/trained.js'
import { type Connection, loadDriver } from './database.js'
import type { ServerMessage, StepReport, WorkerMessage, WorkerTask } from './worker_messages.js'

/** Requests come first; a server that is nicer itself could not ask for less. */
const niceness = Math.max(10, getPriority())
/** How long a process of a server that was killed may take to end. */
const lockTimeout = 30_000

const stop = new AbortController()
process.once('disconnect', () => process.exit())
process.on('message', (message: ServerMessage) => {
  if (message.kind === 'stop') stop.abort()
  else void work(message)
})
setPriority(niceness)

async function work(task: WorkerTask): Promise<void> {
  const last = await run(task).catch(failureOf)
  await tell(last)
  process.exit()
}

async function run(task: WorkerTask): Promise<WorkerMessage> {
  await mkdir(task.folder, { recursive: true })
  // What training keeps of the data on disk ends with the job.
  process.env.TMPDIR = task.folder
  const lock = await lockFolder(task.folder)
  const { model, ...trained } = await prepared(task)
  await tellEarlierSteps(task.folder)
  const steps = train(model, {
    ...trained,
    epochs: task.epochs,
    maxSteps: task.maxSteps,
    batchSize: task.batchSize,
    accumulation: task.accumulation,
    maxLength: task.maxLength,
    optimizer: adamw({ lr: task.learningRate }),
    seed: task.seed,
    outputFolder: task.folder,
    checkpointEvery: task.checkpointEvery,
    resume: true,
    signal: stop.signal,
  })
  for await (const step of steps) await tell({ kind: 'step', report: reportOf(step) })
  await trained.adapter.save(join(task.folder, 'adapter'))
  lock.close()
  return { kind: 'done' }
}

/** Reads the data and attaches the adapter, which may be shown it. */
async function prepared(task: WorkerTask) {
  const model = await loadModel(task.source, { precision: task.precision })
  const objective = objectiveType(task.objective.name).create(task.objective.options)
  const open = (path: string) => openExamples(path, { model, objective, task })
  const data = await open(task.trainingPath)
  const evaluationData = task.validationPath === undefined ? undefined : await open(task.validationPath)
  const { seed, batchSize } = task
  const { signal } = stop
  // The same data and seed attach the same adapter, so that a job that is gone on with has the tensors of its checkpoint.
  const adapter = await attachShown(model, methodOf(task.adapter), { objective, data, batchSize, seed, signal })
  await expectServable(adapter, task.mostRank)
  return { model, objective, data, evaluationData, adapter }
}

/** The server may have been killed before it had heard of them. */
async function tellEarlierSteps(folder: string): Promise<void> {
  const { steps } = await History.open(folder, { resume: true })
  for (const step of steps) await tell({ kind: 'step', report: reportOf(step) })
}

/**
 * Reads a file, every line of it: one that nothing can be learned from is an error, not left out.
 * @throws ERR_HEDDLE_FORMAT with the line
 */
async function openExamples(
  path: string,
  { model, objective, task }: { readonly model: Model; readonly objective: Objective; readonly task: WorkerTask },
): Promise<TrainingData<unknown>> {
  const { tokenizer, network } = model
  const { maxLength, seed } = task
  const data = await objective.open(path, {
    tokenizer,
    network,
    maxLength,
    evaluationFraction: 0,
    seed,
    signal: stop.signal,
  })
  const [first] = data.skipped ?? []
  if (!first) return data
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: `${path}:${first.line}`,
    expected: 'an example on every line',
    got: first.reason,
  })
}

/**
 * Waits until no other process works in the folder: one whose server was killed may still write its last checkpoint. The
 * lock is the system's and ends with its process, however that ends.
 */
async function lockFolder(folder: string): Promise<Connection> {
  const driver = await loadDriver()
  const lock = new driver(join(folder, 'lock.sqlite'), { timeout: lockTimeout })
  lock.exec('BEGIN EXCLUSIVE')
  return lock
}

/** An adapter that no request could ask for is not worth its training. @throws ERR_HEDDLE_ARGUMENT */
async function expectServable(adapter: Adapter, mostRank: number): Promise<void> {
  for (const { plan, site, trained } of adapter.attachments.values()) {
    const got = `${adapter.method.name} at ${site.path}`
    if (!plan?.factors || Object.keys(trained).length > 0)
      throw unservable('method', 'a method with low-rank factors, which can be served beside others', got)
    if (site.kind !== 'linear' || site.isOutput)
      throw unservable('target_modules', "the layers' linear modules, which can be served beside others", got)
  }
  const factors = await factorsOf(adapter)
  const rank = Math.max(...[...factors.values()].map(({ a }) => a.shape[0]!))
  disposeFactors(factors)
  if (rank > mostRank)
    throw unservable('r', `a rank of at most ${mostRank}, for which there is memory to serve it`, `${rank}`)
}

const unservable = (field: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: `heddle.${field}`,
    expected,
    got,
    hint: 'Change the field, or train it with `heddle train`',
  })

const reportOf = (step: TrainStep<EvaluationResult>): StepReport => ({
  step: step.index,
  total_steps: step.total,
  epoch: step.epoch,
  train_loss: step.loss,
  ...(step.evaluation ? { valid_loss: step.evaluation.loss } : {}),
  learning_rate: step.learningRate,
  tokens: step.tokens,
  tokens_per_second: Math.round(step.tokensPerSecond),
})

function failureOf(error: unknown): WorkerMessage {
  if (!(error instanceof HeddleError))
    return {
      kind: 'failed',
      code: 'ERR_HEDDLE_INTERNAL',
      message: error instanceof Error ? error.stack! : String(error),
    }
  const { code, message } = error
  return code === 'ERR_HEDDLE_ABORTED' ? { kind: 'stopped' } : { kind: 'failed', code, message }
}

/** Waits until the message is on its way: a process that ends takes along what it has not sent. */
const tell = (message: WorkerMessage): Promise<void> =>
  new Promise((resolve) => {
    process.send!(message, () => resolve())
  })
