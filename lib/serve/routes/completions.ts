/** `/v1/completions`: texts that go on from prompts, without a chat template. */
import type { FastifyInstance } from 'fastify'
import { z } from 'zod'
import type { GeneratedToken } from '../../model.js'
import type { ServerContext } from '../context.js'
import { invalidRequest } from '../openai/error.js'
import { clientSignal, sendEvents } from '../openai/events.js'
import { characters, completionLogprobs } from '../openai/logprobs.js'
import { integer, maybe, readBody, unsupported } from '../openai/request.js'
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
import { type TextPiece, textPieces, together } from '../openai/text.js'
import { texts } from '../openai/texts.js'

const schema = z.strictObject({
  ...samplingShape,
  prompt: texts,
  max_tokens: maybe(integer(0)),
  echo: maybe(z.boolean()),
  logprobs: maybe(integer(0, 5)),
  best_of: unsupported,
  suffix: unsupported,
})

type Body = z.output<typeof schema>

/** As with OpenAI. */
const defaultMaxTokens = 16

/** Adds the route. */
export async function completionRoutes(app: FastifyInstance, context: ServerContext): Promise<void> {
  app.post('/v1/completions', async (request, reply) => {
    const body = readBody(schema, request.body)
    const signal = clientSignal(reply, { seconds: request.limits.answerSeconds })
    const completion = await open(contextOf(context, request), body, signal)
    return body.stream ? sendEvents(request, reply, chunks(completion)) : whole(completion)
  })
}

interface Completion extends Accepted<Body> {
  /** One for each choice: prompt by prompt, each as often as is asked for. */
  readonly choices: readonly Choice[]
}

interface Choice {
  /** What is said before the text. */
  readonly echo: string
  readonly pieces: AsyncGenerator<TextPiece, void, void>
}

async function open(context: RouteContext, body: Body, signal: AbortSignal): Promise<Completion> {
  const { engine } = context
  adapterOf(context, body.model)
  expectStreamOptions(body)
  const { echo = false, logprobs, n = 1, max_tokens: given = defaultMaxTokens } = body
  if (echo && logprobs !== undefined)
    throw invalidRequest(
      "Unsupported parameter: 'logprobs' is not supported together with 'echo'.",
      'logprobs',
      'unsupported_parameter',
    )
  const { prompt: asked } = body
  if (asked.length * n > 128) throw invalidRequest("Invalid 'n': at most 128 texts in one request.", 'n')
  const prompts = await Promise.all(asked.map((text) => promptOf(context, text, echo)))
  const count = { completion: 0 }
  const choices = prompts.flatMap(({ tokens, text, room }, at) => {
    const maxTokens = newTokensOf(context, { given, room, param: 'max_tokens' })
    return range(n).map((choice) => ({
      echo: text,
      pieces:
        maxTokens === 0
          ? nothing()
          : textPieces(engine, {
              prompt: tokens,
              count,
              options: {
                ...engineOptions(context, body, { choice: at * n + choice, signal }),
                maxTokens,
                ...(logprobs === undefined ? {} : { logProbabilities: Math.max(1, logprobs) }),
              },
            }),
    }))
  })
  const promptTokens = prompts.reduce((sum, { tokens }) => sum + tokens.length, 0)
  return { context, body, id: newId('cmpl'), created: seconds(), promptTokens, count, choices }
}

/** @returns `text`: what `echo` says */
async function promptOf(context: RouteContext, given: string | Int32Array, echo: boolean) {
  const { tokenizer } = context.engine.model
  const tokens = typeof given === 'string' ? await tokenizer.encode(given) : given
  const room = await roomBehind(context, tokens, 'prompt')
  if (!echo) return { tokens, room, text: '' }
  return { tokens, room, text: typeof given === 'string' ? given : await tokenizer.decode(given) }
}

async function* nothing(): AsyncGenerator<TextPiece, void, void> {
  yield { text: '', tokens: [], end: 'length' }
}

async function whole(completion: Completion) {
  const { context, body, choices, count, promptTokens } = completion
  const made = choices.map(({ echo }) => ({ text: echo, tokens: [] as GeneratedToken[], reason: '' }))
  for await (const [index, { text, tokens, end }] of together(choices.map(({ pieces }) => pieces))) {
    const choice = made[index]!
    choice.text += text
    choice.tokens.push(...tokens)
    if (end !== undefined) choice.reason = end
  }
  return {
    ...head(completion),
    choices: await Promise.all(
      made.map(async ({ text, tokens, reason }, index) => ({
        text,
        index,
        logprobs: await logprobsOf(context, body, { tokens, offset: 0 }),
        finish_reason: reason,
      })),
    ),
    usage: usageOf(promptTokens, count),
  }
}

async function* chunks(completion: Completion): AsyncGenerator<unknown, void, void> {
  const { context, body, choices, count, promptTokens } = completion
  const withUsage = body.stream_options?.include_usage ?? false
  const offsets = choices.map(() => 0)
  for await (const [index, { text, tokens, end }] of together(choices.map(withEcho))) {
    const logprobs = await logprobsOf(context, body, { tokens, offset: offsets[index]! })
    offsets[index]! += characters(text)
    const choice = { text, index, logprobs, finish_reason: end ?? null }
    yield { ...head(completion), choices: [choice], ...(withUsage ? { usage: null } : {}) }
  }
  if (withUsage) yield { ...head(completion), choices: [], usage: usageOf(promptTokens, count) }
}

async function* withEcho({ echo, pieces }: Choice): AsyncGenerator<TextPiece, void, void> {
  if (echo !== '') yield { text: echo, tokens: [] }
  yield* pieces
}

const head = ({ id, created, body }: Completion) => ({ id, object: 'text_completion', created, model: body.model })

async function logprobsOf(
  { engine }: RouteContext,
  { logprobs: top }: Body,
  { tokens, offset }: { readonly tokens: readonly GeneratedToken[]; readonly offset: number },
) {
  return top === undefined ? null : completionLogprobs(engine.model.tokenizer, tokens, { top, offset })
}
