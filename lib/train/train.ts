/** The training loop: batches to steps, and around them evaluation, checkpoints, early stopping and resuming. */
import { HeddleError, throwIfAborted } from '../errors.js'
import type { Network } from '../nn/network.js'
import type { Evaluation } from '../objectives/causal_lm.js'
import type { EvaluationResult } from '../objectives/objective.js'
import { type BestSoFar, judged } from './best.js'
import { findCheckpoint, restoreCheckpoint, type TrainerState, writeCheckpoint } from './checkpoint.js'
import {
  type ObjectiveTrainOptions,
  parseTrainOptions,
  type Sample,
  scheduleOf,
  type TrainOptions,
  type TrainSettings,
} from './options.js'
import { prepare, type Run } from './run.js'
import type { Trainable } from './trainable.js'

/** What one optimizer step did. */
export interface TrainStep<E extends EvaluationResult = Evaluation> {
  /** Counts from 1. */
  readonly index: number
  /** Steps in the whole run. */
  readonly total: number
  /** Pass over the data that the step belongs to, from 1. */
  readonly epoch: number
  /** The objective's mean before the step, e.g. −log p per target token. */
  readonly loss: number
  readonly learningRate: number
  /** Global norm before clipping. */
  readonly gradientNorm: number
  /** Tokens that went through the model, padding not counted. */
  readonly tokens: number
  readonly tokensPerSecond: number
  /** Duration of the step. */
  readonly seconds: number
  /** Resident memory of the process after the step. */
  readonly residentBytes: number
  /** What the step's program needs beyond parameters and inputs, as planned before it ran. */
  readonly plannedBytes: number
  /** After the step, where one was due. */
  readonly evaluation?: E
  /** What the model wrote after the evaluation, where prompts were given. */
  readonly samples?: readonly Sample[]
}

/**
 * Trains a model's adapter (or all its weights) and yields after every optimizer step. The event loop stays free:
 * steps run natively on threads of their own, and nothing is computed ahead of the consumer.
 *
 * With an `outputFolder`, checkpoints and `metrics.jsonl` are written there as the run goes, and at the end the adapter
 * as a PEFT folder. A signal stops the run after the step it is in; the step's checkpoint is written before
 * ERR_HEDDLE_ABORTED is thrown.
 * @throws ERR_HEDDLE_ARGUMENT for options that do not fit, before anything is trained; ERR_HEDDLE_IO when the output
 *   folder cannot be written
 */
export function train<N extends Network, B, E extends EvaluationResult>(
  model: Trainable<N>,
  options: ObjectiveTrainOptions<N, B, E>,
): AsyncGenerator<TrainStep<E>, void, undefined>
export function train(model: Trainable, options: TrainOptions): AsyncGenerator<TrainStep, void, undefined>
export async function* train(
  model: Trainable,
  options: object,
): AsyncGenerator<TrainStep<EvaluationResult>, void, undefined> {
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

/** Where a run stands; what a checkpoint says beside the tensors. */
type Progress = { -readonly [K in 'step' | 'stopped' | 'evaluationDue' | 'memory']: TrainerState[K] }

async function* steps(run: Run): AsyncGenerator<TrainStep<EvaluationResult>, void, undefined> {
  const { settings, trained, plan, step, trainer, history } = run
  const { outputFolder, checkpointEvery, signal, seed, objective } = settings
  const { factor } = scheduleOf(settings, plan.total)
  const baseRate = settings.optimizer.learningRate ?? 1
  const evaluateEvery = settings.evaluateEvery ?? plan.stepsPerEpoch
  const { parameters, buffers } = trained
  const tensors = { parameters: { ...parameters, ...buffers }, optimizer: step.state }
  const { step: done, stopped, evaluationDue, memory } = trainer
  const progress: Progress = { step: done, stopped, evaluationDue, memory }
  let safe = done
  const save = async (): Promise<void> => {
    if (outputFolder === undefined || progress.step === safe) return
    await writeCheckpoint(outputFolder, tensors, { ...trainer, ...progress }, retentionOf(settings, progress))
    safe = progress.step
  }
  try {
    await catchUp(run, progress)
    if (!progress.stopped)
      for await (const { batches, epoch } of prefetched(stepBatches(run, progress.step))) {
        throwIfAborted(signal, 'train')
        const index = progress.step + 1
        const learningRate = baseRate * factor(index, plan.total)
        const start = performance.now()
        const { loss, gradientNorm } = await step.run({
          batches,
          step: index,
          learningRate,
          seed,
          signal,
        })
        const seconds = (performance.now() - start) / 1000
        progress.step = index
        progress.evaluationDue = run.score !== undefined && (index % evaluateEvery === 0 || index === plan.total)
        const event = progress.evaluationDue ? await evaluateUnlessAborted(run, progress) : undefined
        const isBest = settings.loadBestModelAtEnd && progress.memory?.best?.step === index
        const tokens = batches.reduce<number>((total, batch) => total + objective.tokens(batch), 0)
        const report = {
          index,
          total: plan.total,
          epoch,
          loss,
          learningRate,
          gradientNorm,
          tokens,
          tokensPerSecond: tokens / seconds,
          seconds,
          residentBytes: process.memoryUsage.rss(),
          plannedBytes: step.plannedBytes,
          ...event,
        }
        // Before the checkpoint: a run that is killed between the two does the step again and replaces its line.
        await history?.addStep(report)
        if (index % checkpointEvery === 0 || index === plan.total || isBest || progress.stopped) await save()
        yield report
        if (progress.stopped) break
      }
    throwIfAborted(signal, 'train')
    await loadBest(run, progress)
  } catch (error) {
    if (isAborted(error)) await save()
    throw error
  }
}

/** Evaluations that are due before the next step: the one on start, or one that an interrupted run still owes. */
async function catchUp(run: Run, progress: Progress): Promise<void> {
  const { settings, score, history } = run
  const onStart = settings.evalOnStart && progress.step === 0
  if (!score || !(onStart || progress.evaluationDue)) return
  const event = await evaluateNow(run, progress, { counts: progress.step > 0 })
  await history?.addEvaluation(progress.step, event.evaluation, event.samples)
}

interface Evaluated {
  readonly evaluation: EvaluationResult
  readonly samples?: readonly Sample[]
}

/** Scores, writes samples, and decides whether to go on. An evaluation before training never counts as the best. */
async function evaluateNow(
  run: Run,
  progress: Progress,
  { counts }: { readonly counts: boolean } = { counts: true },
): Promise<Evaluated> {
  const { settings } = run
  const { signal, batchSize, earlyStoppingPatience: patience, loadBestModelAtEnd } = settings
  const { evaluator, data } = run.score!
  const evaluation = await evaluator.run(data, { signal, batchSize })
  const samples = settings.samplePrompts.length > 0 ? await writeSamples(run) : undefined
  progress.evaluationDue = false
  if (counts && (patience !== undefined || loadBestModelAtEnd)) {
    const before: BestSoFar = progress.memory ?? { stale: 0 }
    progress.memory = judged(before, { step: progress.step, evaluation }, settings)
    progress.stopped = patience !== undefined && progress.memory.stale >= patience
  }
  settings.onEvaluation?.({ step: progress.step, evaluation, samples })
  return { evaluation, ...(samples ? { samples } : {}) }
}

/** A step whose evaluation is cut short is done all the same, and still owes it; the loop stops after it. */
async function evaluateUnlessAborted(run: Run, progress: Progress): Promise<Evaluated | undefined> {
  try {
    return await evaluateNow(run, progress)
  } catch (error) {
    if (isAborted(error)) return undefined
    throw error
  }
}

async function writeSamples({ model, settings, trained }: Run): Promise<Sample[]> {
  const { samplePrompts, sampleMaxTokens: maxTokens, signal } = settings
  const samples: Sample[] = []
  for (const prompt of samplePrompts) {
    let text = ''
    for await (const piece of model.generate!(prompt, { adapter: trained.adapter, maxTokens, signal })) text += piece
    samples.push({ prompt, text })
  }
  return samples
}

/** Puts the parameters of the best evaluation in place of the last ones. */
async function loadBest(run: Run, { memory, step: done }: Progress): Promise<void> {
  const { settings, trained, step, checkpointFolders } = run
  const best = memory?.best?.step
  if (!settings.loadBestModelAtEnd || best === undefined || best === done) return
  const folder = await findCheckpoint(checkpointFolders, best)
  await restoreCheckpoint(folder, {
    parameters: { ...trained.parameters, ...trained.buffers },
    optimizer: step.state,
  })
}

const retentionOf = (
  { saveTotalLimit, loadBestModelAtEnd }: TrainSettings,
  { memory }: Progress,
): { readonly newest: number; readonly best: number | undefined } => ({
  newest: saveTotalLimit,
  best: loadBestModelAtEnd ? memory?.best?.step : undefined,
})

const isAborted = (error: unknown): boolean => error instanceof HeddleError && error.code === 'ERR_HEDDLE_ABORTED'

/** The batches of each step, from the step after `done` on. An epoch's last step may have fewer than the others. */
async function* stepBatches(
  { data, settings: { batchSize, accumulation, seed }, plan }: Run,
  done: number,
): AsyncGenerator<{ readonly batches: readonly unknown[]; readonly epoch: number }> {
  let step = done
  while (step < plan.total) {
    const epoch = Math.floor(step / plan.stepsPerEpoch)
    let position = (step % plan.stepsPerEpoch) * accumulation
    let batches: unknown[] = []
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
