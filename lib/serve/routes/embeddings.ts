/** `/v1/embeddings`: one vector for each text. */
import { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import { z } from 'zod'
import { pause } from '../../graph/pause.js'
import type { ServerContext } from '../context.js'
import { type Embedder, Embedders, type NamedEncoder } from '../openai/embedder.js'
import { invalidRequest, type OpenAiError } from '../openai/error.js'
import { clientSignal } from '../openai/events.js'
import { ignored, integer, maybe, readBody } from '../openai/request.js'
import { texts } from '../openai/texts.js'

const schema = z.strictObject({
  model: z.string().min(1),
  input: texts,
  encoding_format: maybe(z.enum(['float', 'base64'])),
  dimensions: maybe(integer(1)),
  user: ignored,
})

/** Options of {@link embeddingRoutes}. */
export interface EmbeddingContext extends ServerContext {
  readonly encoder?: NamedEncoder | undefined
}

/** Adds the route. */
export async function embeddingRoutes(app: FastifyInstance, context: EmbeddingContext): Promise<void> {
  const embedders = new Embedders(context, context.encoder)
  app.addHook('onClose', async () => embedders.dispose())
  app.post('/v1/embeddings', async (request, reply) => {
    const { model, input, encoding_format: form = 'float', dimensions } = readBody(schema, request.body)
    const { promptTokens, answerSeconds: seconds } = request.limits
    const signal = clientSignal(reply, { seconds })
    const embedder = embedders.named(model)
    const texts = await tokenized(embedder, input, Math.min(embedder.maxTokens, promptTokens ?? embedder.maxTokens))
    const vectors = await embedder.embed(texts, signal)
    const size = vectors[0]!.length
    if (dimensions !== undefined && dimensions !== size)
      throw invalidRequest(`Invalid 'dimensions': this model's vectors have ${size}.`, 'dimensions', 'invalid_value')
    const tokens = texts.reduce((sum, { length }) => sum + length, 0)
    const usage = { prompt_tokens: tokens, total_tokens: tokens }
    return reply.type('application/json; charset=utf-8').send(Readable.from(answer(vectors, { form, model, usage })))
  })
}

/** Texts that are on their way to the tokenizer at a time: each costs the event loop some microseconds. */
const textsAtOnce = 64

/** @throws OpenAiError 400 on texts of none, or of more than `most` tokens */
async function tokenized(
  { tokenizer, vocabularySize }: Embedder,
  texts: readonly (string | Int32Array)[],
  most: number,
): Promise<Int32Array[]> {
  const tokensOf = async (text: string | Int32Array, index: number): Promise<Int32Array> => {
    const refuse = (what: string): OpenAiError => invalidRequest(`Invalid 'input': text ${index} ${what}.`, 'input')
    if (text.length === 0) throw refuse('is empty')
    const tokens = typeof text === 'string' ? await tokenizer.encode(text) : text
    if (tokens.length === 0) throw refuse('is empty')
    if (tokens.length > most) throw refuse(`has ${tokens.length} tokens, at most ${most} are possible`)
    if (tokens.some((id) => id >= vocabularySize)) throw refuse(`has token ids of ${vocabularySize} or more`)
    return tokens
  }
  const made: Int32Array[] = []
  while (made.length < texts.length) {
    const first = made.length
    const some = texts.slice(first, first + textsAtOnce)
    made.push(...(await Promise.all(some.map((text, index) => tokensOf(text, first + index)))))
  }
  return made
}

/** The body, a vector at a time: thousands of them would hold the event loop. */
async function* answer(
  vectors: readonly Float32Array[],
  { form, ...rest }: { readonly form: 'float' | 'base64'; readonly model: string; readonly usage: object },
): AsyncGenerator<string, void, void> {
  yield '{"object":"list","data":['
  for (const [index, vector] of vectors.entries()) {
    await pause()
    const item = JSON.stringify({ object: 'embedding', index, embedding: spelled(vector, form) })
    yield index === 0 ? item : `,${item}`
  }
  yield `],${JSON.stringify(rest).slice(1)}`
}

/** Base64 is of the little-endian f32 numbers, which they are in memory, too. */
const spelled = (vector: Float32Array, form: 'float' | 'base64'): string | number[] =>
  form === 'float' ? [...vector] : Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString('base64')
