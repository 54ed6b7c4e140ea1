/** `/v1/fine_tuning/jobs`: adapters trained on uploaded files, to be asked for once they are done. */
import type { FastifyInstance } from 'fastify'
import { z } from 'zod'
import type { ServerContext } from '../context.js'
import type { JobRunner } from '../jobs/runner.js'
import { readJob } from '../jobs/settings.js'
import { checkpointsOf, shownEvent, shownJob } from '../jobs/shown.js'
import { isOver, type Job, type JobStore } from '../jobs/store.js'
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
  const { store, runner } = options
  app.post('/v1/fine_tuning/jobs', async ({ body }) => {
    const job = create(options, body)
    runner.wake()
    return shownJob(job)
  })
  app.get('/v1/fine_tuning/jobs', async ({ query }) => {
    const { limit = 20, after } = readBody(pageSchema, query)
    const { data, has_more } = store.jobs({ after, limit })
    return { object: 'list', data: data.map(shownJob), ...ends(data), has_more }
  })
  app.get<WithId>('/v1/fine_tuning/jobs/:id', async ({ params: { id } }) => shownJob(named(store, id)))
  app.post<WithId>('/v1/fine_tuning/jobs/:id/cancel', async ({ params: { id } }) => {
    const { status } = named(store, id)
    if (runner.cancel(id)) return shownJob(named(store, id))
    throw invalidRequest(`Job '${id}' has already ${status === 'cancelled' ? 'been ' : ''}${status}.`, 'id')
  })
  progressRoutes(app, options)
  app.delete<WithId>('/v1/models/:id', { config: { scope: 'train' } }, async ({ params: { id } }) => {
    if (!(await runner.removeModel(id))) throw modelNotFound(id)
    return { id, object: 'model', deleted: true }
  })
}

function progressRoutes(app: FastifyInstance, { store, stopped }: FineTuningOptions): void {
  app.get<WithId>('/v1/fine_tuning/jobs/:id/events', async (request, reply) => {
    const { id } = named(store, request.params.id)
    const { limit, after, stream } = readBody(eventsSchema, request.query)
    if (stream !== 'true') {
      const { data, has_more } = store.events(id, { after, limit: limit ?? 20 })
      return { object: 'list', data: data.map(shownEvent), ...ends(data), has_more }
    }
    if (limit !== undefined) throw invalidRequest("The 'limit' parameter is not allowed with 'stream'.", 'limit')
    const signal = clientSignal(reply, { until: stopped })
    return sendEvents(request, reply, liveEvents(store, id, { after, signal }))
  })
  app.get<WithId>('/v1/fine_tuning/jobs/:id/checkpoints', async ({ params: { id }, query }) => {
    readBody(pageSchema, query)
    const data = checkpointsOf(named(store, id), store)
    return { object: 'list', data, ...ends(data), has_more: false }
  })
}

function named(store: JobStore, id: string): Job {
  const job = store.job(id)
  if (job) return job
  throw new OpenAiError(404, {
    message: `Could not find fine tune: ${id.slice(0, 100)}`,
    type: 'invalid_request_error',
    param: 'fine_tune_id',
    code: 'fine_tune_not_found',
  })
}

function create({ store, engine, modelName }: FineTuningOptions, body: unknown): Job {
  const { model, settings } = readJob(body, engine.model)
  if (engine.adapterNames.includes(model))
    throw invalidRequest(`The model '${model}' is an adapter. Fine-tune '${modelName}' instead.`, 'model')
  if (model !== modelName) throw modelNotFound(model)
  expectUpload(store, 'training_file', settings.trainingFile)
  if (settings.validationFile !== null) expectUpload(store, 'validation_file', settings.validationFile)
  if (store.unfinishedIds.length > maxQueued) throw tooManyJobs()
  return store.addJob({ id: newId('ftjob'), model, settings })
}

function expectUpload(store: JobStore, param: string, id: string): void {
  if (!store.upload(id))
    throw invalidRequest(`Invalid '${param}': no such file: ${id.slice(0, 100)}.`, param, 'file_not_found')
}

/** Worth another try in a minute. */
const tooManyJobs = (): OpenAiError =>
  new OpenAiError(
    429,
    {
      message: 'Too many fine-tuning jobs wait already.',
      type: 'rate_limit_error',
      param: null,
      code: 'server_busy',
    },
    60,
  )

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
