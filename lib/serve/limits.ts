/** What a client may take: bytes, tokens, requests at a time and per minute; and clients that take their time. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { onClosed } from './closed.js'
import { parseJsonWithin } from './json_body.js'
import { refuse } from './openai/refusal.js'

const count = z.int().min(1)

const seconds = z.number().positive()

/** What each client has a limit of its own for, where its key says so. */
const ofClient = {
  bodyBytes: count,
  promptTokens: count,
  newTokens: count,
  concurrency: count,
  requestsPerMinute: count,
  answerSeconds: seconds.max(1e6),
}

const schema = z.strictObject({
  bodyBytes: ofClient.bodyBytes.default(2 ** 20),
  promptTokens: ofClient.promptTokens.optional(),
  newTokens: ofClient.newTokens.default(4096),
  concurrency: ofClient.concurrency.default(64),
  requestsPerMinute: ofClient.requestsPerMinute.default(600),
  answerSeconds: ofClient.answerSeconds.default(600),
  jsonDepth: count.default(64),
  connections: count.default(1024),
  headerSeconds: seconds.default(10),
  requestSeconds: seconds.default(120),
  idleSeconds: seconds.default(30),
})
const clientSchema = z.strictObject(ofClient).partial()

/** What clients are held to. */
export interface Limits {
  /** Most bytes of a body, except on routes that say otherwise; default 1 MiB. */
  readonly bodyBytes: number
  /** Most arrays and objects within each other; default 64. */
  readonly jsonDepth: number
  /** Most tokens of a prompt; default: what the model takes. */
  readonly promptTokens?: number | undefined
  /** Most tokens that a request may ask for, and how many it gets if it does not say; default 4096. */
  readonly newTokens: number
  /** Most requests of one key at a time; default 64. */
  readonly concurrency: number
  /** Most requests of one key per minute; default 600. As many may come at once. */
  readonly requestsPerMinute: number
  /** Most connections of all clients; default 1024. */
  readonly connections: number
  /** Longest time for the head of a request; default 10. */
  readonly headerSeconds: number
  /** Longest time for a request's head and body; default 120. */
  readonly requestSeconds: number
  /** Longest time for making texts or vectors; default 600. */
  readonly answerSeconds: number
  /** Longest time that a connection rests between requests, and that a client may leave an answer unread; default 30. */
  readonly idleSeconds: number
}

/** Limits that a key has of its own, in the place of the server's. */
export type ClientLimits = Partial<Pick<Limits, keyof typeof ofClient>>

declare module 'fastify' {
  interface FastifyRequest {
    /** What its client is held to. */
    readonly limits: Limits
  }
}

/** With defaults filled in. @throws ERR_HEDDLE_ARGUMENT naming the limit */
export const parseLimits = (limits: Partial<Limits> = {}): Limits => parseConfig('limits', schema, limits)

/** @param place what they are of. @throws ERR_HEDDLE_ARGUMENT naming the limit */
export const parseClientLimits = (place: string, limits: ClientLimits): ClientLimits =>
  parseConfig(place, clientSchema, limits) as ClientLimits

/** Holds every request of an app that is no public one to the limits, or to those of its client's own. */
export function holdToLimits(app: FastifyInstance, limits: Limits): void {
  app.decorateRequest('limits', {
    getter(this: FastifyRequest): Limits {
      return { ...limits, ...this.client?.limits }
    },
  })
  parseJsonWithin(app, limits.jsonDepth)
  const clients = new Clients()
  app.addHook('onRequest', async (request, reply) =>
    request.client === null ? undefined : takePlace(clients, request.client.name, request, reply),
  )
  const stop = dropStalled(app, limits.idleSeconds)
  app.addHook('onClose', async () => stop())
}

/** Takes a place among a client's requests until the answer's connection has ended, or refuses with a time to wait. */
function takePlace(
  clients: Clients,
  name: string,
  request: FastifyRequest,
  reply: FastifyReply,
): FastifyReply | undefined {
  const taken = clients.take(name, request.limits, performance.now() / 1000)
  if (typeof taken !== 'number') {
    onClosed(reply, taken.release)
    return undefined
  }
  request.log.debug({ client: name, seconds: taken }, 'too many requests')
  reply.header('retry-after', Math.max(1, Math.ceil(taken)))
  return refuse(reply, 429, {
    type: 'rate_limit_error',
    code: 'rate_limit_exceeded',
    message: `Too many requests of "${name}". Try again in ${Math.max(1, Math.ceil(taken))} s.`,
  })
}

interface Account {
  running: number
  /** Requests that may still come at once; grows with time. */
  tokens: number
  /** When `tokens` was right, in seconds. */
  at: number
}

/** Accounts from which on those that nothing is known of any more are looked for. */
const manyAccounts = 1024

/** How much every client has taken. An account that is as good as new is forgotten. */
export class Clients {
  readonly #accounts = new Map<string, Account>()
  #sweepAt = manyAccounts

  get size(): number {
    return this.#accounts.size
  }

  /**
   * Takes a place, to be released once.
   * @param now in seconds
   * @returns or the seconds after which it is worth to ask again
   */
  take(
    name: string,
    { concurrency, requestsPerMinute }: Pick<Limits, 'concurrency' | 'requestsPerMinute'>,
    now: number,
  ): number | { readonly release: () => void } {
    const account = this.#accounts.get(name) ?? { running: 0, tokens: requestsPerMinute, at: now }
    account.tokens = Math.min(requestsPerMinute, account.tokens + ((now - account.at) * requestsPerMinute) / 60)
    account.at = now
    if (account.tokens < 1) return ((1 - account.tokens) * 60) / requestsPerMinute
    if (account.running >= concurrency) return 1
    account.tokens -= 1
    account.running += 1
    this.#accounts.set(name, account)
    if (this.#accounts.size >= this.#sweepAt) this.#sweep(now)
    return {
      release: () => {
        account.running -= 1
      },
    }
  }

  /** Addresses are as many as attackers like: looking at all of them costs a constant part of a request. */
  #sweep(now: number): void {
    for (const [name, { running, at }] of this.#accounts)
      if (running === 0 && now - at >= 60) this.#accounts.delete(name)
    this.#sweepAt = Math.max(manyAccounts, 2 * this.#accounts.size)
  }
}

/** Ends connections whose client leaves an answer unread. @returns stops it */
function dropStalled(app: FastifyInstance, seconds: number): () => void {
  const answers = new Map<FastifyReply, { sent: number; since: number }>()
  app.addHook('onRequest', async (_, reply) => {
    answers.set(reply, { sent: 0, since: performance.now() })
    onClosed(reply, () => answers.delete(reply))
  })
  const look = (): void => {
    const now = performance.now()
    for (const [reply, answer] of answers) {
      const { socket } = reply.raw
      const moved =
        socket === null || socket.writableLength === 0 || socket.bytesWritten - socket.writableLength !== answer.sent
      if (moved) Object.assign(answer, { sent: socket ? socket.bytesWritten - socket.writableLength : 0, since: now })
      else if (now - answer.since > 1000 * seconds) socket.destroy()
    }
  }
  const timer = setInterval(look, Math.min(1000, 250 * seconds)).unref()
  return () => clearInterval(timer)
}
