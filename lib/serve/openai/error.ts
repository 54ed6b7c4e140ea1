/** Failures as OpenAI's API tells them: a status, and a body `{ error: { message, type, param, code } }`. */
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { HeddleError } from '../../errors.js'

/** The `error` of a body. */
export interface OpenAiErrorBody {
  readonly message: string
  readonly type: string
  /** The field of the request that is wrong. */
  readonly param: string | null
  readonly code: string | null
}

/** A failure that a route knows the answer to. */
export class OpenAiError extends Error {
  constructor(
    readonly statusCode: number,
    readonly body: OpenAiErrorBody,
    readonly retryAfter?: number,
  ) {
    super(body.message)
  }
}

/** A request that cannot be answered as it is. */
export const invalidRequest = (message: string, param: string | null = null, code: string | null = null): OpenAiError =>
  new OpenAiError(400, { message, type: 'invalid_request_error', param, code })

/** A name that is neither the base's nor an adapter's. */
export const modelNotFound = (name: string): OpenAiError =>
  new OpenAiError(404, {
    message: `The model '${name}' does not exist or you do not have access to it.`,
    type: 'invalid_request_error',
    param: 'model',
    code: 'model_not_found',
  })

/** What a failure is to the client. What only concerns the server (paths, files, faults) stays in its log. */
export function toOpenAiError(error: unknown): OpenAiError {
  if (error instanceof OpenAiError) return error
  if (error instanceof HeddleError) return ofHeddle(error)
  const { statusCode = 500, message } = error as FastifyError
  return statusCode >= 400 && statusCode < 500
    ? new OpenAiError(statusCode, { message, type: 'invalid_request_error', param: null, code: null })
    : serverError(500, 'The server had an error while processing your request.')
}

function ofHeddle(error: HeddleError): OpenAiError {
  switch (error.code) {
    case 'ERR_HEDDLE_ARGUMENT':
      return ofArgument(error)
    case 'ERR_HEDDLE_BUSY':
      return new OpenAiError(
        429,
        { message: 'Too many requests wait already.', type: 'rate_limit_error', param: null, code: 'server_busy' },
        1,
      )
    case 'ERR_HEDDLE_ABORTED':
      return ofAbort(error)
    case 'ERR_HEDDLE_OOM':
      return serverError(503, 'The server has not enough memory for the request.')
    default:
      return serverError(500, 'The server had an error while processing your request.')
  }
}

/** An answer is cut off by the server's end, or by its limit of time. */
function ofAbort({ cause }: HeddleError): OpenAiError {
  if (!(cause instanceof DOMException) || cause.name !== 'TimeoutError')
    return serverError(503, 'The server stopped before the request had ended.')
  const message = 'The answer took longer than this server allows. Ask for fewer tokens.'
  return new OpenAiError(504, { message, type: 'server_error', param: null, code: 'answer_timeout' })
}

/** Options of the engine have the same names as fields of requests, but in camel case. */
function ofArgument({ place, expected, got, hint }: HeddleError): OpenAiError {
  const [, name] = /^(?:[a-z]\w*\.)?(\w+)$/.exec(place.replace(/\.(schema|pattern)\b.*/, '')) ?? []
  const param = name === undefined ? null : snakeCase(name)
  const what = param === null ? 'Invalid request' : `Invalid '${param}'`
  return invalidRequest(`${what}: expected ${expected}, got ${got}.${hint === undefined ? '' : ` ${hint}.`}`, param)
}

const snakeCase = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

const serverError = (status: number, message: string): OpenAiError =>
  new OpenAiError(status, { message, type: 'server_error', param: null, code: null })

/** For `setErrorHandler`. */
export function answerError(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const { statusCode, body, retryAfter } = toOpenAiError(error)
  // A client that is gone is no failure.
  if (statusCode >= 500 && !reply.raw.destroyed) request.log.error({ err: error }, 'request failed')
  if (retryAfter !== undefined) reply.header('retry-after', retryAfter)
  return reply.code(statusCode).send({ error: body })
}

/** For `setNotFoundHandler`. */
export const answerNotFound = (request: FastifyRequest, reply: FastifyReply): FastifyReply =>
  reply.code(404).send({
    error: {
      message: `Unknown request URL: ${request.method} ${request.url}.`,
      type: 'invalid_request_error',
      param: null,
      code: 'unknown_url',
    },
  })
