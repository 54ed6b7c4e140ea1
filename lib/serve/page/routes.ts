/** The page at `/`: what the server has and does, to be looked at and tried by people. */
import { basename } from 'node:path'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { z } from 'zod'
import type { ServerContext } from '../context.js'
import { readBody } from '../openai/request.js'
import { type Assets, readAssets } from './assets.js'
import { type PageDocument, pageDocument } from './document.js'
import { LoadRecorder, loadInterval } from './load.js'
import type { BaseCard, PageLoad, PageModels } from './messages.js'
import { AdapterCards, baseCard } from './models.js'

const loadQuery = z.strictObject({ after: z.coerce.number().default(0) })

/**
 * Adds the page, its files, and what it asks for beside OpenAI's routes. The page itself holds nothing of the server, so it
 * needs no key; what it shows does.
 */
export async function pageRoutes(app: FastifyInstance, context: ServerContext): Promise<void> {
  serveFiles(app)
  answerPage(app, context)
}

function serveFiles(app: FastifyInstance): void {
  const config = { scope: 'public' } as const
  let opened: Promise<{ readonly assets: Assets; readonly document: PageDocument }> | undefined
  const open = async () => {
    const assets = await readAssets()
    return { assets, document: pageDocument(assets) }
  }
  const page = () => (opened ??= open())
  // Addresses in the page are relative to a path that ends with a slash.
  if (app.prefix !== '')
    app.get('/', { config, prefixTrailingSlash: 'no-slash' }, async (_, reply) =>
      reply.redirect(`./${basename(app.prefix)}/`, 308),
    )
  app.get('/', { config, prefixTrailingSlash: 'slash' }, async (request, reply) => {
    const { document } = await page()
    reply.headers({
      'content-security-policy': document.policy,
      'cross-origin-opener-policy': 'same-origin',
      'cache-control': 'no-cache',
    })
    return answer(request, reply, { type: 'text/html; charset=utf-8', body: document.html, version: document.version })
  })
  app.get<{ Params: { version: string; name: string } }>('/page/:version/:name', { config }, async (request, reply) => {
    const { files, version } = (await page()).assets
    const file = request.params.version === version ? files.get(request.params.name) : undefined
    if (!file) return reply.callNotFound()
    reply.header('cache-control', 'public, max-age=31536000, immutable')
    return answer(request, reply, { ...file, version })
  })
}

/** Sends a file, unless the browser has this version of it. */
function answer(
  { headers }: FastifyRequest,
  reply: FastifyReply,
  { type, body, version }: { readonly type: string; readonly body: string | Buffer; readonly version: string },
): FastifyReply {
  const etag = `"${version}"`
  reply.headers({
    etag,
    'x-content-type-options': 'nosniff',
    'cross-origin-resource-policy': 'same-origin',
    'referrer-policy': 'no-referrer',
  })
  if (headers['if-none-match'] === etag) return reply.code(304).send()
  return reply.type(type).send(body)
}

function answerPage(app: FastifyInstance, { engine, modelName, folders }: ServerContext): void {
  let base: Omit<BaseCard, 'newTokens'> | undefined
  const cards = new AdapterCards(folders.adapters)
  const load = new LoadRecorder(engine)
  app.addHook('onClose', async () => load.close())
  // A page asks every few seconds: its requests are logged where they fail.
  app.get('/page/models', { logLevel: 'warn' }, async ({ limits: { newTokens } }): Promise<PageModels> => {
    base ??= baseCard(modelName, engine)
    return { base: { ...base, newTokens }, adapters: await cards.list(engine) }
  })
  app.get('/page/load', { logLevel: 'warn', config: { scope: 'metrics' } }, async ({ query }): Promise<PageLoad> => {
    const { after } = readBody(loadQuery, query)
    return { interval: loadInterval, limits: load.limits, samples: load.since(after) }
  })
}
