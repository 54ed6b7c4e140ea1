/** Answers in server-sent events: one JSON object per event, the last one `[DONE]`. */
import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
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
  return reply.send(
    Readable.from(lines({ request, reply }, first, events), { objectMode: false, highWaterMark: 2 ** 14 }),
  )
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
  } finally {
    await events.return()
  }
}

const eventOf = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`

/** Set once the client has gone before it had the whole answer. */
export function clientSignal(reply: FastifyReply): AbortSignal {
  const controller = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) controller.abort()
  })
  return controller.signal
}
