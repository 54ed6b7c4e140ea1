/** `/v1/embeddings`: one vector for each text. */
import type { FastifyInstance } from 'fastify'
import { z } from 'zod'
import { type Embedder, Embedders, type NamedEncoder } from '../openai/embedder.js'
import { invalidRequest, type OpenAiError } from '../openai/error.js'
import { clientSignal } from '../openai/events.js'
import { ignored, integer, maybe, readBody } from '../openai/request.js'
import type { RouteContext } from '../openai/route.js'
import { texts } from '../openai/texts.js'

const schema = z.strictObject({
  model: z.string().min(1),
  input: texts,
  encoding_format: maybe(z.enum(['float', 'base64'])),
  dimensions: maybe(integer(1)),
  user: ignored,
})

/** Options of {@link embeddingRoutes}. */
export interface EmbeddingContext extends RouteContext {
  readonly encoder?: NamedEncoder | undefined
}

/** Adds the route. */
export async function embeddingRoutes(app: FastifyInstance, context: EmbeddingContext): Promise<void> {
  const embedders = new Embedders(context, context.encoder)
  app.addHook('onClose', async () => embedders.dispose())
  app.post('/v1/embeddings', async (request, reply) => {
    const { model, input, encoding_format: form = 'float', dimensions } = readBody(schema, request.body)
    const embedder = embedders.named(model)
    const given = await Promise.all(input.map((text, index) => tokensOf(embedder, text, index)))
    const vectors = await embedder.embed(given, clientSignal(reply, context.answerSeconds))
    const size = vectors[0]!.length
    if (dimensions !== undefined && dimensions !== size)
      throw invalidRequest(`Invalid 'dimensions': this model's vectors have ${size}.`, 'dimensions', 'invalid_value')
    const tokens = given.reduce((sum, { length }) => sum + length, 0)
    return {
      object: 'list',
      data: vectors.map((vector, index) => ({ object: 'embedding', index, embedding: spelled(vector, form) })),
      model,
      usage: { prompt_tokens: tokens, total_tokens: tokens },
    }
  })
}

async function tokensOf(
  { tokenizer, vocabularySize, maxTokens }: Embedder,
  text: string | Int32Array,
  index: number,
): Promise<Int32Array> {
  const refuse = (what: string): OpenAiError => invalidRequest(`Invalid 'input': text ${index} ${what}.`, 'input')
  const tokens = typeof text === 'string' ? await tokenizer.encode(text) : text
  if (text.length === 0 || tokens.length === 0) throw refuse('is empty')
  if (tokens.length > maxTokens) throw refuse(`has ${tokens.length} tokens, at most ${maxTokens} are possible`)
  if (tokens.some((id) => id >= vocabularySize)) throw refuse(`has token ids of ${vocabularySize} or more`)
  return tokens
}

/** Base64 is of the little-endian f32 numbers. */
function spelled(vector: Float32Array, form: 'float' | 'base64'): string | number[] {
  if (form === 'float') return [...vector]
  const bytes = Buffer.alloc(4 * vector.length)
  vector.forEach((value, index) => void bytes.writeFloatLE(value, 4 * index))
  return bytes.toString('base64')
}
