/** Ids and log lines of requests: who, what, how it ended, how long; never a prompt, an answer or a key. */
import { randomUUID } from 'node:crypto'
import type { IncomingMessage, Server } from 'node:http'
import { type FastifyHttpOptions, type FastifyInstance, LogController } from 'fastify'
import type { DestinationStream, LoggerOptions } from 'pino'
import { onClosed } from './closed.js'
import type { Limits } from './limits.js'
import { routeOf } from './metrics.js'
import { answerClientError } from './openai/error.js'

/** How much is said. */
export const logLevels = ['fatal', 'error', 'warn', 'info', 'debug', 'silent'] as const

/** See {@link logLevels}. */
export type LogLevel = (typeof logLevels)[number]

/** What a fastify app must be made with, as it cannot be told later: ids, log and the limits of connections. */
export function serverOptions(
  limits: Limits,
  logger: (LoggerOptions & { readonly stream?: DestinationStream }) | false = {},
) {
  return {
    logger: logger && { level: 'info', redact, ...logger, serializers: { req: () => ({}), ...logger.serializers } },
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: requestId,
    bodyLimit: limits.bodyBytes,
    requestTimeout: 1000 * limits.requestSeconds,
    keepAliveTimeout: 1000 * limits.idleSeconds,
    http: {
      headersTimeout: 1000 * Math.min(limits.headerSeconds, limits.requestSeconds),
      connectionsCheckingInterval: 1000,
    },
    forceCloseConnections: 'idle',
    // The form of this answer is ours, too; see health.ts.
    return503OnClosing: false,
    clientErrorHandler: answerClientError,
  } satisfies FastifyHttpOptions<Server>
}

/** Should someone log a request after all. */
const redact = ['*.authorization', '*.headers.authorization', 'headers.authorization']

/** The client's own id if it is plain, else a new one: what a client sends must not break a log. */
export function requestId({ headers }: Pick<IncomingMessage, 'headers'>): string {
  const given = headers['x-request-id']
  return typeof given === 'string' && /^[\w.-]{1,64}$/.test(given) ? given : randomUUID()
}

/** Logs each request once it has ended, and says its id to the client. */
export function logRequests(app: FastifyInstance, { logBodies = false } = {}): void {
  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id)
    const started = performance.now()
    onClosed(reply, () => {
      request.log.info(
        {
          method: request.method,
          route: routeOf(request),
          status: reply.statusCode,
          client: request.client?.name,
          ms: Math.round(performance.now() - started),
          ...(reply.raw.writableEnded ? {} : { isCutOff: true }),
        },
        'request',
      )
    })
  })
  if (logBodies)
    app.addHook('preHandler', async (request) => {
      if (request.body !== undefined) request.log.info({ body: request.body }, 'body')
    })
}
