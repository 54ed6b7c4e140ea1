/** What a client may take: bytes, tokens, requests at a time and per minute; and clients that take their time. */
import { isUtf8 } from 'node:buffer'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { z } from 'zod'
import { parseConfig } from '../config.js'
import type { Engine } from '../engine/engine.js'
import type { EngineRequestOptions } from '../engine/options.js'
import { HeddleError } from '../errors.js'
import type { Prompt } from '../model.js'
import { refuse } from './openai/refusal.js'

const count = z.int().min(1)

const schema = z.strictObject({
  bodyBytes: count.default(2 ** 20),
  jsonDepth: count.default(64),
  promptTokens: count.optional(),
  newTokens: count.default(4096),
  concurrency: count.default(64),
  requestsPerMinute: count.default(600),
  connections: count.default(1024),
  headerSeconds: z.number().positive().default(10),
  requestSeconds: z.number().positive().default(120),
  answerSeconds: z.number().positive().max(1e6).default(600),
  idleSeconds: z.number().positive().default(30),
})

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

/** With defaults filled in. @throws ERR_HEDDLE_ARGUMENT naming the limit */
export const parseLimits = (limits: Partial<Limits> = {}): Limits => parseConfig('limits', schema, limits)

/** Holds every request of an app that is no public one to the limits. */
export function holdToLimits(app: FastifyInstance, limits: Limits): void {
  app.addHook('onRoute', (route) => {
    route.bodyLimit ??= limits.bodyBytes
  })
  app.removeContentTypeParser('application/json')
  parseJsonWithin(app, limits.jsonDepth)
  const clients = new Clients(limits)
  app.addHook('onRequest', async (request, reply) =>
    request.client === null ? undefined : takePlace(clients, request.client.name, request, reply),
  )
  const stop = dropStalled(app, limits.idleSeconds)
  app.addHook('onClose', async () => stop())
}

/** JSON that is UTF-8, not nested so deeply that those who walk it run out of stack, and not of so many parts that it takes long. */
function parseJsonWithin(app: FastifyInstance, depth: number): void {
  const parse = app.getDefaultJsonParser('error', 'error')
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request: FastifyRequest, body: Buffer, done) => {
    if (!isUtf8(body)) return done(badRequest('The body is not UTF-8.'))
    const json = measured(body)
    if (json.depth > depth) return done(badRequest(`The body nests deeper than ${depth} levels.`))
    if (json.parts > mostParts)
      return done(badRequest(`The body has more than ${mostParts} strings, arrays and objects.`))
    if (json.commas > mostCommas) return done(badRequest(`The body has more than ${mostCommas} values.`))
    return parse(request, body.toString('utf8'), done)
  })
}

const badRequest = (message: string): Error => Object.assign(new Error(message), { statusCode: 400 })

const [quote, backslash, open, openArray, close, closeArray, comma] = [...'"\\{[}],'].map((char) => char.charCodeAt(0))

/** Strings, arrays and objects take time to read and to check: so many hold the event loop for some milliseconds. */
const mostParts = 2 ** 14
/** Numbers, such as token ids, take less. */
const mostCommas = 2 ** 18

/** Most brackets that are open at a time, and how much there is to read. */
function measured(json: Buffer): { readonly depth: number; readonly parts: number; readonly commas: number } {
  let [inside, depth, parts, commas, inString] = [0, 0, 0, 0, false]
  for (let i = 0; i < json.length; i += 1) {
    const byte = json[i]
    if (inString) {
      if (byte === backslash) i += 1
      else if (byte === quote) inString = false
    } else if (byte === quote) {
      inString = true
      parts += 1
    } else if (byte === open || byte === openArray) {
      inside += 1
      parts += 1
      depth = Math.max(depth, inside)
    } else if (byte === close || byte === closeArray) inside -= 1
    else if (byte === comma) commas += 1
  }
  return { depth, parts, commas }
}

/** Takes a place among a client's requests until the answer's connection has ended, or refuses with a time to wait. */
function takePlace(
  clients: Clients,
  name: string,
  request: FastifyRequest,
  reply: FastifyReply,
): FastifyReply | undefined {
  const taken = clients.take(name, performance.now() / 1000)
  if (typeof taken !== 'number') {
    reply.raw.once('close', taken.release)
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

/** How much every client has taken. An account that is as good as new is forgotten. */
export class Clients {
  readonly #accounts = new Map<string, Account>()

  constructor(readonly limits: Pick<Limits, 'concurrency' | 'requestsPerMinute'>) {}

  get size(): number {
    return this.#accounts.size
  }

  /**
   * Takes a place, to be released once.
   * @param now in seconds
   * @returns or the seconds after which it is worth to ask again
   */
  take(name: string, now: number): number | { readonly release: () => void } {
    const { concurrency, requestsPerMinute } = this.limits
    const account = this.#accounts.get(name) ?? { running: 0, tokens: requestsPerMinute, at: now }
    account.tokens = Math.min(requestsPerMinute, account.tokens + ((now - account.at) * requestsPerMinute) / 60)
    account.at = now
    if (account.tokens < 1) return ((1 - account.tokens) * 60) / requestsPerMinute
    if (account.running >= concurrency) return 1
    account.tokens -= 1
    account.running += 1
    this.#accounts.set(name, account)
    this.#forget(now)
    return {
      release: () => {
        account.running -= 1
      },
    }
  }

  /** Once there are many accounts, those that have nothing to remember go: addresses are as many as attackers like. */
  #forget(now: number): void {
    if (this.#accounts.size < 1024) return
    for (const [name, { running, at }] of this.#accounts)
      if (running === 0 && now - at >= 60) this.#accounts.delete(name)
  }
}

/** Ends connections whose client leaves an answer unread. @returns stops it */
function dropStalled(app: FastifyInstance, seconds: number): () => void {
  const answers = new Map<FastifyReply, { sent: number; since: number }>()
  app.addHook('onRequest', async (_, reply) => {
    answers.set(reply, { sent: 0, since: performance.now() })
    reply.raw.once('close', () => answers.delete(reply))
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

/** An engine that refuses prompts, and requests for new tokens, that are longer than a server allows. */
export function limitEngine(
  engine: Engine,
  { promptTokens, newTokens }: Pick<Limits, 'promptTokens' | 'newTokens'>,
): Engine {
  const expectFew = (place: string, most: number, got: number): void => {
    if (got > most)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected: `at most ${most} tokens`, got: `${got}` })
  }
  const tokensOf: Engine['promptTokens'] = async (prompt, options) => {
    const tokens = await engine.promptTokens(prompt, options)
    if (promptTokens !== undefined) expectFew('prompt', promptTokens, tokens.length)
    return tokens
  }
  async function* generateTokens(
    prompt: Prompt,
    options: EngineRequestOptions = {},
  ): ReturnType<Engine['generateTokens']> {
    const { maxTokens = newTokens, chat } = options
    expectFew('maxTokens', newTokens, maxTokens)
    yield* engine.generateTokens(await tokensOf(prompt, chat === undefined ? {} : { chat }), { ...options, maxTokens })
  }
  const limited: Pick<Engine, 'generate' | 'generateTokens' | 'promptTokens'> = {
    promptTokens: tokensOf,
    generateTokens,
    async *generate(prompt, options) {
      for await (const { text } of generateTokens(prompt, options)) if (text) yield text
    },
  }
  return new Proxy(engine, {
    get(target, name) {
      if (name in limited) return limited[name as keyof typeof limited]
      const value: unknown = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}
