// Who may ask a server, and how much: keys and their scopes, rates, places, bytes, tokens.
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import test from 'ava'
import type { FastifyInstance } from 'fastify'
import type { HeddleError } from '../lib/index.js'
import { addKey, isLoopback, KeyRing, listKeys, refusePublicAddress, removeKey } from '../lib/serve/keys.js'
import { limitEngine } from '../lib/serve/limited_engine.js'
import { Clients, parseLimits } from '../lib/serve/limits.js'
import { deferred } from './support/deferred.js'
import { HandEngine, testServer } from './support/server.js'
import { temporaryFolder } from './support/temporary_folder.js'

const keyFile = (): string => join(temporaryFolder(), 'keys.txt')

const routes = (app: FastifyInstance): void => {
  app.post('/v1/chat/completions', async () => 'text')
  app.get('/v1/fine_tuning/jobs', async () => 'jobs')
  app.get('/v1/files', async () => 'files')
  app.get('/internal', async () => 'internal')
  app.get('/page', { config: { scope: 'public' } }, async () => 'page')
  app.post('/v1/echo', async (request) => request.body)
}

const bearer = (key: string) => ({ authorization: `Bearer ${key}` })

test('a key opens what its scopes say, and nothing else', async (t) => {
  const file = keyFile()
  const keys = {
    infer: await addKey(file, { name: 'asker', scopes: ['infer'] }),
    train: await addKey(file, { name: 'trainer', scopes: ['train'] }),
    metrics: await addKey(file, { name: 'prometheus', scopes: ['metrics'] }),
    admin: await addKey(file, { name: 'owner', scopes: ['admin'] }),
  }
  const { app } = await testServer({ routes, keys: await KeyRing.open(file) })
  const opened: Record<string, number[]> = {}
  for (const [name, key] of Object.entries(keys)) {
    const ask = async (method: 'GET' | 'POST', url: string): Promise<number> =>
      (await app.inject({ method, url, headers: bearer(key) })).statusCode
    opened[name] = [
      await ask('POST', '/v1/chat/completions'),
      await ask('GET', '/v1/fine_tuning/jobs'),
      await ask('GET', '/v1/files'),
      await ask('GET', '/metrics'),
    ]
  }
  t.deepEqual(opened, {
    infer: [200, 403, 403, 403],
    train: [403, 200, 200, 403],
    metrics: [403, 403, 403, 200],
    admin: [200, 200, 200, 200],
  })
})

test('without a key, or with one that is not known, only public routes answer', async (t) => {
  const file = keyFile()
  const key = await addKey(file, { name: 'asker', scopes: ['infer'] })
  const { app } = await testServer({ routes, keys: await KeyRing.open(file) })
  const wrong = [{}, bearer(`${key}x`), bearer(''), { authorization: key }, bearer('__proto__'), bearer('é')]
  for (const headers of wrong) {
    const { statusCode, headers: answered, body } = await app.inject({ url: '/internal', headers })
    t.is(statusCode, 401)
    t.is(answered['www-authenticate'], 'Bearer')
    t.is((JSON.parse(body) as { error: { code: string } }).error.code, 'invalid_api_key')
    t.false(body.includes(key))
  }
  for (const url of ['/healthz', '/readyz', '/page']) t.not((await app.inject(url)).statusCode, 401)
})

test("the file holds no key, and is its owner's", async (t) => {
  const file = keyFile()
  const key = await addKey(file, { name: 'asker', scopes: ['infer', 'train'] })
  const text = await readFile(file, 'utf8')
  t.false(text.includes(key.slice(3)))
  t.regex(text, /^asker infer,train sha256:[0-9a-f]{64}$/m)
  t.is((await stat(file)).mode & 0o777, 0o600)
})

test('keys are added, listed and removed by name', async (t) => {
  const file = keyFile()
  await writeFile(file, '# ours') // no line end, as editors leave it
  await addKey(file, { name: 'a', scopes: ['infer'] })
  await addKey(file, { name: 'b', scopes: ['admin'] })
  await t.throwsAsync(addKey(file, { name: 'a', scopes: ['infer'] }), { code: 'ERR_HEDDLE_ARGUMENT' })
  await t.throwsAsync(addKey(file, { name: 'two words', scopes: ['infer'] }), { code: 'ERR_HEDDLE_ARGUMENT' })
  await removeKey(file, 'a')
  t.deepEqual(await listKeys(file), [{ name: 'b', scopes: ['admin'], limits: {} }])
  await t.throwsAsync(removeKey(file, 'a'), { code: 'ERR_HEDDLE_ARGUMENT' })
  t.true((await readFile(file, 'utf8')).startsWith('# ours\n'))
})

test('a file that is not right is refused with its line, and what stands there is not repeated', async (t) => {
  const hash = `sha256:${'0'.repeat(64)}`
  for (const line of [
    'asker infer hk-a-key-in-the-clear',
    `asker read ${hash}`,
    `a/b infer ${hash}`,
    `asker infer ${hash} x`,
    `asker infer ${hash} max-rates=2`,
    `asker infer ${hash} max-rate=0`,
    `asker infer ${hash} max-rate=2.5`,
  ]) {
    const file = keyFile()
    await writeFile(file, `# keys\n\n${line}\n`)
    const error = await t.throwsAsync<HeddleError>(KeyRing.open(file), { code: 'ERR_HEDDLE_FORMAT' })
    t.is(error?.place, `${file}:3`)
    t.false(error?.message.includes('in-the-clear'))
  }
})

test('a name twice is refused', async (t) => {
  const file = keyFile()
  await writeFile(file, [1, 2].map((digit) => `a infer sha256:${`${digit}`.repeat(64)}\n`).join(''))
  await t.throwsAsync(KeyRing.open(file), { code: 'ERR_HEDDLE_FORMAT' })
})

test('SIGHUP reads the keys again; a removed key ends at once', async (t) => {
  const file = keyFile()
  const old = await addKey(file, { name: 'old', scopes: ['infer'] })
  const keys = await KeyRing.open(file)
  const errors: unknown[] = []
  const stop = keys.watch((error) => errors.push(error))
  await removeKey(file, 'old')
  const fresh = await addKey(file, { name: 'new', scopes: ['infer'] })
  process.kill(process.pid, 'SIGHUP')
  while (keys.find(fresh) === undefined) await turn()
  stop()
  t.is(keys.find(old), undefined)
  t.true(errors.every((error) => error === undefined))
})

test('a changed file is read again without a signal', async (t) => {
  const file = keyFile()
  await addKey(file, { name: 'old', scopes: ['infer'] })
  const keys = await KeyRing.open(file)
  const read = deferred<void>()
  const stop = keys.watch(() => read.resolve())
  const idle = setInterval(() => {}, 1000) // watching alone keeps no process alive
  const fresh = await addKey(file, { name: 'new', scopes: ['infer'] })
  await read.promise
  clearInterval(idle)
  stop()
  t.is(keys.find(fresh)?.name, 'new')
})

test('keys that cannot be read again stay as they were', async (t) => {
  const file = keyFile()
  const key = await addKey(file, { name: 'a', scopes: ['infer'] })
  const keys = await KeyRing.open(file)
  await writeFile(file, 'not a key\n')
  await t.throwsAsync(keys.reload(), { code: 'ERR_HEDDLE_FORMAT' })
  t.is(keys.find(key)?.name, 'a')
})

test('a public address needs keys, or the word that none are wanted', (t) => {
  for (const host of ['127.0.0.1', '127.1.2.3', '::1', 'localhost']) {
    t.true(isLoopback(host))
    t.notThrows(() => refusePublicAddress(host))
  }
  for (const host of ['0.0.0.0', '::', '10.0.0.1', 'example.com', '127.evil.com']) {
    t.throws(() => refusePublicAddress(host), { code: 'ERR_HEDDLE_ARGUMENT', message: /--keys.*--insecure/ })
    t.notThrows(() => refusePublicAddress(host, { hasKeys: true }))
    t.notThrows(() => refusePublicAddress(host, { insecure: true }))
  }
})

test('a client may burst, then goes at its rate, and is told when to come again', (t) => {
  const clients = new Clients()
  const take = (name: string, now: number) => clients.take(name, { concurrency: 100, requestsPerMinute: 6 }, now)
  for (let i = 0; i < 6; i += 1) t.is(typeof take('a', 0), 'object')
  t.is(take('a', 0), 10)
  t.is(take('a', 4), 6)
  t.is(typeof take('a', 10), 'object')
  t.is(take('a', 10), 10)
  t.is(typeof take('b', 10), 'object')
})

test('a place is free again once it is released', (t) => {
  const clients = new Clients()
  const take = () => clients.take('a', { concurrency: 2, requestsPerMinute: 1000 }, 0)
  const first = take() as { release(): void }
  take()
  t.is(take(), 1)
  first.release()
  t.is(typeof take(), 'object')
})

test('accounts of addresses that went away are forgotten', (t) => {
  const clients = new Clients()
  const limits = { concurrency: 2, requestsPerMinute: 60 }
  for (let i = 0; i < 5000; i += 1) (clients.take(`10.0.${i}`, limits, i) as { release(): void }).release()
  t.true(clients.size <= 1100)
})

test('too many requests are refused with a time to wait, per key', async (t) => {
  const file = keyFile()
  const [a, b] = [
    await addKey(file, { name: 'a', scopes: ['infer'] }),
    await addKey(file, { name: 'b', scopes: ['infer'] }),
  ]
  const { app } = await testServer({ routes, keys: await KeyRing.open(file), limits: { requestsPerMinute: 2 } })
  const ask = (key: string) => app.inject({ url: '/internal', headers: bearer(key) })
  t.deepEqual([(await ask(a)).statusCode, (await ask(a)).statusCode], [200, 200])
  const refused = await ask(a)
  t.is(refused.statusCode, 429)
  t.is(refused.headers['retry-after'], '30')
  t.like(refused.json(), { error: { type: 'rate_limit_error', code: 'rate_limit_exceeded' } })
  t.is((await ask(b)).statusCode, 200)
  t.is((await app.inject('/healthz')).statusCode, 200)
})

test("a key's own limits take the place of the server's, those that its line does not name stay", async (t) => {
  const file = keyFile()
  const small = {
    bodyBytes: 20,
    newTokens: 8,
    promptTokens: 100,
    concurrency: 2,
    requestsPerMinute: 3,
    answerSeconds: 0.5,
  }
  const keys = {
    small: await addKey(file, { name: 'small', scopes: ['infer'], limits: small }),
    large: await addKey(file, { name: 'large', scopes: ['infer'], limits: { bodyBytes: 1000 } }),
    usual: await addKey(file, { name: 'usual', scopes: ['infer'] }),
  }
  t.regex(
    await readFile(file, 'utf8'),
    /^small .* max-body=20 max-prompt-tokens=100 max-new-tokens=8 max-concurrency=2 max-rate=3 max-seconds=0\.5$/m,
  )
  t.deepEqual(
    (await listKeys(file)).map(({ limits }) => limits),
    [small, { bodyBytes: 1000 }, {}],
  )
  const held = (app: FastifyInstance): void => {
    routes(app)
    app.get('/v1/limits', async ({ limits }) => limits)
  }
  const limits = { bodyBytes: 100, newTokens: 50 }
  const { app } = await testServer({ routes: held, keys: await KeyRing.open(file), limits })
  const limitsOf = async (key: string) =>
    (await app.inject({ url: '/v1/limits', headers: bearer(key) })).json() as unknown
  t.like(await limitsOf(keys.small), { ...small, idleSeconds: 30 })
  t.like(await limitsOf(keys.large), { bodyBytes: 1000, newTokens: 50, concurrency: 64 })
  const post = async (key: string, length: number): Promise<number> =>
    (
      await app.inject({
        method: 'POST',
        url: '/v1/echo',
        headers: { ...bearer(key), 'content-type': 'application/json' },
        payload: JSON.stringify('x'.repeat(length - 2)),
      })
    ).statusCode
  t.deepEqual([await post(keys.small, 20), await post(keys.small, 21), await post(keys.small, 2)], [200, 413, 429])
  t.deepEqual([await post(keys.large, 1000), await post(keys.large, 1001)], [200, 413])
  t.deepEqual([await post(keys.usual, 100), await post(keys.usual, 101)], [200, 413])
})

test("a key's own limits change while the server runs", async (t) => {
  const file = keyFile()
  const key = await addKey(file, { name: 'a', scopes: ['infer'], limits: { requestsPerMinute: 1 } })
  const keys = await KeyRing.open(file)
  const { app } = await testServer({ routes, keys })
  const ask = async (): Promise<number> => (await app.inject({ url: '/internal', headers: bearer(key) })).statusCode
  t.deepEqual([await ask(), await ask()], [200, 429])
  await writeFile(file, (await readFile(file, 'utf8')).replace('max-rate=1', 'max-rate=100000'))
  await keys.reload()
  while ((await ask()) === 429);
  t.is(await ask(), 200)
})

test('a key has so many requests at a time, and gets its place back when a client hangs up', async (t) => {
  const engine = new HandEngine()
  const gone = deferred<void>()
  const { app } = await testServer({
    limits: { concurrency: 1 },
    engine,
    routes: (app) => {
      app.get('/v1/wait', async (_, reply) => {
        reply.raw.once('close', () => gone.resolve())
        reply.hijack()
        reply.raw.writeHead(200)
        reply.raw.flushHeaders()
      })
      app.get('/v1/quick', async () => 'quick')
    },
  })
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  const hangUp = new AbortController()
  await fetch(`${url}/v1/wait`, { signal: hangUp.signal })
  t.is((await fetch(`${url}/v1/quick`)).status, 429)
  hangUp.abort()
  await gone.promise
  t.is((await fetch(`${url}/v1/quick`)).status, 200)
  await app.close()
})

test('a body over the limit is refused', async (t) => {
  const { app } = await testServer({ routes, limits: { bodyBytes: 100 } })
  const post = (payload: string) =>
    app.inject({ method: 'POST', url: '/v1/echo', headers: { 'content-type': 'application/json' }, payload })
  t.is((await post(JSON.stringify('x'.repeat(90)))).statusCode, 200)
  t.is((await post(JSON.stringify('x'.repeat(100)))).statusCode, 413)
})

test('a body that is no JSON, no UTF-8, or nests too deeply is refused', async (t) => {
  const { app } = await testServer({ routes, limits: { jsonDepth: 4 } })
  const post = async (payload: string | Buffer): Promise<number> =>
    (await app.inject({ method: 'POST', url: '/v1/echo', headers: { 'content-type': 'application/json' }, payload }))
      .statusCode
  t.is(await post('[[[[1]]]]'), 200)
  t.is(await post('[[[[[1]]]]]'), 400)
  t.is(await post('{"a":"]]]]{{{{[[[[\\"[[["}'), 200)
  t.is(await post('{"a":'), 400)
  t.is(await post(Buffer.from([0x22, 0xc3, 0x28, 0x22])), 400)
  t.is(await post('{"__proto__":{"x":1}}'), 400)
  t.is(await post(''), 400)
})

test('a body of more parts than can be read in a moment is refused; token ids may be many', async (t) => {
  const { app } = await testServer({ routes })
  const post = async (body: unknown): Promise<number> =>
    (
      await app.inject({
        method: 'POST',
        url: '/v1/echo',
        payload: JSON.stringify(body),
        headers: { 'content-type': 'application/json' },
      })
    ).statusCode
  const many = <T>(count: number, each: T): T[] => Array.from({ length: count }, () => each)
  t.is(await post(many(100_000, 7)), 200)
  t.is(await post(many(10_000, 'a')), 200)
  t.is(await post(many(300_000, 7)), 400)
  t.is(await post(many(20_000, 'a')), 400)
  t.is(await post(many(20_000, [])), 400)
  const members = (count: number) => Object.fromEntries(many(count, 0).map((_, i) => [`k${i}`, [1, 2, 3]]))
  t.is(await post({ a: [members(1024)], b: members(1024) }), 200)
  t.is(await post({ a: [members(1025)] }), 400)
})

test('prompts and answers have a largest length', async (t) => {
  const engine = limitEngine(new HandEngine(), { promptTokens: 3, newTokens: 5 })
  const first = async (prompt: Int32Array, maxTokens?: number) =>
    engine.generateTokens(prompt, maxTokens === undefined ? {} : { maxTokens, signal: AbortSignal.abort() }).next()
  await t.throwsAsync(first(Int32Array.of(1, 2, 3, 4), 5), { code: 'ERR_HEDDLE_ARGUMENT', message: /at most 3 tokens/ })
  await t.throwsAsync(first(Int32Array.of(1, 2, 3), 6), { code: 'ERR_HEDDLE_ARGUMENT', message: /at most 5 tokens/ })
  await t.throwsAsync(first(Int32Array.of(1, 2, 3), 5), { code: 'ERR_HEDDLE_ABORTED' }) // it began
  await t.throwsAsync(engine.promptTokens(Int32Array.of(1, 2, 3, 4)), { code: 'ERR_HEDDLE_ARGUMENT' })
})

test('many texts of one request let the event loop turn while their options are checked', async (t) => {
  const hand = new HandEngine()
  let [turns, begun] = [0, 0]
  const slow = Object.assign(Object.create(hand) as HandEngine, {
    async *generateTokens(): ReturnType<HandEngine['generateTokens']> {
      for (const until = performance.now() + 1; performance.now() < until; );
      begun += 1
      yield {} as never
    },
  })
  const counting = setInterval(() => {
    turns += 1
  })
  const texts = Array.from({ length: 20 }, () => limitEngine(slow, { newTokens: 2 }).generateTokens(Int32Array.of(1)))
  await Promise.all(texts.map((text) => text.next()))
  clearInterval(counting)
  t.is(begun, 20)
  t.true(turns >= 3, `${turns}`)
})

test('who says no length gets the largest', async (t) => {
  const hand = new HandEngine()
  const pieces: string[] = []
  const reading = (async () => {
    for await (const piece of limitEngine(hand, { newTokens: 2 }).generate(Int32Array.of(1))) pieces.push(piece)
  })()
  while (hand.running === 0) await new Promise(setImmediate)
  for (let i = 0; hand.running > 0; i += 1) {
    hand.push(`${i}`)
    await new Promise(setImmediate)
  }
  await reading
  t.is(pieces.length, 2)
})

test('a limit that is none is refused by name', (t) => {
  t.throws(() => parseLimits({ concurrency: 0 }), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /limits.concurrency.*at least 1/,
  })
  t.throws(() => parseLimits({ concurency: 1 } as never), { message: /Did you mean "concurrency"/ })
})
