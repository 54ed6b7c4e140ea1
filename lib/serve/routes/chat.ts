/** `/v1/chat/completions`: the next turn of a conversation. */
import type { FastifyInstance } from 'fastify'
import { z } from 'zod'
import type { EngineRequestOptions } from '../../engine/options.js'
import { HeddleError } from '../../errors.js'
import type { GeneratedToken } from '../../model.js'
import type { ServerContext } from '../context.js'
import { invalidRequest } from '../openai/error.js'
import { clientSignal, sendEvents } from '../openai/events.js'
import { chatLogprobs } from '../openai/logprobs.js'
import { chatMessages, messages } from '../openai/messages.js'
import { integer, list, maybe, readBody, unsupported } from '../openai/request.js'
import {
  type Accepted,
  adapterOf,
  contextOf,
  engineOptions,
  expectStreamOptions,
  newId,
  newTokensOf,
  type RouteContext,
  range,
  roomBehind,
  seconds,
  usageOf,
} from '../openai/route.js'
import { samplingShape } from '../openai/sampling.js'
import { together } from '../openai/text.js'
import { describedTools, type ToolUse, toolShape, toolUse } from '../openai/tools.js'
import { type ToolCall, type TurnPiece, turn } from '../openai/turn.js'

const format = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({
    type: z.literal('json_schema'),
    json_schema: z.strictObject({
      name: z
        .string()
        .regex(/^[a-zA-Z0-9_-]+$/)
        .max(64),
      description: maybe(z.string()),
      schema: maybe(z.record(z.string(), z.unknown())),
      strict: maybe(z.boolean()),
    }),
  }),
])

const schema = z.strictObject({
  ...samplingShape,
  ...toolShape,
  messages,
  max_tokens: maybe(integer(1)),
  max_completion_tokens: maybe(integer(1)),
  logprobs: maybe(z.boolean()),
  top_logprobs: maybe(integer(0, 20)),
  response_format: maybe(format),
  modalities: maybe(list(z.literal('text'), 1)),
  store: maybe(z.literal(false)),
  audio: unsupported,
  prediction: unsupported,
  reasoning_effort: unsupported,
  verbosity: unsupported,
  web_search_options: unsupported,
})

type Body = z.output<typeof schema>

/** Adds the route. */
export async function chatRoutes(app: FastifyInstance, context: ServerContext): Promise<void> {
  app.post('/v1/chat/completions', async (request, reply) => {
    const body = readBody(schema, request.body)
    const signal = clientSignal(reply, { seconds: request.limits.answerSeconds })
    const chat = await openChat(contextOf(context, request), body, signal)
    return body.stream ? sendEvents(request, reply, chunks(chat)) : completion(chat)
  })
}

interface Chat extends Accepted<Body> {
  /** One for each choice. */
  readonly turns: readonly AsyncGenerator<TurnPiece, void, void>[]
}

async function openChat(context: RouteContext, body: Body, signal: AbortSignal): Promise<Chat> {
  const { engine } = context
  adapterOf(context, body.model)
  expectStreamOptions(body)
  const asked = maxTokensOf(body)
  const responseFormat = responseFormatOf(body)
  const top = topOf(body)
  const { tokenizer, network } = engine.model
  const use = await toolUse(body, { tokenizer, vocabularySize: network.vocabularySize })
  if (use && responseFormat)
    throw invalidRequest(
      "Unsupported parameter: 'response_format' is not supported together with 'tools' that may be called.",
      'response_format',
      'unsupported_parameter',
    )
  const text = await rendered(context, body, use)
  const tokens = await tokenizer.encode(text, { addSpecialTokens: false })
  const room = await roomBehind(context, tokens, 'messages')
  const maxTokens = newTokensOf(context, { ...asked, room })
  const count = { completion: 0 }
  const turns = range(body.n ?? 1).map((choice) =>
    turn(engine, {
      text,
      tokens,
      use,
      count,
      maxTokens,
      options: {
        ...engineOptions(context, body, { choice, signal }),
        ...(top === undefined ? {} : { logProbabilities: Math.max(1, top) }),
        ...(responseFormat === undefined ? {} : { responseFormat }),
      },
    }),
  )
  return { context, body, id: newId('chatcmpl'), created: seconds(), promptTokens: tokens.length, count, turns }
}

/** The older name is as good as the newer one. */
function maxTokensOf({ max_tokens, max_completion_tokens }: Body) {
  if (max_tokens !== undefined && max_completion_tokens !== undefined)
    throw invalidRequest(
      "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
      'max_tokens',
      'invalid_parameter_combination',
    )
  if (max_completion_tokens === undefined) return { given: max_tokens, param: 'max_tokens' }
  return { given: max_completion_tokens, param: 'max_completion_tokens' }
}

function responseFormatOf({ response_format }: Body): EngineRequestOptions['responseFormat'] {
  if (response_format === undefined || response_format.type === 'text') return undefined
  if (response_format.type === 'json_object') return response_format
  return { type: 'json_schema', schema: response_format.json_schema.schema ?? true }
}

/** How many of the most likely tokens are told of with each; undefined where none is, nor the token's own share. */
function topOf({ logprobs = false, top_logprobs }: Body): number | undefined {
  if (logprobs) return top_logprobs ?? 0
  if (top_logprobs === undefined || top_logprobs === 0) return undefined
  throw invalidRequest(
    "Invalid value for 'top_logprobs': it is only allowed when 'logprobs' is true.",
    'top_logprobs',
    'invalid_parameter_combination',
  )
}

/** The conversation as the model's template writes it. */
async function rendered({ engine }: RouteContext, body: Body, use: ToolUse | undefined): Promise<string> {
  const tools = use === undefined ? {} : { tools: describedTools(use.tools) }
  try {
    const given = await chatMessages(body.messages)
    return await engine.model.tokenizer.applyChatTemplate(given, { addGenerationPrompt: true, ...tools })
  } catch (error) {
    if (!(error instanceof HeddleError) || error.code !== 'ERR_HEDDLE_ARGUMENT') throw error
    if (!engine.model.tokenizer.hasChatTemplate)
      throw invalidRequest('This is not a chat model: it has no chat template. Use /v1/completions.', 'model')
    throw invalidRequest(`Invalid 'messages': the model's chat template refuses them: ${error.got}.`, 'messages')
  }
}

async function completion(chat: Chat) {
  const { body, count, promptTokens, turns } = chat
  const choices = turns.map(() => new Choice())
  for await (const [index, piece] of together(turns)) choices[index]!.take(piece)
  return {
    ...head(chat, 'chat.completion'),
    choices: await Promise.all(
      choices.map(async ({ text, tokens, calls, reason }, index) => ({
        index,
        message: {
          role: 'assistant',
          content: text === '' && calls.length > 0 ? null : text,
          refusal: null,
          ...(calls.length === 0 ? {} : { tool_calls: calls }),
        },
        logprobs: await logprobsOf(chat, tokens),
        finish_reason: reason,
      })),
    ),
    usage: usageOf(promptTokens, count),
    ...(body.service_tier === undefined ? {} : { service_tier: 'default' }),
  }
}

/** What a turn has come to. */
class Choice {
  text = ''
  tokens: GeneratedToken[] = []
  calls: ToolCall[] = []
  reason: string | null = null

  take(piece: TurnPiece): void {
    if (piece.kind === 'call') this.calls.push(piece.call)
    else if (piece.kind === 'end') this.reason = piece.reason
    else {
      this.text += piece.text
      this.tokens.push(...piece.tokens)
    }
  }
}

/** The answer in pieces, as it is made. */
async function* chunks(chat: Chat): AsyncGenerator<unknown, void, void> {
  const { body, count, promptTokens, turns } = chat
  const withUsage = body.stream_options?.include_usage ?? false
  const chunk = (index: number, delta: object, rest: { logprobs?: unknown; finish_reason?: string } = {}) => ({
    ...head(chat, 'chat.completion.chunk'),
    choices: [{ index, delta, logprobs: null, finish_reason: null, ...rest }],
    ...(withUsage ? { usage: null } : {}),
  })
  const begun = new Set<number>()
  const calls = turns.map(() => 0)
  for await (const [index, piece] of together(turns)) {
    if (!begun.has(index))
      yield chunk(index, { role: 'assistant', content: piece.kind === 'call' ? null : '', refusal: null })
    begun.add(index)
    if (piece.kind === 'end') yield chunk(index, {}, { finish_reason: piece.reason })
    else if (piece.kind === 'call') yield chunk(index, { tool_calls: [{ index: calls[index]!++, ...piece.call }] })
    else yield chunk(index, { content: piece.text }, { logprobs: await logprobsOf(chat, piece.tokens) })
  }
  if (withUsage) yield { ...head(chat, 'chat.completion.chunk'), choices: [], usage: usageOf(promptTokens, count) }
}

const head = ({ id, created, body }: Chat, object: string) => ({ id, object, created, model: body.model })

async function logprobsOf({ context, body }: Chat, tokens: readonly GeneratedToken[]) {
  if (!body.logprobs) return null
  const { tokenizer } = context.engine.model
  return { content: await chatLogprobs(tokenizer, tokens, body.top_logprobs ?? 0), refusal: null }
}
