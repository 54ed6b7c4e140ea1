/** What a client asks of a job, checked, and what that is for the trainer. */
import { randomInt } from 'node:crypto'
import { join } from 'node:path'
import { z } from 'zod'
import { methodOf } from '../../adapters/registry.js'
import { HeddleError } from '../../errors.js'
import { invalidRequest } from '../openai/error.js'
import { integer, maybe, oneOf, readBody, unsupported } from '../openai/request.js'
import type { WorkerTask } from './worker_messages.js'

const epochs = oneOf("'auto' or an integer", [z.literal('auto'), integer(1, 100)])
const batchSize = oneOf("'auto' or an integer", [z.literal('auto'), integer(1, 256)])
const multiplier = oneOf("'auto' or a number", [z.literal('auto'), z.number().positive().max(1000)])
const hyperparameters = z.strictObject({
  n_epochs: maybe(epochs),
  batch_size: maybe(batchSize),
  learning_rate_multiplier: maybe(multiplier),
})

const schema = z.strictObject({
  model: z.string().min(1),
  training_file: z.string().min(1),
  validation_file: maybe(z.string().min(1)),
  suffix: maybe(z.string().regex(/^[\w.-]{1,64}$/)),
  seed: maybe(integer(0, 2 ** 31 - 1)),
  hyperparameters: maybe(hyperparameters),
  method: maybe(
    z.strictObject({
      type: z.enum(['supervised']),
      supervised: maybe(z.strictObject({ hyperparameters: maybe(hyperparameters) })),
    }),
  ),
  metadata: maybe(z.record(z.string().max(64), z.string().max(512))),
  integrations: unsupported,
  heddle: maybe(
    z.looseObject({
      method: maybe(z.string()),
      training: maybe(
        z.strictObject({
          max_steps: maybe(integer(1, 10 ** 6)),
          max_length: maybe(integer(1, 2 ** 20)),
          accumulation: maybe(integer(1, 1024)),
          checkpoint_every: maybe(integer(1, 10 ** 6)),
          precision: maybe(z.enum(['f32', 'bf16'])),
        }),
      ),
    }),
  ),
})

/** Everything that decides what a job computes. It is kept: a job goes on with it after its server was started anew. */
export interface JobSettings {
  /** What `loadModel` takes. */
  readonly source: string
  readonly precision: 'f32' | 'bf16'
  readonly trainingFile: string
  readonly validationFile: string | null
  readonly suffix: string
  readonly seed: number
  readonly hyperparameters: {
    readonly n_epochs: number
    readonly batch_size: number
    readonly learning_rate_multiplier: number
  }
  readonly maxSteps: number | null
  readonly maxLength: number | null
  readonly accumulation: number
  readonly checkpointEvery: number
  readonly adapter: WorkerTask['method']
  readonly metadata: Readonly<Record<string, string>> | null
}

/** What `auto` means. */
const automatic = { n_epochs: 3, batch_size: 4, learning_rate_multiplier: 1 }
/** The learning rate of multiplier 1. */
const baseLearningRate = 2e-4
const defaultCheckpointEvery = 20

/** @throws OpenAiError 400 */
export function readJob(body: unknown): {
  readonly model: string
  readonly settings: Omit<JobSettings, 'source' | 'precision'> & { readonly precision?: 'f32' | 'bf16' | undefined }
} {
  const { heddle, ...given } = readBody(schema, body)
  const { method = 'lora', training, ...config } = heddle ?? {}
  const adapter = { method, ...config }
  expectMethod(adapter)
  return {
    model: given.model,
    settings: {
      trainingFile: given.training_file,
      validationFile: given.validation_file ?? null,
      suffix: given.suffix ?? '',
      seed: given.seed ?? randomInt(2 ** 31 - 1),
      hyperparameters: numbersOf({ ...given.hyperparameters, ...given.method?.supervised?.hyperparameters }),
      maxSteps: training?.max_steps ?? null,
      maxLength: training?.max_length ?? null,
      accumulation: training?.accumulation ?? 1,
      checkpointEvery: training?.checkpoint_every ?? defaultCheckpointEvery,
      adapter,
      metadata: given.metadata ?? null,
      precision: training?.precision,
    },
  }
}

function numbersOf(given: Readonly<Record<string, number | 'auto' | undefined>>): JobSettings['hyperparameters'] {
  const numbers = Object.entries(given).filter(([, value]) => typeof value === 'number')
  return { ...automatic, ...Object.fromEntries(numbers) }
}

function expectMethod(adapter: WorkerTask['method']): void {
  try {
    methodOf(adapter)
  } catch (error) {
    if (!(error instanceof HeddleError)) throw error
    throw invalidRequest(`Invalid 'heddle': ${error.message}.`, 'heddle', 'invalid_value')
  }
}

/** What the process that trains is told. */
export const taskOf = (
  settings: JobSettings,
  { folder, uploads }: { readonly folder: string; readonly uploads: string },
): WorkerTask => ({
  kind: 'train',
  source: settings.source,
  precision: settings.precision,
  folder,
  trainingPath: uploadPath(uploads, settings.trainingFile),
  validationPath: settings.validationFile === null ? undefined : uploadPath(uploads, settings.validationFile),
  seed: settings.seed,
  epochs: settings.maxSteps === null ? settings.hyperparameters.n_epochs : undefined,
  maxSteps: settings.maxSteps ?? undefined,
  batchSize: settings.hyperparameters.batch_size,
  accumulation: settings.accumulation,
  maxLength: settings.maxLength ?? undefined,
  learningRate: baseLearningRate * settings.hyperparameters.learning_rate_multiplier,
  checkpointEvery: settings.checkpointEvery,
  method: settings.adapter,
})

/** Where an upload is; `id` is one that the server made. */
export const uploadPath = (uploads: string, id: string): string => join(uploads, `${id}.jsonl`)
