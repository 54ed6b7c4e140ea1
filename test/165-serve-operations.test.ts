// What runs a server day by day: health, readiness, metrics, logs without secrets, ids, and a graceful end.
import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import { join } from 'node:path'
import { monitorEventLoopDelay, PerformanceObserver } from 'node:perf_hooks'
import { setImmediate as turn } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import type { FastifyInstance } from 'fastify'
import { addKey, KeyRing } from '../lib/serve/keys.js'
import { limitEngine } from '../lib/serve/limited_engine.js'
import { requestId } from '../lib/serve/log.js'
import type { OperationsOptions } from '../lib/serve/operations.js'
import { shutDown, watchConnections } from '../lib/serve/shutdown.js'
import { deferred } from './support/deferred.js'
import { HandEngine, testServer } from './support/server.js'
import { temporaryFolder } from './support/temporary_folder.js'

const echo = (app: FastifyInstance): void => {
  app.post('/v1/echo', async (request) => request.body)
  app.get('/v1/files/:id', async () => 'x')
  app.get('/v1/broken', async () => {
    throw new Error('a broken part')
  })
}

/** The value of a metric's line. */
const metric = (text: string, name: string): number | undefined => {
  const line = text.split('\n').find((each) => each.startsWith(`${name} `))
  return line === undefined ? undefined : Number(line.split(' ').at(-1))
}

const metricsOf = async (app: FastifyInstance): Promise<string> => (await app.inject('/metrics')).body

test('a server is alive at once and ready when it has warmed up', async (t) => {
  const warm = deferred<void>()
  const { app } = await testServer({ warmUp: () => warm.promise })
  await app.ready()
  t.is((await app.inject('/healthz')).statusCode, 200)
  const loading = await app.inject('/readyz')
  t.is(loading.statusCode, 503)
  t.deepEqual(loading.json(), { status: 'loading' })
  warm.resolve()
  await turn()
  t.deepEqual((await app.inject('/readyz')).json(), { status: 'ready' })
})

test('a server whose warm-up fails never becomes ready, and says why in its log', async (t) => {
  const { app, log } = await testServer({ warmUp: () => Promise.reject(new Error('no memory')) })
  await app.ready()
  await turn()
  t.deepEqual((await app.inject('/readyz')).json(), { status: 'loading' })
  t.like(log.at(-2), { err: { message: 'no memory' } })
})

test('a server with a closed engine is alive, but not ready', async (t) => {
  const { app, engine } = await testServer()
  await app.ready()
  await engine.close()
  const { statusCode, body } = await app.inject('/readyz')
  t.deepEqual([statusCode, JSON.parse(body)], [503, { status: 'closed' }])
  t.is((await app.inject('/healthz')).statusCode, 200)
})

test('metrics count what the engine tells', async (t) => {
  const { app, engine } = await testServer()
  engine.tell(({ onStep }) => onStep?.({ texts: 3, promptTokens: 20, newTokens: 2, seconds: 0.02 }))
  engine.tell(({ onStep }) => onStep?.({ texts: 5, promptTokens: 0, newTokens: 5, seconds: 0.01 }))
  engine.tell(({ onFirstToken }) => onFirstToken?.({ adapter: 'a', seconds: 0.2 }))
  engine.tell(({ onAdapter }) => onAdapter?.({ name: 'a', isLoaded: false }))
  for (const _ of [1, 2]) engine.tell(({ onAdapter }) => onAdapter?.({ name: 'a', isLoaded: true }))
  engine.tell(({ onEvict }) => onEvict?.({ name: 'b' }))
  const end = { adapter: 'a', promptTokens: 20, cachedTokens: 16, newTokens: 7, seconds: 1 }
  engine.tell(({ onEnd }) => onEnd?.({ ...end, reason: 'stop' }))
  const text = await metricsOf(app)
  t.is(metric(text, 'heddle_prompt_tokens_total'), 20)
  t.is(metric(text, 'heddle_new_tokens_total'), 7)
  t.is(metric(text, 'heddle_cached_prompt_tokens_total'), 16)
  t.is(metric(text, 'heddle_batch_texts_sum'), 8)
  t.is(metric(text, 'heddle_batch_texts_bucket{le="4"}'), 1)
  t.is(metric(text, 'heddle_time_to_first_token_seconds_sum'), 0.2)
  t.is(metric(text, 'heddle_adapter_requests_total{result="hit"}'), 2)
  t.is(metric(text, 'heddle_adapter_requests_total{result="miss"}'), 1)
  t.is(metric(text, 'heddle_adapter_evictions_total'), 1)
  t.is(metric(text, 'heddle_texts_total{reason="stop"}'), 1)
})

test("metrics show the engine's state and the process", async (t) => {
  const { app, engine } = await testServer()
  engine.shown = {
    ...engine.shown,
    running: 4,
    waiting: 9,
    cache: { usedBytes: 250, bytes: 1000 },
    adapters: { usedBytes: 70, bytes: 100, loaded: ['a', 'b'], mostRank: 100 },
  }
  const text = await metricsOf(app)
  const values = ['texts_running', 'texts_waiting', 'batch_limit', 'cache_used_bytes', 'adapters_loaded'].map((name) =>
    metric(text, `heddle_${name}`),
  )
  t.deepEqual(values, [4, 9, 8, 250, 2])
  t.true(metric(text, 'process_resident_memory_bytes')! > 1e6)
  t.true(metric(text, 'nodejs_eventloop_lag_p99_seconds')! >= 0)
})

test('a held event loop shows in the metrics, once', async (t) => {
  const { app } = await testServer()
  await metricsOf(app)
  await new Promise((resolve) => setTimeout(resolve, 20))
  const until = performance.now() + 200
  while (performance.now() < until);
  await new Promise((resolve) => setTimeout(resolve, 20))
  t.true(metric(await metricsOf(app), 'heddle_event_loop_worst_block_seconds')! > 0.15)
})

test('requests are counted by route and status, and a path of their own is no label', async (t) => {
  const { app } = await testServer({ routes: echo })
  for (const id of ['1', '2']) await app.inject(`/v1/files/${id}`)
  await app.inject('/v1/broken')
  await app.inject('/nothing/here')
  const text = await metricsOf(app)
  const requests = (labels: string): number | undefined => metric(text, `heddle_http_requests_total{${labels}}`)
  t.is(requests('route="/v1/files/:id",method="GET",status="200"'), 2)
  t.is(requests('route="/v1/broken",method="GET",status="500"'), 1)
  t.is(requests('route="unknown",method="GET",status="404"'), 1)
  t.is(metric(text, 'heddle_http_requests_running'), 1)
})

test('requests that keys or limits refuse are counted, too', async (t) => {
  const file = join(temporaryFolder(), 'keys.txt')
  const asker = await addKey(file, { name: 'asker', scopes: ['infer'], limits: { requestsPerMinute: 1 } })
  const reader = await addKey(file, { name: 'prometheus', scopes: ['metrics'] })
  const { app } = await testServer({ routes: echo, keys: await KeyRing.open(file) })
  const ask = (url: string, key: string) => app.inject({ url, headers: { authorization: `Bearer ${key}` } })
  for (const key of [asker, asker, 'hk-unknown']) await ask('/v1/broken', key)
  const { body } = await ask('/metrics', reader)
  for (const status of [500, 429, 401])
    t.is(metric(body, `heddle_http_requests_total{route="/v1/broken",method="GET",status="${status}"}`), 1)
})

/** What has begun to watch and not stopped, from now on: calls of both methods of what has this prototype. */
function watchers(t: ExecutionContext, prototype: object, [begin, stop]: readonly [string, string]): Set<unknown> {
  const methods = prototype as Record<string, (...given: unknown[]) => unknown>
  const watching = new Set<unknown>()
  const original = { [begin]: methods[begin]!, [stop]: methods[stop]! }
  t.teardown(() => Object.assign(methods, original))
  const counted = (name: string, count: (one: unknown) => void): void => {
    methods[name] = function (this: unknown, ...given) {
      count(this)
      return original[name]!.apply(this, given)
    }
  }
  counted(begin, (one) => watching.add(one))
  counted(stop, (one) => watching.delete(one))
  return watching
}

test.serial('nothing that watches the process is left once the app is closed', async (t) => {
  const observers = watchers(t, PerformanceObserver.prototype, ['observe', 'disconnect'])
  const histograms = watchers(t, Object.getPrototypeOf(monitorEventLoopDelay()) as object, ['enable', 'disable'])
  const { app } = await testServer()
  await metricsOf(app)
  t.deepEqual([observers.size, histograms.size], [1, 1])
  await app.close()
  t.deepEqual([observers.size, histograms.size], [0, 0])
})

test('a closed app no longer listens to its engine', async (t) => {
  const { app, engine } = await testServer()
  t.is(engine.listeners, 1)
  await app.close()
  t.is(engine.listeners, 0)
})

test('the log says how each request ended, without its body, query or key', async (t) => {
  const { app, log } = await testServer({ routes: echo })
  await app.inject({
    method: 'POST',
    url: '/v1/echo?token=query-secret',
    headers: { authorization: 'Bearer hk-secret', 'x-request-id': 'mine-1' },
    payload: { prompt: 'a private prompt' },
  })
  t.like(log.at(-1), { msg: 'request', reqId: 'mine-1', method: 'POST', route: '/v1/echo', status: 200 })
  t.notRegex(JSON.stringify(log), /private|secret/)
})

test('a log with bodies has to be asked for', async (t) => {
  const { app, log } = await testServer({ routes: echo, logBodies: true })
  await app.inject({ method: 'POST', url: '/v1/echo', payload: { prompt: 'a private prompt' } })
  t.like(log.at(0), { body: { prompt: 'a private prompt' } })
})

test('a defect is logged with its stack', async (t) => {
  const { app, log } = await testServer({ routes: echo })
  await app.inject('/v1/broken')
  const line = log.find(({ msg }) => msg === 'request failed') as { readonly err: { readonly stack: string } }
  t.regex(line.err.stack, /a broken part\n\s+at /)
})

test("a client's request id is kept if it is plain, and answered", async (t) => {
  const { app } = await testServer()
  const answered = await app.inject({ url: '/healthz', headers: { 'x-request-id': 'abc-1.2' } })
  t.is(answered.headers['x-request-id'], 'abc-1.2')
  for (const id of ['a b', 'x'.repeat(65), '{"a":1}', '']) {
    const made = requestId({ headers: { 'x-request-id': id } })
    t.regex(made, /^[0-9a-f-]{36}$/)
  }
})

test('no origin may ask unless it is named', async (t) => {
  const asked = { method: 'OPTIONS', url: '/v1/echo' } as const
  const headers = { origin: 'https://a.example', 'access-control-request-method': 'POST' }
  const closed = await testServer({ routes: echo })
  t.is((await closed.app.inject({ ...asked, headers })).headers['access-control-allow-origin'], undefined)
  const opened = await testServer({ routes: echo, cors: ['https://a.example'] })
  const allowed = await opened.app.inject({ ...asked, headers })
  t.is(allowed.headers['access-control-allow-origin'], 'https://a.example')
  const other = await opened.app.inject({ ...asked, headers: { ...headers, origin: 'https://b.example' } })
  t.is(other.headers['access-control-allow-origin'], undefined)
})

test('where there are keys, a browser may ask what is allowed without one, and reads a refusal', async (t) => {
  const file = join(temporaryFolder(), 'keys.txt')
  await addKey(file, { name: 'a', scopes: ['infer'] })
  const { app } = await testServer({ routes: echo, cors: ['https://a.example'], keys: await KeyRing.open(file) })
  const headers = { origin: 'https://a.example', 'access-control-request-method': 'POST' }
  t.is((await app.inject({ method: 'OPTIONS', url: '/v1/echo', headers })).statusCode, 204)
  const refused = await app.inject({ method: 'POST', url: '/v1/echo', headers, payload: {} })
  t.is(refused.statusCode, 401)
  t.is(refused.headers['access-control-allow-origin'], 'https://a.example')
})

test('without keys, what a page of another origin sends is refused, even if it could not read the answer', async (t) => {
  const post = { method: 'POST', url: '/v1/echo', payload: { a: 1 } } as const
  const statusOf = async (cors: OperationsOptions['cors'], origin: string): Promise<number> => {
    const { app } = await testServer({ routes: echo, cors })
    return (await app.inject({ ...post, headers: { host: 'localhost:8000', origin } })).statusCode
  }
  t.is(await statusOf(undefined, 'https://evil.example'), 403)
  t.is(await statusOf(undefined, 'http://localhost:9000'), 403)
  t.is(await statusOf(undefined, 'null'), 403)
  t.is(await statusOf(undefined, 'http://localhost:8000'), 200)
  t.is(await statusOf(['https://a.example'], 'https://a.example'), 200)
  t.is(await statusOf('*', 'https://evil.example'), 200)
})

test("a page that points its own name at this machine isn't answered", async (t) => {
  const { app } = await testServer({ hosts: ['localhost', '127.0.0.1'] })
  t.is((await app.inject({ url: '/healthz', headers: { host: 'localhost:8080' } })).statusCode, 200)
  t.is((await app.inject({ url: '/healthz', headers: { host: 'evil.example:8080' } })).statusCode, 403)
})

const streaming = (engine: HandEngine) => (app: FastifyInstance) => {
  app.get('/v1/stream', async (_, reply) => {
    const stop = new AbortController()
    reply.raw.once('close', () => stop.abort())
    reply.hijack()
    reply.raw.writeHead(200)
    reply.raw.flushHeaders()
    try {
      for await (const text of engine.generate('p', { maxTokens: 2, signal: stop.signal })) reply.raw.write(text)
      reply.raw.end()
    } catch {
      reply.raw.destroy()
    }
  })
}

test('a server that ends lets running streams finish and takes no new requests', async (t) => {
  const engine = new HandEngine()
  const { app } = await testServer({ engine, routes: streaming(engine) })
  const url = await app.listen({ port: 0 })
  const answer = await fetch(`${url}/v1/stream`)
  const text = answer.text()
  const closed = shutDown(app, engine)
  while (app.server.listening) await turn()
  await t.throwsAsync(fetch(`${url}/healthz`))
  engine.push('one ')
  await turn()
  engine.push('two')
  t.is(await text, 'one two')
  await closed
  t.is(app.life.phase, 'closed')
})

test('a request that was taken gets its texts, even those that begin once the server was told to end', async (t) => {
  const engine = new HandEngine()
  const [asked, told] = [deferred<void>(), deferred<void>()]
  const routes = (app: FastifyInstance): void => {
    app.get('/v1/late', async () => {
      asked.resolve()
      await told.promise
      let all = ''
      for await (const text of limitEngine(engine, { newTokens: 1 }).generate(Int32Array.of(1))) all += text
      return all
    })
  }
  const { app } = await testServer({ engine, routes })
  const answer = fetch(`${await app.listen({ port: 0 })}/v1/late`)
  await asked.promise
  const closed = shutDown(app, engine)
  while (app.server.listening) await turn()
  told.resolve()
  while (engine.running === 0) await turn()
  engine.push('late')
  t.is(await (await answer).text(), 'late')
  await closed
  t.true(engine.state().isClosed)
})

test('a server that ends refuses what it is still asked, in the form of its other errors', async (t) => {
  const { app, engine } = await testServer({ routes: echo })
  await app.ready()
  await engine.close()
  const refused = await app.inject('/v1/broken')
  t.is(refused.statusCode, 503)
  t.is(refused.headers.connection, 'close')
  t.like(refused.json(), { error: { type: 'server_error', code: 'server_closing', param: null } })
  t.is((await app.inject('/healthz')).statusCode, 200)
})

test('streams that outlast the limit are cut off', async (t) => {
  const engine = new HandEngine()
  const { app } = await testServer({ engine, routes: streaming(engine) })
  const url = await app.listen({ port: 0 })
  const answer = await fetch(`${url}/v1/stream`)
  const limit = new AbortController()
  const closed = shutDown(app, engine, limit.signal)
  limit.abort()
  await closed
  await t.throwsAsync(answer.text())
  t.is(engine.running, 0)
})

test('a connection that has said nothing yet does not hold up the end', async (t) => {
  const engine = new HandEngine()
  const { app } = await testServer({ engine })
  watchConnections(app.server)
  await app.listen({ port: 0 })
  const silent = connect((app.server.address() as AddressInfo).port)
  const gone = once(silent, 'close')
  await once(app.server, 'connection')
  await shutDown(app, engine)
  await gone
  t.is(app.life.phase, 'closed')
})
