/** What `train()` can be asked for, its defaults, and the check of both. */
import { z } from 'zod'
import { Adapter } from '../adapters/adapter.js'
import type { AttachProgress, Parametrization } from '../adapters/parametrization.js'
import { parseConfig } from '../config.js'
import type { Batch } from '../data/dataset.js'
import { HeddleError } from '../errors.js'
import type { RecomputePolicy } from '../graph/compile.js'
import type { Precision } from '../graph/ops/matmul.js'
import type { Network } from '../nn/network.js'
import { causalLm, type Evaluation } from '../objectives/causal_lm.js'
import type { EvaluationResult, Objective, TrainingData } from '../objectives/objective.js'
import { adamw } from '../optim/adamw.js'
import type { GradientTransform } from '../optim/gradient_transform.js'
import type { ParameterGroup } from '../optim/parameter_groups.js'
import {
  namedSchedule,
  type Schedule,
  type ScheduleName,
  type SchedulerOptions,
  scheduleNames,
} from '../optim/schedule.js'

export type { ScheduleName }

/** An evaluation during training. */
export interface EvaluationEvent<E extends EvaluationResult = Evaluation> {
  /** Steps that were done; 0 is before training. */
  readonly step: number
  readonly evaluation: E
  /** What the model wrote for `samplePrompts`. */
  readonly samples?: readonly Sample[] | undefined
}

/** A text that the model made, greedily. */
export interface Sample {
  readonly prompt: string
  readonly text: string
}

/** Options of {@link train} that are the same for all objectives. Names follow transformers' TrainingArguments. */
export interface CommonTrainOptions {
  /** Without `evaluationData`: share of the data to hold out, 0 (default) to 0.5. */
  readonly evaluationFraction?: number
  /** What to train. Default: the model's only adapter; if it has none, a fresh one of `method`. */
  readonly adapter?: Adapter | undefined
  /** Default: `lora({ r: 16, lora_alpha: 32, target_modules: 'all-linear' })`. */
  readonly method?: Parametrization | undefined
  /** Train all weights of the model instead of an adapter. Norms, biases and embeddings then have no weight decay. */
  readonly full?: boolean
  /** Passes over the data; default 1. Fractions are fine. */
  readonly epochs?: number | undefined
  /** Optimizer steps, instead of `epochs`. */
  readonly maxSteps?: number | undefined
  /** Examples per batch; default 4. */
  readonly batchSize?: number
  /** Batches per optimizer step; default 1. */
  readonly accumulation?: number
  /** Most tokens per sequence; default 256, or the model's maximum if that is less. */
  readonly maxLength?: number | undefined
  /** Default: `adamw()`. */
  readonly optimizer?: GradientTransform
  /** Other learning rates and decays for parameters whose names match; the first group that matches counts. */
  readonly parameterGroups?: readonly ParameterGroup[]
  /** LoRA+: learning rate of B over that of A, as PEFT's `loraplus_lr_ratio`. */
  readonly loraplusLrRatio?: number | undefined
  /** Largest global norm of the gradients; 0 leaves them as they are. Default 1. */
  readonly clip?: number
  /** Course of the learning rate after the warm-up; default `cosine`. */
  readonly schedule?: ScheduleName
  /** What some schedules ask for: cycles, power, last rate, time scale. */
  readonly schedulerOptions?: SchedulerOptions
  /** Steps of linear warm-up. Default: `warmupRatio` of all steps. */
  readonly warmupSteps?: number | undefined
  /** Default 0.03. */
  readonly warmupRatio?: number
  /** Decides initial values, the order of the data, and dropout; default 0. */
  readonly seed?: number
  /** Default: the model's. */
  readonly precision?: Precision | undefined
  /** Modules whose activations are computed again in the backward pass, for less memory; default: none. */
  readonly recompute?: RecomputePolicy | undefined
  /** Steps between evaluations. Default: once per epoch. The last step is always followed by one. */
  readonly evaluateEvery?: number | undefined
  /** Also evaluate before the first step; default false. */
  readonly evalOnStart?: boolean
  /** Number of the evaluation that says which step was the best; default `loss`. */
  readonly metricForBestModel?: string
  /** Default: false for `loss` and `perplexity`, true for every other metric. */
  readonly greaterIsBetter?: boolean | undefined
  /** Ends the run after so many evaluations in a row without improvement. */
  readonly earlyStoppingPatience?: number | undefined
  /** What counts as an improvement: more than this; default 0. */
  readonly earlyStoppingThreshold?: number
  /** Keeps the checkpoint of the best evaluation and ends with its parameters; needs an `outputFolder`. */
  readonly loadBestModelAtEnd?: boolean
  /** Prompts that the model goes on from, greedily, after each evaluation. */
  readonly samplePrompts?: readonly string[]
  /** Most tokens of each sample; default 40. */
  readonly sampleMaxTokens?: number
  /** Steps between checkpoints, when there is an `outputFolder`; default 100. The last step always gets one. */
  readonly checkpointEvery?: number
  /** Newest checkpoints that stay, besides the best one; default 2. */
  readonly saveTotalLimit?: number
  /**
   * Gets `checkpoints/` and `metrics.jsonl` while training runs and, for an adapter, a PEFT folder at the end.
   */
  readonly outputFolder?: string | undefined
  /**
   * `true` goes on from the newest checkpoint in `outputFolder`, if there is one; a string names a checkpoint folder.
   * The run continues bit for bit as if it had never stopped.
   */
  readonly resume?: boolean | string
  /** Stops after the running step, once that step's checkpoint is written: ERR_HEDDLE_ABORTED. */
  readonly signal?: AbortSignal | undefined
  /** Called with the share of the data that has been tokenized. */
  onDataProgress?(share: number): void
  /** Called while a fresh method is attached, where that takes its time: it learns from data, or takes weights apart. */
  onAttachProgress?(progress: AttachProgress): void
  /** Called with what did not go as it should, where the run goes on; default: `process.emitWarning`. */
  onWarning?(message: string): void
}

/** Data of an objective, and what its evaluations are told to. */
interface DataOptions<B, E extends EvaluationResult> {
  /** A data file that the objective can read (see docs/guides/training.md), or data opened before. */
  readonly data: string | TrainingData<B>
  /** Held-out data for evaluation during training. */
  readonly evaluationData?: string | TrainingData<B> | undefined
  /** Called after every evaluation, that before the first step included. */
  onEvaluation?(event: EvaluationEvent<E>): void
}

/** Options of {@link train} for next-token prediction. */
export interface TrainOptions extends CommonTrainOptions, DataOptions<Batch, Evaluation> {
  readonly objective?: undefined
  /** For data files: several sequences in one row, as `packing` of {@link Dataset.open} says. Default false. */
  readonly packing?: boolean | undefined
}

/** Options of {@link train} for any objective. */
export interface ObjectiveTrainOptions<N extends Network, B, E extends EvaluationResult>
  extends CommonTrainOptions,
    DataOptions<B, E> {
  readonly objective: Objective<N, B, E>
}

/** Options with every default filled in that does not depend on model or data. */
export type TrainSettings = Omit<z.output<typeof schema>, 'packing' | 'objective'> & { readonly objective: Objective }

const integer = (least: number, most = 2 ** 32 - 1) => {
  const error = `an integer from ${least}${most < 2 ** 32 - 1 ? ` to ${most}` : ''}`
  return z.int({ error }).min(least, { error }).max(most, { error })
}
const number = (least: number, most = Number.MAX_VALUE) => {
  const error = most === Number.MAX_VALUE ? `a number of at least ${least}` : `a number from ${least} to ${most}`
  return z.number({ error }).min(least, { error }).max(most, { error })
}
const hasMethods = (value: unknown, ...names: readonly string[]): boolean =>
  typeof value === 'object' && value !== null && names.every((name) => typeof Reflect.get(value, name) === 'function')
const dataSource = z.union(
  [z.string(), z.custom<TrainingData<unknown>>((value) => hasMethods(value, 'batches', 'batchCount'))],
  { error: 'the path of a data file, or a Dataset' },
)
const callback = <F>() => z.custom<F>((value) => typeof value === 'function', { error: 'a function' }).optional()
const parameterGroup = z.strictObject({
  params: z.string().min(1),
  lr: number(0).optional(),
  weightDecay: number(0).optional(),
})
const schedulerOptions = z.strictObject({
  numCycles: integer(1).optional(),
  power: number(0).optional(),
  minLrRate: number(0, 1).optional(),
  timescale: integer(1).optional(),
  numDecaySteps: integer(1).optional(),
})

const scopePattern = z.union([z.string().min(1), z.instanceof(RegExp)], {
  error: 'a glob over module paths such as "model.layers.*", or a regular expression',
})

const schema = z.strictObject({
  packing: z.boolean().optional(),
  objective: z
    .custom<Objective>((value) => hasMethods(value, 'loss', 'scores', 'arrays'), {
      error: 'an objective such as dpo()',
    })
    .optional(),
  data: dataSource,
  evaluationData: dataSource.optional(),
  evaluationFraction: number(0, 0.5).default(0),
  adapter: z.custom<Adapter>((value) => value instanceof Adapter, { error: 'an adapter of this model' }).optional(),
  method: z
    .custom<Parametrization>((value) => hasMethods(value, 'plan'), { error: 'a method such as lora({ r: 16 })' })
    .optional(),
  full: z.boolean().default(false),
  epochs: z.number().positive({ error: 'a number above 0' }).optional(),
  maxSteps: integer(1).optional(),
  batchSize: integer(1, 2 ** 16).default(4),
  accumulation: integer(1, 2 ** 16).default(1),
  maxLength: integer(1, 2 ** 24).optional(),
  optimizer: z
    .custom<GradientTransform>((value) => hasMethods(value, 'init'), { error: 'an update rule such as adamw()' })
    .default(() => adamw()),
  parameterGroups: z.array(parameterGroup).default([]),
  loraplusLrRatio: z.number().positive({ error: 'a number above 0' }).optional(),
  clip: number(0).default(1),
  schedule: z.enum(scheduleNames).default('cosine'),
  schedulerOptions: schedulerOptions.default({}),
  warmupSteps: integer(0).optional(),
  warmupRatio: number(0, 1).default(0.03),
  seed: integer(0).default(0),
  precision: z.enum(['f32', 'bf16'], { error: '"f32" or "bf16"' }).optional(),
  recompute: z
    .strictObject({
      scopes: z.union([scopePattern, z.array(scopePattern)]).optional(),
      memoryBytes: integer(1, Number.MAX_SAFE_INTEGER).optional(),
    })
    .transform(({ scopes, memoryBytes }) => ({
      ...(scopes === undefined ? {} : { scopes }),
      ...(memoryBytes === undefined ? {} : { memoryBytes }),
    }))
    .optional(),
  evaluateEvery: integer(1).optional(),
  evalOnStart: z.boolean().default(false),
  metricForBestModel: z.string().min(1).default('loss'),
  greaterIsBetter: z.boolean().optional(),
  earlyStoppingPatience: integer(1).optional(),
  earlyStoppingThreshold: number(0).default(0),
  loadBestModelAtEnd: z.boolean().default(false),
  samplePrompts: z.array(z.string().min(1)).default([]),
  sampleMaxTokens: integer(1, 2 ** 16).default(40),
  checkpointEvery: integer(1).default(100),
  saveTotalLimit: integer(1).default(2),
  outputFolder: z.string().min(1).optional(),
  resume: z.union([z.boolean(), z.string()]).default(false),
  signal: z.custom<AbortSignal>((value) => value instanceof AbortSignal, { error: 'an AbortSignal' }).optional(),
  onDataProgress: callback<(share: number) => void>(),
  onAttachProgress: callback<(progress: AttachProgress) => void>(),
  onWarning: callback<(message: string) => void>(),
  onEvaluation: callback<(event: EvaluationEvent<EvaluationResult>) => void>(),
})

/** @throws ERR_HEDDLE_ARGUMENT naming the option, and the nearest known one for a typo */
export function parseTrainOptions(options: unknown): TrainSettings {
  const { packing, objective, ...settings } = parseConfig('train', schema, options)
  const { adapter, method, full, epochs, maxSteps, evaluationData, evaluationFraction, resume, outputFolder } = settings
  if (Number(adapter !== undefined) + Number(method !== undefined) + Number(full) > 1)
    refuse('train', 'one of adapter, method and full', 'more than one of them')
  if (epochs !== undefined && maxSteps !== undefined) refuse('train', 'epochs or maxSteps', 'both')
  if (evaluationData !== undefined && evaluationFraction > 0)
    refuse('train', 'evaluationData or evaluationFraction', 'both')
  if (resume === true && outputFolder === undefined)
    refuse('train.resume', 'an outputFolder with checkpoints, or the path of one', 'true without outputFolder')
  if (settings.loadBestModelAtEnd && outputFolder === undefined)
    refuse('train.loadBestModelAtEnd', 'an outputFolder, where the best checkpoint is kept', 'none')
  if (packing !== undefined && objective) refuse('train.packing', 'next-token prediction', 'another objective')
  if (packing !== undefined && typeof settings.data !== 'string')
    refuse('train.packing', 'the path of a data file, or Dataset.open(…, { packing })', 'a dataset that is open')
  return { ...settings, objective: objective ?? causalLm({ packing: packing ?? false }) }
}

/** The schedule of these settings for a run of `total` steps, with the number of warm-up steps it uses. */
export function scheduleOf(
  { schedule, schedulerOptions: options, warmupSteps, warmupRatio }: TrainSettings,
  total: number,
): { readonly warmupSteps: number; readonly factor: Schedule } {
  const warmup = warmupSteps ?? Math.ceil(warmupRatio * total)
  return { warmupSteps: warmup, factor: namedSchedule(schedule, warmup, total, options) }
}

function refuse(place: string, expected: string, got: string): never {
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
}
