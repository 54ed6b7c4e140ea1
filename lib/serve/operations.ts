/** Everything of a server that is not its API: keys, limits, ids, logs, metrics, health. */
import cors from '@fastify/cors'
import type { FastifyInstance } from 'fastify'
import plugin from 'fastify-plugin'
import type { ServerContext } from './context.js'
import { tellHealth } from './health.js'
import { askForKeys, type KeyRing } from './keys.js'
import { holdToLimits, type Limits, parseLimits } from './limits.js'
import { logRequests } from './log.js'
import { measure } from './metrics.js'
import { refuse } from './openai/refusal.js'

/** Options of {@link operations}. */
export interface OperationsOptions extends ServerContext {
  /** Default: none are asked for. */
  readonly keys?: KeyRing | undefined
  readonly limits?: Partial<Limits> | undefined
  /** Origins whose pages may ask, or '*'; default: none. */
  readonly cors?: '*' | readonly string[] | undefined
  /** Host names under which the server may be asked; default: any. */
  readonly hosts?: readonly string[] | undefined
  /** Logs what clients send, prompts included. */
  readonly logBodies?: boolean | undefined
  /** Called once the app is made; until it has ended, the server is not ready. */
  readonly warmUp?: (() => Promise<unknown>) | undefined
}

/** Registers it all, for the routes that the app gets after it. */
export const operations = plugin<OperationsOptions>(
  async (app, options) => {
    const limits = parseLimits(options.limits)
    logRequests(app, { logBodies: options.logBodies ?? false })
    // Before whatever may refuse a request, so that refusals are counted.
    measure(app, options.engine)
    if (options.cors !== undefined) await app.register(cors, { origin: options.cors === '*' ? '*' : [...options.cors] })
    answerOnlyTo(app, options.hosts)
    if (options.keys === undefined) refuseForeignPages(app, options.cors)
    askForKeys(app, options.keys)
    holdToLimits(app, limits)
    tellHealth(app, { warmUp: options.warmUp, isOpen: () => !options.engine.state().isClosed })
    watchKeys(app, options.keys)
  },
  { name: 'heddle-operations', fastify: '5.x' },
)

/**
 * Refuses requests that name another host: a page elsewhere can point its own name at this machine, and would be answered
 * as one of this server's.
 */
function answerOnlyTo(app: FastifyInstance, hosts: readonly string[] | undefined): void {
  if (hosts === undefined) return
  app.addHook('onRequest', async (request, reply) => {
    if (hosts.includes(request.hostname)) return undefined
    return refuse(reply, 403, {
      type: 'invalid_request_error',
      code: 'unknown_host',
      message: `This server does not answer to the name "${request.hostname.slice(0, 100)}".`,
    })
  })
}

/**
 * Refuses what a page of another origin sends: a browser asks before it lets a page read an answer, but not before it sends
 * a form or a file. Where there are keys, no page has one by itself.
 */
function refuseForeignPages(app: FastifyInstance, allowed: OperationsOptions['cors'] = []): void {
  app.addHook('onRequest', async (request, reply) => {
    const { origin } = request.headers
    if (origin === undefined || allowed === '*' || allowed.includes(origin)) return undefined
    if (URL.canParse(origin) && new URL(origin).host === request.host) return undefined
    return refuse(reply, 403, {
      type: 'invalid_request_error',
      code: 'unknown_origin',
      message: `This server does not answer to pages of "${origin.slice(0, 100)}".`,
    })
  })
}

function watchKeys(app: FastifyInstance, ring: KeyRing | undefined): void {
  const stop = ring?.watch((error) => {
    if (error === undefined) app.log.info({ keys: ring.names.length }, 'keys were read again')
    else app.log.error({ err: error }, 'keys could not be read again; the earlier ones stay')
  })
  app.addHook('onClose', async () => stop?.())
}
