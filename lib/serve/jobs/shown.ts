/** Jobs and what belongs to them, as OpenAI's API spells them. */
import type { Job, JobEvent, JobStore } from './store.js'

/** With a field `heddle` for what OpenAI has no names for. */
export function shownJob({ id, settings, error, ...job }: Job) {
  const { method, hyperparameters, trainingFile, validationFile, adapter } = settings
  return {
    object: 'fine_tuning.job',
    id,
    model: job.model,
    created_at: job.created_at,
    finished_at: job.finished_at,
    fine_tuned_model: job.fine_tuned_model,
    organization_id: 'heddle',
    result_files: [],
    status: job.status,
    validation_file: validationFile,
    training_file: trainingFile,
    hyperparameters,
    trained_tokens: job.status === 'succeeded' ? job.trained_tokens : null,
    error,
    user_provided_suffix: settings.suffix || null,
    seed: settings.seed,
    estimated_finish: null,
    integrations: [],
    metadata: settings.metadata,
    method: { type: method, [method]: { hyperparameters } },
    heddle: {
      ...adapter,
      training: {
        max_steps: settings.maxSteps,
        max_length: settings.maxLength,
        accumulation: settings.accumulation,
        checkpoint_every: settings.checkpointEvery,
        precision: settings.precision,
      },
    },
  }
}

/** A step is an event of type `metrics`. */
export const shownEvent = ({ id, created_at, level, message, data }: JobEvent) => ({
  object: 'fine_tuning.job.event',
  id,
  created_at,
  level,
  message,
  type: data === null ? 'message' : 'metrics',
  data: data ?? {},
})

/** The one that can be asked for: the end of a job that succeeded. */
export function checkpointsOf({ id, status, fine_tuned_model }: Job, store: JobStore) {
  const last = status === 'succeeded' ? store.lastStep(id) : undefined
  if (!last?.data) return []
  const { step, train_loss, valid_loss } = last.data
  return [
    {
      object: 'fine_tuning.job.checkpoint',
      id: id.replace('ftjob', 'ftckpt'),
      created_at: last.created_at,
      fine_tuned_model_checkpoint: fine_tuned_model,
      fine_tuning_job_id: id,
      step_number: step,
      metrics: { step, train_loss, ...(valid_loss === undefined ? {} : { valid_loss, full_valid_loss: valid_loss }) },
    },
  ]
}
