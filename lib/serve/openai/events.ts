/** Answers in server-sent events: one JSON object per event, the last one `[DONE]`. */
import { setMaxListeners } from 'node:events'
import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { onClosed } from '../closed.js'
import { toOpenAiError } from './error.js'

/**
 * Sends objects as they come. The first is awaited, so that what is wrong before there is any text has its own status;
 * later failures are an event with an `error`.
 */
export async function sendEvents(
  request: FastifyRequest,
  reply: FastifyReply,
  events: AsyncGenerator<unknown, void, void>,
): Promise<FastifyReply> {
  const first = await events.next()
  reply.headers({
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
    'x-accel-buffering': 'no',
  })
  const stream = Readable.from(lines({ request, reply }, first, events), { objectMode: false, highWaterMark: 2 ** 14 })
  // A client that has gone before anything is read closes a stream whose generator never began, and would never end.
  stream.once('close', () => void events.return().catch(() => {}))
  return reply.send(stream)
}

async function* lines(
  { request, reply }: { readonly request: FastifyRequest; readonly reply: FastifyReply },
  first: IteratorResult<unknown, void>,
  events: AsyncGenerator<unknown, void, void>,
): AsyncGenerator<string, void, void> {
  try {
    for (let next = first; !next.done; next = await events.next()) yield eventOf(next.value)
    yield 'data: [DONE]\n\n'
  } catch (error) {
    const { statusCode, body } = toOpenAiError(error)
    if (statusCode >= 500 && !reply.raw.destroyed) request.log.error({ err: error }, 'request failed')
    yield eventOf({ error: body })
  }
}

const eventOf = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`

/** When an answer ends that nobody has cut off. */
export interface AnswerLimits {
  /** So long after its beginning; the reason is then a TimeoutError. */
  readonly seconds?: number
  /** With this signal. (`AbortSignal.any` would keep a note of every answer as long as this one lives.) */
  readonly until?: AbortSignal
}

/** Set once the client has gone before it had the whole answer, or a limit is reached. */
export function clientSignal(reply: FastifyReply, { seconds, until }: AnswerLimits = {}): AbortSignal {
  const controller = new AbortController()
  // Each of a request's texts listens.
  setMaxListeners(0, controller.signal)
  const stop = (): void => controller.abort(until?.reason)
  until?.addEventListener('abort', stop, { once: true })
  if (until?.aborted) stop()
  const timer =
    seconds === undefined
      ? undefined
      : setTimeout(() => controller.abort(new DOMException('The answer took too long', 'TimeoutError')), 1000 * seconds)
  onClosed(reply, () => {
    clearTimeout(timer)
    until?.removeEventListener('abort', stop)
    if (!reply.raw.writableFinished) controller.abort()
  })
  return controller.signal
}
