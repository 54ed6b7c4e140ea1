// Clients that mean harm or have broken down: each gets a clear status or the end of its connection, and leaves nothing.
import { once } from 'node:events'
import { setTimeout as after, setImmediate as turn } from 'node:timers/promises'
import test from 'ava'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { createEngine, type Engine, type Model } from '../lib/index.js'
import type { Limits } from '../lib/serve/limits.js'
import { clientSignal, sendEvents } from '../lib/serve/openai/events.js'
import { together } from '../lib/serve/openai/text.js'
import { modelRoutes } from '../lib/serve/routes/models.js'
import { RawClient, rawRequest } from './support/raw_client.js'
import { testServer } from './support/server.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel } from './tiny_model.js'

let model: Model
test.before('load', async () => {
  model = await tinyModel()
})
test.after.always('dispose', () => model?.dispose())

interface Served {
  readonly app: FastifyInstance
  readonly engine: Engine
  readonly url: string
}

/** A server that streams texts of a real model, and a route that never stops to write. */
async function served(limits: Partial<Limits> = {}): Promise<Served> {
  const engine = await createEngine(model, { adapters: temporaryFolder() })
  const routes = (app: FastifyInstance): void => {
    const folders = { data: temporaryFolder(), adapters: temporaryFolder() }
    app.register(modelRoutes, { engine, modelName: 'tiny', folders })
    app.post('/v1/echo', async (request) => request.body)
    const hungUp = async (_: FastifyRequest, reply: FastifyReply): Promise<void> => {
      app.server.emit('late')
      await once(reply.raw, 'close')
    }
    app.post('/v1/late', { preHandler: hungUp }, async (_, reply) => {
      app.server.emit('signal', clientSignal(reply))
      return {}
    })
    app.post('/v1/late-stream', { preHandler: hungUp }, (request, reply) => sendEvents(request, reply, lateEvents(app)))
    app.get('/v1/stream', async (_, reply) => {
      const stop = new AbortController()
      reply.raw.once('close', () => stop.abort())
      reply.hijack()
      reply.raw.writeHead(200)
      try {
        const options = { maxTokens: 100_000, signal: stop.signal, logitBias: { 0: -100 } }
        for await (const _ of engine.generateTokens('Once', options)) reply.raw.write('token ')
      } catch {}
      reply.raw.end()
    })
    app.get('/v1/flood', async (_, reply) => {
      reply.hijack()
      reply.raw.writeHead(200)
      const [piece, closed] = [Buffer.alloc(2 ** 16), once(reply.raw, 'close')]
      while (!reply.raw.destroyed) {
        const isFull = !reply.raw.write(piece)
        if (isFull) await Promise.race([once(reply.raw, 'drain'), closed])
        await turn()
      }
    })
  }
  const { app } = await testServer({ engine, routes, limits, level: 'silent' })
  return { app, engine, url: await app.listen({ port: 0, host: '127.0.0.1' }) }
}

/** One event, and a text behind it that fails as the client is gone. */
async function* lateEvents(app: FastifyInstance): AsyncGenerator<unknown, void, void> {
  async function* text(): AsyncGenerator<number, void, void> {
    yield 1
    throw new Error('nobody waits for this')
  }
  try {
    yield* together([text()])
  } finally {
    app.server.emit('ended')
  }
}

const connections = (app: FastifyInstance): Promise<number> =>
  new Promise((resolve, reject) =>
    app.server.getConnections((error, count) => (error ? reject(error) : resolve(count))),
  )

/** Waits for the server to be as it was before any client came. */
async function nothingLeft({ app, engine }: Served): Promise<void> {
  while ((await connections(app)) > 0 || engine.state().running > 0 || engine.state().waiting > 0) await turn()
  while (!(await app.inject('/metrics')).body.includes('heddle_http_requests_running 1\n')) await after(10)
}

const json = { 'content-type': 'application/json' }

test('a client that hangs up in the middle of a stream stops its text', async (t) => {
  const server = await served()
  const clients = await Promise.all([1, 2, 3].map(() => RawClient.connect(server.url)))
  for (const client of clients) await client.send(rawRequest('GET /v1/stream'))
  await clients[0]!.untilReceived('token')
  t.is(server.engine.state().running + server.engine.state().waiting, 3)
  for (const client of clients) client.socket.destroy()
  await nothingLeft(server)
  t.deepEqual(server.engine.state().running, 0)
  await server.app.close()
})

test('a client that hung up while its body came makes no text', async (t) => {
  const server = await served()
  const client = await RawClient.connect(server.url)
  await client.send(rawRequest('POST /v1/late', { ...json, 'content-length': '2' }, '{}'))
  await once(server.app.server, 'late')
  client.socket.destroy()
  const [signal] = (await once(server.app.server, 'signal')) as [AbortSignal]
  t.true(signal.aborted)
  await nothingLeft(server)
  await server.app.close()
})

test('a client that hung up before its stream began ends what was made for it, and nothing else', async (t) => {
  const server = await served()
  const client = await RawClient.connect(server.url)
  const ended = once(server.app.server, 'ended')
  await client.send(rawRequest('POST /v1/late-stream', { ...json, 'content-length': '2' }, '{}'))
  await once(server.app.server, 'late')
  client.socket.destroy()
  await ended
  await nothingLeft(server)
  await server.app.close()
  t.pass()
})

test('100 MB are refused by their length, before they come', async (t) => {
  const server = await served()
  const client = await RawClient.connect(server.url)
  await client.send(rawRequest('POST /v1/echo', { ...json, 'content-length': `${1e8}` }))
  await client.untilReceived('\r\n\r\n')
  t.is(client.status, 413)
  client.socket.destroy()
  await nothingLeft(server)
  await server.app.close()
})

test('100 MB without a length are refused once they are too many, and are not kept', async (t) => {
  const server = await served()
  global.gc!()
  const before = process.memoryUsage().rss
  const client = await RawClient.connect(server.url)
  await client.send(rawRequest('POST /v1/echo', { ...json, 'transfer-encoding': 'chunked' }))
  const piece = Buffer.from(`10000\r\n${' '.repeat(2 ** 16)}\r\n`)
  let sent = 0
  while (sent < 1e8 && client.status === undefined && (await client.send(piece))) {
    sent += piece.length
    await turn()
  }
  await client.untilReceived('\r\n\r\n')
  t.is(client.status, 413)
  t.true(sent < 3e7, `${sent} bytes were taken`)
  client.socket.destroy()
  await nothingLeft(server)
  global.gc!()
  t.true(process.memoryUsage().rss - before < 5e7)
  await server.app.close()
})

test('half a head is waited for only so long', async (t) => {
  const server = await served({ headerSeconds: 0.2 })
  const client = await RawClient.connect(server.url)
  await client.send('GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx-h')
  await client.untilClosed()
  t.is(client.status, 408)
  await nothingLeft(server)
  await server.app.close()
})

test('half a body is waited for only so long', async (t) => {
  const server = await served({ requestSeconds: 0.2 })
  const client = await RawClient.connect(server.url)
  await client.send(rawRequest('POST /v1/echo', { ...json, 'content-length': '100' }, '{"a":'))
  const answer = await client.untilClosed()
  t.is(client.status, 408)
  const { error } = JSON.parse(answer.split('\r\n\r\n')[1]!) as { readonly error: object }
  t.deepEqual(Object.keys(error), ['message', 'type', 'param', 'code'])
  t.like(error, { message: 'The request took too long to arrive.', type: 'invalid_request_error' })
  await nothingLeft(server)
  await server.app.close()
})

test('a client that sends a byte now and then gets no more time by it', async (t) => {
  const server = await served({ headerSeconds: 0.3 })
  const client = await RawClient.connect(server.url)
  await client.send('GET /healthz HTTP/1.1\r\n')
  let sent = 0
  while (sent < 1000 && (await client.send('x: y\r\n'.charAt(sent % 6)))) {
    sent += 1
    await after(20)
  }
  await client.untilClosed()
  t.is(client.status, 408)
  t.true(sent < 200)
  await nothingLeft(server)
  await server.app.close()
})

test('a client that does not read its answer is let go of', async (t) => {
  const server = await served({ idleSeconds: 0.3 })
  const client = await RawClient.connect(server.url)
  await client.send(rawRequest('GET /v1/flood'))
  await client.untilReceived('200 OK')
  client.socket.pause()
  await nothingLeft(server)
  t.is(await connections(server.app), 0)
  client.socket.destroy()
  await server.app.close()
})

test('500 connections at once: each request gets an answer, and none is left', async (t) => {
  const server = await served({ requestsPerMinute: 1000, concurrency: 50 })
  const clients = await Promise.all(Array.from({ length: 500 }, () => RawClient.connect(server.url)))
  await Promise.all(
    clients.map((client) => client.send(rawRequest('POST /v1/echo', { ...json, 'content-length': '2' }))),
  )
  // The places of those who got one stay taken until their body has come.
  while (clients.filter(({ status }) => status === 429).length < 450) await turn()
  await Promise.all(clients.map((client) => client.send('{}')))
  await Promise.all(clients.map((client) => client.untilReceived('\r\n\r\n')))
  const counts: Record<number, number> = {}
  for (const { status } of clients) counts[status!] = (counts[status!] ?? 0) + 1
  t.deepEqual(counts, { 200: 50, 429: 450 })
  for (const { socket } of clients) socket.destroy()
  await nothingLeft(server)
  await server.app.close()
})

test('connections beyond the limit are ended, and those within go on', async (t) => {
  const server = await served({ connections: 10 })
  server.app.server.maxConnections = 10
  const clients = await Promise.all(Array.from({ length: 30 }, () => RawClient.connect(server.url)))
  while (clients.filter(({ socket }) => socket.closed).length < 20) await turn()
  await Promise.all(clients.map((client) => client.send(rawRequest('GET /healthz', { connection: 'close' }))))
  await Promise.all(clients.map((client) => client.untilClosed()))
  t.is(clients.filter(({ status }) => status === 200).length, 10)
  t.is((await fetch(`${server.url}/healthz`)).status, 200)
  await server.app.close()
})

test('a head that is too large, or of too many lines, is refused', async (t) => {
  const server = await served()
  const large = await RawClient.connect(server.url)
  await large.send(rawRequest('GET /healthz', { 'x-large': 'a'.repeat(100_000) }))
  await large.untilClosed()
  t.is(large.status, 431)
  const many = await RawClient.connect(server.url)
  await many.send(
    rawRequest('GET /healthz', Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`x-${i}`, '1']))),
  )
  await many.untilClosed()
  t.is(many.status, 431)
  await nothingLeft(server)
  await server.app.close()
})

test('what is no HTTP at all is refused', async (t) => {
  const server = await served()
  for (const bytes of [Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]), '\0\0\0\0\r\n\r\n', 'GET\r\n\r\n']) {
    const client = await RawClient.connect(server.url)
    await client.send(bytes)
    await client.untilClosed()
    t.is(client.status, 400)
  }
  await nothingLeft(server)
  await server.app.close()
})

test('a request that two servers could read differently is refused', async (t) => {
  const server = await served()
  const twice = { ...json, 'content-length': '4', 'transfer-encoding': 'chunked' }
  const client = await RawClient.connect(server.url)
  await client.send(rawRequest('POST /v1/echo', twice, '0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\n\r\n'))
  await client.untilClosed()
  t.is(client.status, 400)
  t.false(client.received.includes('heddle_'))
  await server.app.close()
})

test('bodies that are broken get 400, however large', async (t) => {
  const server = await served()
  const deep = '['.repeat(500_000)
  for (const body of [deep, `${deep}${']'.repeat(500_000)}`, '{"a":'.repeat(100_000), '{', '\xff\xfe', 'null x']) {
    const client = await RawClient.connect(server.url)
    const bytes = Buffer.from(body, 'latin1')
    await client.send(
      rawRequest('POST /v1/echo', { ...json, connection: 'close', 'content-length': `${bytes.length}` }),
    )
    await client.send(bytes)
    await client.untilClosed()
    t.is(client.status, 400)
  }
  await nothingLeft(server)
  await server.app.close()
})

for (const path of [
  '/../../../../etc/passwd',
  '/%2e%2e/%2e%2e/etc/passwd',
  '/..%2f..%2f..%2fetc%2fpasswd',
  '/..%5c..%5cetc%5cpasswd',
  '/v1/models/../../../etc/passwd',
  '/v1/models/..%2f..%2f..%2fetc',
  '/v1/models/%00',
  '/v1/models/%',
  '//etc/passwd',
  'http://127.0.0.1/../etc/passwd',
])
  test(`${path} leads nowhere`, async (t) => {
    const server = await served()
    const client = await RawClient.connect(server.url)
    await client.send(rawRequest(`GET ${path}`, { connection: 'close' }))
    const answer = await client.untilClosed()
    t.true(client.status === 404 || client.status === 400, answer)
    t.notRegex(answer, /root:/)
    await server.app.close()
  })

for (const name of ['../../etc', '..', '.', '/etc', 'a/b', 'a\\b', '', 'a\0b', 'a\n'])
  test(`an adapter named ${JSON.stringify(name)} is neither added nor found`, async (t) => {
    const engine = await createEngine(model, { adapters: temporaryFolder() })
    await t.throwsAsync(engine.addAdapter(name, temporaryFolder()), { code: 'ERR_HEDDLE_ARGUMENT' })
    await t.throwsAsync(engine.generateTokens('a', { adapter: name, maxTokens: 1 }).next(), {
      code: 'ERR_HEDDLE_ARGUMENT',
    })
  })
