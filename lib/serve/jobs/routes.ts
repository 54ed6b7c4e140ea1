/** Fine-tuning over HTTP: uploads, jobs, and the processes that train. */
import { setMaxListeners } from 'node:events'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { HeddleError } from '../../errors.js'
import type { ServerContext } from '../context.js'
import { OpenAiError } from '../openai/error.js'
import { fileRoutes } from '../routes/files.js'
import { fineTuningRoutes } from '../routes/fine_tuning.js'
import { loadDriver, openDatabase } from './database.js'
import { JobRunner } from './runner.js'
import { JobStore } from './store.js'
import { type UploadLimits, Uploads } from './uploads.js'

/** Options of {@link jobRoutes}. */
export interface JobOptions extends ServerContext {
  /** Default: 512 MiB a file, 4 GiB together. */
  readonly uploads?: Partial<UploadLimits> | undefined
}

const defaultLimits: UploadLimits = { fileBytes: 2 ** 29, totalBytes: 2 ** 32 }

/**
 * Adds `/v1/files` and `/v1/fine_tuning/jobs`, and the end of models that jobs made. Without better-sqlite3 they answer with 501 and say what is missing.
 * @throws ERR_HEDDLE_FORMAT, ERR_HEDDLE_BUSY, ERR_HEDDLE_IO when the data folder cannot be used
 */
export async function jobRoutes(app: FastifyInstance, { uploads: limits, ...context }: JobOptions): Promise<void> {
  const driver = await loadDriver().catch((error: HeddleError) => error)
  if (driver instanceof HeddleError) return refuseAll(app, driver)
  const { data, adapters } = context.folders
  const folders = { jobs: join(data, 'jobs'), uploads: join(data, 'files'), adapters }
  const store = new JobStore(openDatabase(driver, join(data, 'jobs.sqlite')))
  app.addHook('onClose', async () => store.close())
  const uploads = await Uploads.open(folders.uploads, store, { ...defaultLimits, ...limits })
  const runner = await JobRunner.start({ store, context, folders, log: app.log })
  const stopped = new AbortController()
  // Each stream of events listens.
  setMaxListeners(0, stopped.signal)
  app.addHook('preClose', async () => {
    stopped.abort()
    await runner.close()
  })
  await app.register(fileRoutes, { uploads })
  await app.register(fineTuningRoutes, { ...context, store, runner, stopped: stopped.signal })
}

function refuseAll(app: FastifyInstance, error: HeddleError): void {
  app.log.warn({ err: error }, 'no fine-tuning')
  const answer = async (): Promise<never> => {
    throw new OpenAiError(501, {
      message: `This server does not fine-tune: better-sqlite3 is missing. ${error.hint}.`,
      type: 'server_error',
      param: null,
      code: 'fine_tuning_unavailable',
    })
  }
  for (const url of ['/v1/files', '/v1/files/*', '/v1/fine_tuning/*']) app.all(url, answer)
}
