/** Everything of a server that is not its API: keys, limits, ids, logs, metrics, health. */
import cors from '@fastify/cors'
import plugin from 'fastify-plugin'
import type { ServerContext } from './context.js'
import { tellHealth } from './health.js'
import { askForKeys, type KeyRing } from './keys.js'
import { holdToLimits, type Limits, parseLimits } from './limits.js'
import { logRequests } from './log.js'
import { measure } from './metrics.js'
import { refuse } from './refusal.js'

/** Options of {@link operations}. */
export interface OperationsOptions extends ServerContext {
  /** Default: none are asked for. */
  readonly keys?: KeyRing | undefined
  readonly limits?: Partial<Limits> | undefined
  /** Origins whose pages may ask, or '*'; default: none. */
  readonly cors?: '*' | readonly string[] | undefined
  /** Host names under which the server may be asked; default: any. Keeps pages of others away that point their name at this machine. */
  readonly hosts?: readonly string[] | undefined
  /** Logs what clients send, prompts included. */
  readonly logBodies?: boolean | undefined
  /** Until then the server is not ready. */
  readonly warmUp?: Promise<unknown> | undefined
}

/** Registers it all, for the routes that the app gets after it. */
export const operations = plugin<OperationsOptions>(
  async (app, options) => {
    const limits = parseLimits(options.limits)
    app.server.maxConnections = limits.connections
    logRequests(app, { logBodies: options.logBodies ?? false })
    if (options.cors !== undefined) await app.register(cors, { origin: options.cors === '*' ? '*' : [...options.cors] })
    const { hosts } = options
    if (hosts !== undefined)
      app.addHook('onRequest', async (request, reply) =>
        hosts.includes(request.hostname)
          ? undefined
          : refuse(reply, 403, {
              type: 'invalid_request_error',
              code: 'unknown_host',
              message: `This server is not asked by the name "${request.hostname.slice(0, 100)}".`,
            }),
      )
    askForKeys(app, options.keys)
    holdToLimits(app, limits)
    measure(app, options.engine)
    tellHealth(app, { warmUp: options.warmUp, isOpen: () => !options.engine.state().isClosed })
    watchKeys(app, options.keys)
  },
  { name: 'heddle-operations', fastify: '5.x' },
)

function watchKeys(app: Parameters<typeof askForKeys>[0], ring: KeyRing | undefined): void {
  const stop = ring?.watch((error) => {
    if (error === undefined) app.log.info({ keys: ring.names.length }, 'keys were read again')
    else app.log.error({ err: error }, 'keys could not be read again; the earlier ones stay')
  })
  app.addHook('onClose', async () => stop?.())
}
