/** `/healthz`: the process lives. `/readyz`: it takes requests. */
import type { FastifyInstance } from 'fastify'
import { refuse } from './openai/refusal.js'

/** Where a server is in its life. */
export type Phase = 'loading' | 'ready' | 'draining' | 'closed'

declare module 'fastify' {
  interface FastifyInstance {
    /** Where the server is in its life. */
    readonly life: Life
  }
}

/** Knows the phase of a server, which only goes forward. */
export class Life {
  #phase: Phase = 'loading'

  get phase(): Phase {
    return this.#phase
  }

  enter(phase: Phase): void {
    const order: readonly Phase[] = ['loading', 'ready', 'draining', 'closed']
    if (order.indexOf(phase) > order.indexOf(this.#phase)) this.#phase = phase
  }
}

/**
 * Adds both routes, and refuses what is asked of a server that ends.
 * @param warmUp until it has ended, the server is loading; when it fails, it stays so
 * @param isOpen whether the engine takes requests
 */
export function tellHealth(
  app: FastifyInstance,
  { warmUp, isOpen }: { readonly warmUp?: (() => Promise<unknown>) | undefined; readonly isOpen: () => boolean },
): void {
  const life = new Life()
  app.decorate('life', life)
  app.addHook('onReady', async () => {
    const ready = (): void => life.enter('ready')
    const failed = (error: unknown): void => app.log.error({ err: error }, 'warm-up failed: not ready')
    if (warmUp === undefined) ready()
    else void warmUp().then(ready, failed)
  })
  app.addHook('preClose', async () => life.enter('draining'))
  app.addHook('onClose', async () => life.enter('closed'))
  app.addHook('onRequest', async ({ routeOptions }, reply) => {
    const isEnding = life.phase === 'draining' || life.phase === 'closed' || !isOpen()
    if (!isEnding || routeOptions.config.scope === 'public') return undefined
    reply.headers({ connection: 'close', 'retry-after': 5 })
    return refuse(reply, 503, {
      type: 'server_error',
      code: 'server_closing',
      message: 'The server is about to end. Try again in some seconds.',
    })
  })
  const config = { scope: 'public' } as const
  app.get('/healthz', { config }, async () => ({ status: 'ok' }))
  app.get('/readyz', { config }, async (_, reply) => {
    const phase = life.phase === 'ready' && !isOpen() ? 'closed' : life.phase
    return reply.code(phase === 'ready' ? 200 : 503).send({ status: phase })
  })
}
