/** `/v1/models`: the base and the adapters, each a model of its own for clients. */
import type { FastifyInstance } from 'fastify'
import type { ServerContext } from '../context.js'
import { modelNotFound } from '../openai_error.js'

/** Adds the routes. */
export async function modelRoutes(app: FastifyInstance, { engine, modelName }: ServerContext): Promise<void> {
  const created = Math.floor(Date.now() / 1000)
  const cardOf = (id: string) => ({ id, object: 'model', created, owned_by: 'heddle' })
  app.get('/v1/models', async () => ({ object: 'list', data: [modelName, ...engine.adapterNames].map(cardOf) }))
  app.get<{ Params: { model: string } }>('/v1/models/:model', async ({ params: { model } }) => {
    if (model !== modelName && !engine.adapterNames.includes(model)) throw modelNotFound(model)
    return cardOf(model)
  })
}
