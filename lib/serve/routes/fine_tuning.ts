/** `/v1/fine_tuning/jobs`: adapters trained on uploaded files, to be asked for once they are done. */
import type { FastifyInstance } from 'fastify'
import { z } from 'zod'
import type { ServerContext } from '../context.js'
import type { JobRunner } from '../jobs/runner.js'
import { readJob } from '../jobs/settings.js'
import { isOver, type Job, type JobEvent, type JobStore } from '../jobs/store.js'
import { invalidRequest, modelNotFound, OpenAiError } from '../openai/error.js'
import { clientSignal, sendEvents } from '../openai/events.js'
import { maybe, queryInteger, readBody } from '../openai/request.js'
import { newId } from '../openai/route.js'
import { ends } from './files.js'

/** Options of {@link fineTuningRoutes}. */
export interface FineTuningOptions extends ServerContext {
  readonly store: JobStore
  readonly runner: JobRunner
  /** Set when the server ends. */
  readonly stopped: AbortSignal
}

/** Most jobs that wait. */
const maxQueued = 100
/** Events that are read from the database at a time. */
const eventsAtATime = 100

const page = {
  after: maybe(z.string()),
  limit: queryInteger(1, 100),
}
const pageSchema = z.strictObject(page)
const eventsSchema = z.strictObject({ ...page, stream: maybe(z.enum(['true', 'false'])) })

type WithId = { readonly Params: { readonly id: string } }

/** Adds the routes. */
export async function fineTuningRoutes(app: FastifyInstance, options: FineTuningOptions): Promise<void> {
  const { store, runner, stopped } = options
  const named = (id: string): Job => {
    const job = store.job(id)
    if (job) return job
    throw noSuchJob(id)
  }
  const shown = (job: Job) => shownJob(job, store)
  app.post('/v1/fine_tuning/jobs', async ({ body }) => {
    const job = create(options, body)
    runner.wake()
    return shown(job)
  })
  app.get('/v1/fine_tuning/jobs', async ({ query }) => {
    const { limit = 20, after } = readBody(pageSchema, query)
    const { data, has_more } = store.jobs({ after, limit })
    return { object: 'list', data: data.map(shown), ...ends(data), has_more }
  })
  app.get<WithId>('/v1/fine_tuning/jobs/:id', async ({ params: { id } }) => shown(named(id)))
  app.post<WithId>('/v1/fine_tuning/jobs/:id/cancel', async ({ params: { id } }) => {
    const job = named(id)
    if (!runner.cancel(id))
      throw invalidRequest(`Job '${id}' has already ${job.status === 'cancelled' ? 'been ' : ''}${job.status}.`, 'id')
    return shown(named(id))
  })
  app.get<WithId>('/v1/fine_tuning/jobs/:id/events', async (request, reply) => {
    const { id } = named(request.params.id)
    const { limit, after, stream } = readBody(eventsSchema, request.query)
    if (stream === 'true') {
      if (limit !== undefined) throw invalidRequest("The 'limit' parameter is not allowed with 'stream'.", 'limit')
      const signal = AbortSignal.any([clientSignal(reply), stopped])
      return sendEvents(request, reply, liveEvents(store, id, { after, signal }))
    }
    const { data, has_more } = store.events(id, { after, limit: limit ?? 20 })
    return { object: 'list', data: data.map(shownEvent), ...ends(data), has_more }
  })
  app.get<WithId>('/v1/fine_tuning/jobs/:id/checkpoints', async ({ params: { id }, query }) => {
    readBody(pageSchema, query)
    const data = checkpointsOf(named(id), store)
    return { object: 'list', data, ...ends(data), has_more: false }
  })
  app.delete<WithId>('/v1/models/:id', { config: { scope: 'train' } }, async ({ params: { id } }) => {
    if (!(await runner.removeModel(id))) throw modelNotFound(id)
    return { id, object: 'model', deleted: true }
  })
}

function create({ store, engine, modelName }: FineTuningOptions, body: unknown): Job {
  const { model, settings } = readJob(body, engine.model)
  if (engine.adapterNames.includes(model))
    throw invalidRequest(`The model '${model}' is an adapter. Fine-tune '${modelName}' instead.`, 'model')
  if (model !== modelName) throw modelNotFound(model)
  for (const [param, id] of [
    ['training_file', settings.trainingFile],
    ['validation_file', settings.validationFile],
  ] as const)
    if (id !== null && !store.upload(id))
      throw invalidRequest(`Invalid '${param}': no such file: ${id.slice(0, 100)}.`, param, 'file_not_found')
  if (store.unfinishedIds.length > maxQueued)
    throw new OpenAiError(
      429,
      {
        message: 'Too many fine-tuning jobs wait already.',
        type: 'rate_limit_error',
        param: null,
        code: 'server_busy',
      },
      60,
    )
  return store.addJob({ id: newId('ftjob'), model, settings })
}

/** What happened so far, or after an event, and what happens from now on, until the job is over. */
async function* liveEvents(
  store: JobStore,
  id: string,
  { after, signal }: { readonly after: string | undefined; readonly signal: AbortSignal },
): AsyncGenerator<unknown, void, void> {
  let last = after
  while (!signal.aborted) {
    // Read before the events: those of the end are then among them.
    const ended = isOver(store.job(id)!)
    const events = store.eventsAfter(id, last, eventsAtATime)
    if (events.length === 0) {
      if (ended) return
      await store.changed(id, signal).catch(() => {})
      continue
    }
    for (const event of events) {
      last = event.id
      yield shownEvent(event)
    }
  }
}

const noSuchJob = (id: string): OpenAiError =>
  new OpenAiError(404, {
    message: `Could not find fine tune: ${id.slice(0, 100)}`,
    type: 'invalid_request_error',
    param: 'fine_tune_id',
    code: 'fine_tune_not_found',
  })

function shownJob({ id, settings, error, ...job }: Job, store: JobStore) {
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
    trained_tokens: job.status === 'succeeded' ? store.trainedTokens(id) : null,
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

const shownEvent = ({ id, created_at, level, message, data }: JobEvent) => ({
  object: 'fine_tuning.job.event',
  id,
  created_at,
  level,
  message,
  type: data === null ? 'message' : 'metrics',
  data: data ?? {},
})

/** The one that can be asked for: the end of a job that succeeded. */
function checkpointsOf({ id, status, fine_tuned_model }: Job, store: JobStore) {
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
