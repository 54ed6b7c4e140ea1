/** What `train()` can be asked for, its defaults, and the check of both. */
import { z } from 'zod'
import { Adapter } from '../adapters/adapter.js'
import type { Parametrization } from '../adapters/parametrization.js'
import { parseConfig } from '../config.js'
import { Dataset } from '../data/dataset.js'
import { HeddleError } from '../errors.js'
import type { Precision } from '../graph/ops/matmul.js'
import { adamw } from '../optim/adamw.js'
import type { GradientTransform } from '../optim/gradient_transform.js'
import { constantSchedule, cosineSchedule, linearSchedule, type Schedule } from '../optim/schedule.js'

/** Named courses of the learning rate. */
export type ScheduleName = 'cosine' | 'linear' | 'constant'

/** Options of {@link train}. */
export interface TrainOptions {
  /** A `.jsonl` file (messages, prompt and completion, or text), a `.txt` file, or a {@link Dataset}. */
  readonly data: string | Dataset
  /** Held-out data for evaluation during training. */
  readonly evaluationData?: string | Dataset | undefined
  /** Without `evaluationData`: share of the data to hold out, 0 (default) to 0.5. */
  readonly evaluationFraction?: number
  /** What to train. Default: the model's only adapter; if it has none, a fresh one of `method`. */
  readonly adapter?: Adapter | undefined
  /** Default: `lora({ r: 16, lora_alpha: 32, target_modules: 'all-linear' })`. */
  readonly method?: Parametrization | undefined
  /** Train all weights of the model instead of an adapter. */
  readonly full?: boolean
  /** Passes over the data; default 1. Fractions are fine. */
  readonly epochs?: number | undefined
  /** Optimizer steps, instead of `epochs`. */
  readonly maxSteps?: number | undefined
  /** Sequences per batch; default 4. */
  readonly batchSize?: number
  /** Batches per optimizer step; default 1. */
  readonly accumulation?: number
  /** Most tokens per sequence; default 256, or the model's maximum if that is less. */
  readonly maxLength?: number | undefined
  /** Default: `adamw()`. */
  readonly optimizer?: GradientTransform
  /** Largest global norm of the gradients; 0 leaves them as they are. Default 1. */
  readonly clip?: number
  /** Course of the learning rate after the warm-up; default `cosine`. */
  readonly schedule?: ScheduleName
  /** Steps of linear warm-up. Default: `warmupRatio` of all steps. */
  readonly warmupSteps?: number | undefined
  /** Default 0.03. */
  readonly warmupRatio?: number
  /** Decides initial values, the order of the data, and dropout; default 0. */
  readonly seed?: number
  /** Default: the model's. */
  readonly precision?: Precision | undefined
  /** Steps between evaluations. Default: once per epoch. The last step is always followed by one. */
  readonly evaluateEvery?: number | undefined
  /** Steps between checkpoints, when there is an `outputFolder`; default 100. The last step always gets one. */
  readonly checkpointEvery?: number
  /** Gets `checkpoints/` while training runs and, for an adapter, a PEFT folder at the end. */
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
}

/** Options with every default filled in that does not depend on model or data. */
export type TrainSettings = z.output<typeof schema>

const integer = (least: number, most = 2 ** 32 - 1) => {
  const error = `an integer from ${least}${most < 2 ** 32 - 1 ? ` to ${most}` : ''}`
  return z.int({ error }).min(least, { error }).max(most, { error })
}
const number = (least: number, most = Number.MAX_VALUE) => {
  const error = most === Number.MAX_VALUE ? `a number of at least ${least}` : `a number from ${least} to ${most}`
  return z.number({ error }).min(least, { error }).max(most, { error })
}
const dataSource = z.union([z.string(), z.custom<Dataset>((value) => value instanceof Dataset)], {
  error: 'the path of a data file, or a Dataset',
})
const hasMethods = (value: unknown, ...names: readonly string[]): boolean =>
  typeof value === 'object' && value !== null && names.every((name) => typeof Reflect.get(value, name) === 'function')

const schema = z.strictObject({
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
  clip: number(0).default(1),
  schedule: z.enum(['cosine', 'linear', 'constant'], { error: '"cosine", "linear" or "constant"' }).default('cosine'),
  warmupSteps: integer(0).optional(),
  warmupRatio: number(0, 1).default(0.03),
  seed: integer(0).default(0),
  precision: z.enum(['f32', 'bf16'], { error: '"f32" or "bf16"' }).optional(),
  evaluateEvery: integer(1).optional(),
  checkpointEvery: integer(1).default(100),
  outputFolder: z.string().min(1).optional(),
  resume: z.union([z.boolean(), z.string()]).default(false),
  signal: z.custom<AbortSignal>((value) => value instanceof AbortSignal, { error: 'an AbortSignal' }).optional(),
  onDataProgress: z
    .custom<(share: number) => void>((value) => typeof value === 'function', { error: 'a function' })
    .optional(),
})

/** @throws ERR_HEDDLE_ARGUMENT naming the option, and the nearest known one for a typo */
export function parseTrainOptions(options: TrainOptions): TrainSettings {
  const settings = parseConfig('train', schema, options)
  const { adapter, method, full, epochs, maxSteps, evaluationData, evaluationFraction, resume, outputFolder } = settings
  if (Number(adapter !== undefined) + Number(method !== undefined) + Number(full) > 1)
    refuse('train', 'one of adapter, method and full', 'more than one of them')
  if (epochs !== undefined && maxSteps !== undefined) refuse('train', 'epochs or maxSteps', 'both')
  if (evaluationData !== undefined && evaluationFraction > 0)
    refuse('train', 'evaluationData or evaluationFraction', 'both')
  if (resume === true && outputFolder === undefined)
    refuse('train.resume', 'an outputFolder with checkpoints, or the path of one', 'true without outputFolder')
  return settings
}

/** The schedule of these settings for a run of `total` steps, with the number of warm-up steps it uses. */
export function scheduleOf(
  { schedule, warmupSteps, warmupRatio }: TrainSettings,
  total: number,
): { readonly warmupSteps: number; readonly factor: Schedule } {
  const warmup = warmupSteps ?? Math.ceil(warmupRatio * total)
  const make = { cosine: cosineSchedule, linear: linearSchedule, constant: constantSchedule }[schedule]
  return { warmupSteps: warmup, factor: make(warmup) }
}

function refuse(place: string, expected: string, got: string): never {
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
}
