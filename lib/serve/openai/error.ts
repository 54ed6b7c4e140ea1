/** Failures as OpenAI's API tells them: a status, and a body `{ error: { message, type, param, code } }`. */
import type { Socket } from 'node:net'
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
  new OpenAiError(400, {
    message: brief(message, 2000),
    type: 'invalid_request_error',
    param: param === null ? null : brief(param),
    code,
  })

/** What a client sent is not sent back at any length. */
export const brief = (text: string, most = 100): string => (text.length > most ? `${text.slice(0, most)}…` : text)

/** A name that is neither the base's nor an adapter's. */
export const modelNotFound = (name: string): OpenAiError =>
  new OpenAiError(404, {
    message: `The model '${brief(name)}' does not exist or you do not have access to it. GET /v1/models lists those that do.`,
    type: 'invalid_request_error',
    param: 'model',
    code: 'model_not_found',
  })

/** What a failure is to the client. What only concerns the server (paths, files, faults) stays in its log. */
export function toOpenAiError(error: unknown): OpenAiError {
  if (error instanceof OpenAiError) return error
  if (error instanceof HeddleError) return ofHeddle(error)
  const { statusCode = 500, code, message } = error as FastifyError
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE')
    return new OpenAiError(415, {
      message: "Send the body as JSON, with the header 'content-type: application/json'.",
      type: 'invalid_request_error',
      param: null,
      code: null,
    })
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
  if (!(cause instanceof DOMException) || cause.name !== 'TimeoutError') return serverEnds()
  const message = 'The answer took longer than this server allows. Ask for fewer tokens.'
  return new OpenAiError(504, { message, type: 'server_error', param: null, code: 'answer_timeout' })
}

/** Options of the engine have the same names as fields of requests, but in camel case. */
function ofArgument({ place, expected, got, hint }: HeddleError): OpenAiError {
  // Taken away since the request was found to be in order.
  if (place === 'generate.adapter') return modelNotFound(got)
  const [, name] = /^(?:[a-z]\w*\.)?(\w+)$/.exec(place.replace(/\.(schema|pattern)\b.*/, '')) ?? []
  const param = name === undefined ? null : snakeCase(name)
  const what = param === null ? 'Invalid request' : `Invalid '${param}'`
  return invalidRequest(`${what}: expected ${expected}, got ${got}.${hint === undefined ? '' : ` ${hint}.`}`, param)
}

const snakeCase = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

const serverError = (status: number, message: string): OpenAiError =>
  new OpenAiError(status, { message, type: 'server_error', param: null, code: null })

/** What a request gets that a server does not live to answer. */
export const serverEnds = (): OpenAiError => serverError(503, 'The server stopped before the request had ended.')

/** For `setErrorHandler`. */
export function answerError(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const { statusCode, body, retryAfter } = toOpenAiError(error)
  // A client that is gone is no failure.
  if (statusCode >= 500 && !reply.raw.destroyed) request.log.error({ err: error }, 'request failed')
  if (retryAfter !== undefined) reply.header('retry-after', retryAfter)
  return reply.code(statusCode).send({ error: body })
}

/** What the parser of HTTP makes of a connection, by its code; what is none of these is no HTTP. */
const clientErrors: Readonly<Record<string, readonly [status: string, message: string]>> = {
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'The request took too long to arrive.'],
  HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', "The request's head is too large."],
}
const noHttp = ['400 Bad Request', 'The request cannot be read as HTTP.'] as const

/** For `clientErrorHandler`: ends a connection whose request never became one. */
export function answerClientError({ code = '' }: NodeJS.ErrnoException, socket: Socket): void {
  if (code === 'ECONNRESET' || socket.destroyed) return
  const [status, message] = clientErrors[code] ?? noHttp
  const error: OpenAiErrorBody = { message, type: 'invalid_request_error', param: null, code: null }
  const body = JSON.stringify({ error })
  const head = `content-length: ${Buffer.byteLength(body)}\r\ncontent-type: application/json; charset=utf-8\r\nconnection: close`
  if (socket.writable) socket.write(`HTTP/1.1 ${status}\r\n${head}\r\n\r\n${body}`)
  socket.destroy()
}

/** For `setNotFoundHandler`. */
export const answerNotFound = (request: FastifyRequest, reply: FastifyReply): FastifyReply =>
  reply.code(404).send({
    error: {
      message: `Unknown request URL: ${request.method} ${brief(request.url, 200)}.`,
      type: 'invalid_request_error',
      param: null,
      code: 'unknown_url',
    },
  })
