/** Answers of those parts of the server that refuse a request before a route sees it, in OpenAI's form. */
import type { FastifyReply } from 'fastify'

/** See `error` in OpenAI's answers. */
export interface Refusal {
  readonly type: string
  readonly code: string
  readonly message: string
}

/** Ends a request with an error. */
export const refuse = (reply: FastifyReply, status: number, { type, code, message }: Refusal): FastifyReply =>
  reply.code(status).send({ error: { message, type, param: null, code } })
