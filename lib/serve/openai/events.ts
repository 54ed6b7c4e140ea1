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

/**
 * Set once the client has gone before it had the whole answer, and, where that is limited, once the answer has taken so many
 * seconds; its reason is then a TimeoutError.
 */
export function clientSignal(reply: FastifyReply, seconds?: number): AbortSignal {
  const controller = new AbortController()
  // Each of a request's texts listens.
  setMaxListeners(0, controller.signal)
  const timer =
    seconds === undefined
      ? undefined
      : setTimeout(() => controller.abort(new DOMException('The answer took too long', 'TimeoutError')), 1000 * seconds)
  onClosed(reply, () => {
    clearTimeout(timer)
    if (!reply.raw.writableFinished) controller.abort()
  })
  return controller.signal
}
