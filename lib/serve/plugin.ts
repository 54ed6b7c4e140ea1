/** Heddle's server as a plugin of fastify, for an app of its own or one that there is already. */
import type { FastifyInstance, FastifyPluginAsync } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { type JobOptions, jobRoutes } from './jobs/routes.js'
import type { NamedEncoder } from './openai/embedder.js'
import { answerError, answerNotFound } from './openai/error.js'
import { type OperationsOptions, operations } from './operations.js'
import { pageRoutes } from './page/routes.js'
import { chatRoutes } from './routes/chat.js'
import { completionRoutes } from './routes/completions.js'
import { embeddingRoutes } from './routes/embeddings.js'
import { modelRoutes } from './routes/models.js'

/** Options of {@link heddle}. */
export interface ServeOptions extends OperationsOptions, Pick<JobOptions, 'uploads'> {
  /** Where the routes begin, e.g. `/llm` for `/llm/v1/models`; default: at the root. */
  readonly prefix?: string
  /** Makes the vectors of `/v1/embeddings` for requests with its name; the served model makes those with other names. */
  readonly encoder?: NamedEncoder | undefined
  /** Shows a page at the root of the prefix; default false, as an app has its own `/`. */
  readonly page?: boolean | undefined
}

/**
 * Adds Heddle's routes to an app: `await app.register(heddle, { engine, modelName, folders })`. They live in a scope of
 * their own, so that its hooks and its form of errors change nothing of the app's other routes. The engine stays the
 * caller's: close it after the app.
 */
export const heddle: FastifyPluginAsync<ServeOptions> = fastifyPlugin(
  (async (app, { prefix = '', ...options }) => {
    const routes = async (scope: FastifyInstance): Promise<void> => {
      // At the root, what is not found is the app's business.
      if (prefix !== '') scope.setNotFoundHandler(answerNotFound)
      await serveRoutes(scope, options)
    }
    await app.register(routes, { prefix })
  }) satisfies FastifyPluginAsync<ServeOptions>,
  { name: 'heddle', fastify: '5.x' },
)

/** The order matters: hooks of `operations` reach the routes that are registered after them. */
async function serveRoutes(scope: FastifyInstance, options: Omit<ServeOptions, 'prefix'>): Promise<void> {
  scope.setErrorHandler(answerError)
  await scope.register(operations, options)
  await scope.register(modelRoutes, options)
  await scope.register(chatRoutes, options)
  await scope.register(completionRoutes, options)
  await scope.register(embeddingRoutes, options)
  await scope.register(jobRoutes, options)
  if (options.page) await scope.register(pageRoutes, options)
}
