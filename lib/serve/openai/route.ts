/** What the routes that make text have in common. */
import { randomBytes } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import type { EngineRequestOptions } from '../../engine/options.js'
import { HeddleError } from '../../errors.js'
import type { ServerContext } from '../context.js'
import { limitEngine } from '../limited_engine.js'
import { invalidRequest, modelNotFound } from './error.js'
import { type SamplingFields, samplingOf } from './sampling.js'
import type { TokenCount } from './text.js'

/** What a request has of the server. */
export interface RouteContext extends ServerContext {
  /** New tokens of a request that does not say how many; more are refused. */
  readonly newTokens: number
}

/** The server within the limits of a request's client. */
export const contextOf = ({ engine, modelName, folders }: ServerContext, { limits }: FastifyRequest): RouteContext => ({
  engine: limitEngine(engine, limits),
  modelName,
  folders,
  newTokens: limits.newTokens,
})

/** A request that is in order. */
export interface Accepted<Body> {
  readonly context: RouteContext
  readonly body: Body
  readonly id: string
  readonly created: number
  readonly promptTokens: number
  readonly count: TokenCount
}

/** The adapter that a name stands for; undefined for the model alone. @throws OpenAiError 404 */
export function adapterOf({ engine, modelName }: ServerContext, name: string): string | undefined {
  if (name === modelName) return undefined
  if (engine.adapterNames.includes(name)) return name
  throw modelNotFound(name)
}

/** New tokens that there is room for. @throws OpenAiError 400 when the prompt is too long, or none that the model knows */
export async function roomBehind(
  { engine }: ServerContext,
  prompt: Int32Array,
  param: 'messages' | 'prompt',
): Promise<number> {
  const { maxTokens } = engine.state()
  if (prompt.length === 0) throw invalidRequest(`Invalid '${param}': it has no tokens.`, param)
  if (prompt.length >= maxTokens)
    throw invalidRequest(
      `This model's maximum context length is ${maxTokens} tokens. However, your ${param} resulted in ${prompt.length} tokens. Please reduce the length of the ${param}.`,
      param,
      'context_length_exceeded',
    )
  try {
    await engine.promptTokens(prompt)
  } catch (error) {
    if (!(error instanceof HeddleError) || error.code !== 'ERR_HEDDLE_ARGUMENT') throw error
    throw invalidRequest(`Invalid '${param}': expected ${error.expected}, got ${error.got}.`, param)
  }
  return maxTokens - prompt.length
}

/** New tokens of a text: those that are asked for, as far as there is room. @throws OpenAiError 400 */
export function newTokensOf(
  { newTokens }: RouteContext,
  {
    given = newTokens,
    room,
    param,
  }: { readonly given: number | undefined; readonly room: number; readonly param: string },
): number {
  if (given > newTokens)
    throw invalidRequest(
      `Invalid '${param}': integer above maximum value. Expected a value <= ${newTokens}, but got ${given} instead.`,
      param,
      'integer_above_max_value',
    )
  return Math.min(given, room)
}

/** What the engine is told for one of the texts. */
export const engineOptions = (
  context: ServerContext,
  body: SamplingFields,
  { choice, signal }: { readonly choice: number; readonly signal: AbortSignal },
): EngineRequestOptions => ({
  ...samplingOf(body, choice),
  chat: false,
  adapter: adapterOf(context, body.model),
  signal,
})

/** @throws OpenAiError 400 */
export function expectStreamOptions({ stream, stream_options }: SamplingFields): void {
  if (stream_options !== undefined && stream !== true)
    throw invalidRequest("The 'stream_options' parameter is only allowed when 'stream' is enabled.", 'stream_options')
}

/** The field `usage`. */
export const usageOf = (promptTokens: number, { completion }: TokenCount) => ({
  prompt_tokens: promptTokens,
  completion_tokens: completion,
  total_tokens: promptTokens + completion,
})

/** A new name, e.g. of an answer: chatcmpl-… */
export const newId = (kind: string, separator = '-'): string => `${kind}${separator}${randomBytes(12).toString('hex')}`

/** Now, in OpenAI's unit. */
export const seconds = (): number => Math.floor(Date.now() / 1000)

/** The numbers from 0 to below `count`. */
export const range = (count: number): number[] => Array.from({ length: count }, (_, index) => index)
