/** `/v1/models`: the base, the adapters and the encoder, each a model of its own for clients. */
import type { FastifyInstance } from 'fastify'
import type { ServerContext } from '../context.js'
import type { NamedEncoder } from '../openai/embedder.js'
import { modelNotFound } from '../openai/error.js'

/** Adds the routes. */
export async function modelRoutes(
  app: FastifyInstance,
  { engine, modelName, encoder }: ServerContext & { readonly encoder?: NamedEncoder | undefined },
): Promise<void> {
  const created = Math.floor(Date.now() / 1000)
  const cardOf = (id: string) => ({ id, object: 'model', created, owned_by: 'heddle' })
  const names = (): string[] => [modelName, ...engine.adapterNames, ...(encoder ? [encoder.name] : [])]
  app.get('/v1/models', async () => ({ object: 'list', data: names().map(cardOf) }))
  app.get<{ Params: { model: string } }>('/v1/models/:model', async ({ params: { model } }) => {
    if (!names().includes(model)) throw modelNotFound(model)
    return cardOf(model)
  })
}
