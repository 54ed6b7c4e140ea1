/** What a client asks of a job, checked, and what that is for the trainer. */
import { randomInt } from 'node:crypto'
import { join } from 'node:path'
import { z } from 'zod'
import { methodOf } from '../../adapters/registry.js'
import { HeddleError } from '../../errors.js'
import type { Model } from '../../model.js'
import { invalidRequest } from '../openai/error.js'
import { integer, maybe, oneOf, readBody, unsupported } from '../openai/request.js'
import type { WorkerTask } from './worker_messages.js'

/** What a job learns from: conversations, or pairs of a preferred answer and another one. */
export type JobMethod = 'supervised' | 'dpo'

const epochs = oneOf("'auto' or an integer", [z.literal('auto'), integer(1, 100)])
const batchSize = oneOf("'auto' or an integer", [z.literal('auto'), integer(1, 256)])
const positive = oneOf("'auto' or a number", [z.literal('auto'), z.number().positive().max(1000)])
const common = { n_epochs: maybe(epochs), batch_size: maybe(batchSize), learning_rate_multiplier: maybe(positive) }
const supervised = z.strictObject({ hyperparameters: maybe(z.strictObject(common)) })
const dpo = z.strictObject({ hyperparameters: maybe(z.strictObject({ ...common, beta: maybe(positive) })) })

/** With OpenAI's limits. */
const metadata = z
  .record(z.string().max(64), z.string().max(512))
  .refine((pairs) => Object.keys(pairs).length <= 16, { error: 'more than 16 pairs' })

const training = z.strictObject({
  max_steps: maybe(integer(1, 10 ** 6)),
  max_length: maybe(integer(1, 2 ** 20)),
  accumulation: maybe(integer(1, 1024)),
  checkpoint_every: maybe(integer(1, 10 ** 6)),
  precision: maybe(z.enum(['f32', 'bf16'])),
})

const schema = z.strictObject({
  model: z.string().min(1),
  training_file: z.string().min(1),
  validation_file: maybe(z.string().min(1)),
  suffix: maybe(z.string().regex(/^[\w.-]{1,64}$/)),
  seed: maybe(integer(0, 2 ** 31 - 1)),
  hyperparameters: maybe(z.strictObject(common)),
  method: maybe(
    z.discriminatedUnion('type', [
      z.strictObject({ type: z.literal('supervised'), supervised: maybe(supervised) }),
      z.strictObject({ type: z.literal('dpo'), dpo: maybe(dpo) }),
    ]),
  ),
  metadata: maybe(metadata),
  integrations: unsupported,
  heddle: maybe(z.looseObject({ method: maybe(z.string()), training: maybe(training) })),
})

type Body = z.output<typeof schema>

/** Everything that decides what a job computes. It is kept: a job goes on with it after its server was started anew. */
export interface JobSettings {
  /** What `loadModel` takes. */
  readonly source: string
  readonly precision: 'f32' | 'bf16'
  readonly trainingFile: string
  readonly validationFile: string | null
  readonly suffix: string
  readonly seed: number
  readonly method: JobMethod
  readonly hyperparameters: Hyperparameters
  readonly maxSteps: number | null
  readonly maxLength: number
  readonly accumulation: number
  readonly checkpointEvery: number
  /** Name and config of the adapter's method. */
  readonly adapter: WorkerTask['adapter']
  readonly metadata: Readonly<Record<string, string>> | null
}

/** OpenAI's, with a number for each. */
export interface Hyperparameters {
  readonly n_epochs: number
  readonly batch_size: number
  readonly learning_rate_multiplier: number
  /** Of dpo alone. */
  readonly beta?: number
}

/** What `auto` means. */
const automatic: Readonly<Record<JobMethod, Hyperparameters>> = {
  supervised: { n_epochs: 3, batch_size: 4, learning_rate_multiplier: 1 },
  dpo: { n_epochs: 3, batch_size: 4, learning_rate_multiplier: 1, beta: 0.1 },
}
/** The learning rates of multiplier 1. */
const learningRates: Readonly<Record<JobMethod, number>> = { supervised: 2e-4, dpo: 5e-5 }
/** Batches are only as long as their longest example, so that short ones cost no more. */
const defaultMaxLength = 1024
const defaultCheckpointEvery = 20

/** A job for this model. @throws OpenAiError 400 */
export function readJob(
  body: unknown,
  model: Pick<Model, 'source' | 'precision' | 'network'>,
): { readonly model: string; readonly settings: JobSettings } {
  const given = readBody(schema, body)
  const { method = 'lora', training: own, ...config } = given.heddle ?? {}
  const adapter = { method, ...config }
  expectMethod(adapter)
  return {
    model: given.model,
    settings: {
      source: model.source,
      // Weights that are stored in blocks have no gradients of their own.
      precision: own?.precision ?? (model.precision === 'f32' ? 'f32' : 'bf16'),
      trainingFile: given.training_file,
      validationFile: given.validation_file ?? null,
      suffix: given.suffix ?? '',
      seed: given.seed ?? randomInt(2 ** 31 - 1),
      ...learned(given),
      maxSteps: own?.max_steps ?? null,
      maxLength: lengthWithin(model.network.maxPositions, own?.max_length),
      accumulation: own?.accumulation ?? 1,
      checkpointEvery: own?.checkpoint_every ?? defaultCheckpointEvery,
      adapter,
      metadata: given.metadata ?? null,
    },
  }
}

/** Those of the method count before those beside it, where OpenAI had them first. */
function learned({ method, hyperparameters }: Body): Pick<JobSettings, 'method' | 'hyperparameters'> {
  const type = method?.type ?? 'supervised'
  const own = method?.type === 'dpo' ? method.dpo?.hyperparameters : method?.supervised?.hyperparameters
  const numbers = Object.entries({ ...hyperparameters, ...own }).filter(([, value]) => typeof value === 'number')
  return { method: type, hyperparameters: { ...automatic[type], ...Object.fromEntries(numbers) } }
}

function lengthWithin(most: number, given = Math.min(defaultMaxLength, most)): number {
  if (given <= most) return given
  throw invalidRequest(
    `Invalid 'heddle.training.max_length': integer above maximum value. Expected a value <= ${most}, but got ${given} instead.`,
    'heddle.training.max_length',
    'integer_above_max_value',
  )
}

function expectMethod(adapter: WorkerTask['adapter']): void {
  try {
    methodOf(adapter)
  } catch (error) {
    if (!(error instanceof HeddleError)) throw error
    throw invalidRequest(`Invalid 'heddle': ${error.message}.`, 'heddle', 'invalid_value')
  }
}

/** What the process that trains is told. */
export const taskOf = (
  { method, hyperparameters, ...settings }: JobSettings,
  { folder, uploads, mostRank }: Pick<WorkerTask, 'folder' | 'mostRank'> & { readonly uploads: string },
): WorkerTask => ({
  kind: 'train',
  source: settings.source,
  precision: settings.precision,
  folder,
  trainingPath: uploadPath(uploads, settings.trainingFile),
  validationPath: settings.validationFile === null ? undefined : uploadPath(uploads, settings.validationFile),
  objective:
    method === 'dpo' ? { name: 'dpo', options: { beta: hyperparameters.beta } } : { name: 'causal-lm', options: {} },
  seed: settings.seed,
  epochs: settings.maxSteps === null ? hyperparameters.n_epochs : undefined,
  maxSteps: settings.maxSteps ?? undefined,
  batchSize: hyperparameters.batch_size,
  accumulation: settings.accumulation,
  maxLength: settings.maxLength,
  learningRate: learningRates[method] * hyperparameters.learning_rate_multiplier,
  checkpointEvery: settings.checkpointEvery,
  adapter: settings.adapter,
  mostRank,
})

/** Where an upload is; `id` is one that the server made. */
export const uploadPath = (uploads: string, id: string): string => join(uploads, `${id}.jsonl`)
