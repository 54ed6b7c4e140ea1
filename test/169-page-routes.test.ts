// What the page is made of, asked without a browser: its files, its policy, and the numbers that it shows.
import { createHash } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import fastify, { type FastifyInstance } from 'fastify'
import { heddle, type ServeOptions } from '../lib/serve/index.js'
import { LoadRecorder, loadSamples } from '../lib/serve/page/load.js'
import { AdapterCards } from '../lib/serve/page/models.js'
import { HandEngine } from './support/server.js'
import { temporaryFolder } from './support/temporary_folder.js'

async function serve(options: Partial<ServeOptions> = {}): Promise<FastifyInstance> {
  const app = fastify()
  const folder = temporaryFolder()
  const folders = { data: folder, adapters: folder }
  await app.register(heddle, { engine: new HandEngine(), modelName: 'hand', folders, page: true, ...options })
  return app
}

/** Addresses of the files that a page names. */
const namedIn = (html: string): string[] => [...html.matchAll(/"\.\/(page\/[^"]+)"/g)].map(([, path]) => `/${path}`)

test('every file that the page names is there, with its type', async (t) => {
  const app = await serve()
  const paths = namedIn((await app.inject('/')).body)
  const types: Record<string, string> = {
    js: 'text/javascript',
    mjs: 'text/javascript',
    css: 'text/css',
    svg: 'image/svg+xml',
  }
  for (const name of [
    'app.js',
    'preact.mjs',
    'preact-hooks.mjs',
    'htm.mjs',
    'uplot.mjs',
    'uplot.css',
    'page.css',
    'icon.svg',
  ])
    t.true(
      paths.some((path) => path.endsWith(`/${name}`)),
      name,
    )
  for (const path of paths) {
    const { statusCode, headers, body } = await app.inject(path)
    t.is(statusCode, 200, path)
    t.is(headers['content-type'], `${types[path.split('.').at(-1)!]}; charset=utf-8`)
    t.is(headers['x-content-type-options'], 'nosniff')
    t.true(body.length > 0)
  }
})

test('scripts import each other and the libraries that the page names, and nothing else', async (t) => {
  const app = await serve()
  const { body: html } = await app.inject('/')
  const { imports } = JSON.parse(/<script type="importmap">(.*)<\/script>/.exec(html)![1]!) as {
    readonly imports: Record<string, string>
  }
  const paths = namedIn(html)
  for (const path of paths.filter((each) => /\.m?js$/.test(each))) {
    const { body } = await app.inject(path)
    for (const [, name] of body.matchAll(/(?:from|import)\s*["']([\w./-]+)["']/g)) {
      const found = name!.startsWith('./') ? path.replace(/[^/]+$/, name!.slice(2)) : imports[name!]?.slice(1)
      t.true(paths.includes(found ?? ''), `${name} in ${path}`)
    }
  }
})

test('the policy allows what comes from the server, and one inline script by its hash: the import map', async (t) => {
  const { body, headers } = await (await serve()).inject('/')
  const policy = Object.fromEntries(
    String(headers['content-security-policy'])
      .split('; ')
      .map((rule) => [rule.slice(0, rule.indexOf(' ')), rule.slice(rule.indexOf(' ') + 1)]),
  )
  const inline = [...body.matchAll(/<script(?![^>]*\ssrc=)[^>]*>(.*?)<\/script>/gs)].map(([, text]) => text!)
  t.is(inline.length, 1)
  const hash = createHash('sha256').update(inline[0]!).digest('base64')
  t.like(policy, {
    'default-src': "'self'",
    'script-src': `'self' 'sha256-${hash}'`,
    'object-src': "'none'",
    'base-uri': "'none'",
    'form-action': "'none'",
    'frame-ancestors': "'none'",
    'require-trusted-types-for': "'script'",
  })
  t.false(/style=|<style|\son\w+=|https?:/.test(body))
})

test('a browser asks for the page each time, and for its files once per version', async (t) => {
  const app = await serve()
  const page = await app.inject('/')
  t.is(page.headers['cache-control'], 'no-cache')
  const [path] = namedIn(page.body)
  const file = await app.inject(path!)
  t.is(file.headers['cache-control'], 'public, max-age=31536000, immutable')
  for (const [url, { headers }] of [
    ['/', page],
    [path!, file],
  ] as const) {
    const again = await app.inject({ url, headers: { 'if-none-match': headers.etag! } })
    t.deepEqual([again.statusCode, again.body], [304, ''])
    t.is((await app.inject({ url, headers: { 'if-none-match': '"other"' } })).statusCode, 200)
  }
})

test('no other file can be asked for', async (t) => {
  const app = await serve()
  const [path] = namedIn((await app.inject('/')).body)
  const folder = path!.replace(/[^/]+$/, '')
  const names = [
    'package.json',
    '..',
    '..%2f..%2fpackage.json',
    '%2e%2e/server.js',
    'constructor',
    'app.js.map',
    'tsconfig.json',
    '',
  ]
  for (const name of names) t.is((await app.inject(`${folder}${name}`)).statusCode, 404, name)
  t.is((await app.inject('/page/0000000000000000/app.js')).statusCode, 404)
})

test('an app of its own gets the page when it asks for it, below its prefix', async (t) => {
  const without = await serve({ page: false })
  without.get('/', async () => 'the own page')
  t.is((await without.inject('/')).body, 'the own page')
  for (const url of ['/page/models', '/page/load']) t.is((await without.inject(url)).statusCode, 404)
  const below = await serve({ prefix: '/team/llm' })
  t.is((await below.inject('/')).statusCode, 404)
  const moved = await below.inject('/team/llm')
  t.deepEqual([moved.statusCode, moved.headers.location], [308, './llm/'])
  t.is((await below.inject('/team/llm/')).statusCode, 200)
  for (const path of namedIn((await below.inject('/team/llm/')).body))
    t.is((await below.inject(`/team/llm${path}`)).statusCode, 200)
})

test('what an engine does is counted per second, between two samples', (t) => {
  const engine = new HandEngine()
  const load = new LoadRecorder(engine)
  t.teardown(() => load.close())
  const start = Math.ceil(performance.now())
  load.take(start)
  engine.tell(({ onStep }) => onStep?.({ texts: 4, promptTokens: 30, newTokens: 4, seconds: 0.1 }))
  engine.tell(({ onStep }) => onStep?.({ texts: 4, promptTokens: 0, newTokens: 6, seconds: 0.1 }))
  engine.shown = { ...engine.shown, running: 4, waiting: 2, cache: { usedBytes: 640, bytes: 1000 } }
  load.take(start + 2000)
  load.take(start + 3000)
  const [, busy, idle] = load.since(0)
  t.like(busy, { newTokens: 5, promptTokens: 15, running: 4, waiting: 2, cacheBytes: 640 })
  t.true(busy!.residentBytes > 1e7)
  t.like(idle, { newTokens: 0, promptTokens: 0 })
  t.deepEqual(load.since(busy!.at), [idle!])
  t.deepEqual(load.limits, { texts: 8, cacheBytes: 1000, adapterBytes: 100 })
})

test('samples are those of the last minutes', (t) => {
  const load = new LoadRecorder(new HandEngine())
  t.teardown(() => load.close())
  const start = performance.now()
  for (let i = 0; i <= loadSamples + 10; i += 1) load.take(start + 1000 * i)
  const samples = load.since(0)
  t.is(samples.length, loadSamples)
  t.is(Math.round(samples.at(-1)!.at - samples[0]!.at), loadSamples - 1)
})

test('nothing is watched once the app is closed', async (t) => {
  const engine = new HandEngine()
  const app = await serve({ engine })
  t.true(engine.listeners > 0)
  await app.close()
  t.is(engine.listeners, 0)
})

test('the newest samples can be asked for alone', async (t) => {
  const app = await serve()
  t.deepEqual((await app.inject('/page/load?after=1e12')).json(), {
    interval: 1,
    limits: { texts: 8, cacheBytes: 1000, adapterBytes: 100 },
    samples: [],
  })
  t.is((await app.inject('/page/load?after=soon')).statusCode, 400)
})

test("an adapter's folder tells of it; one that lies elsewhere is listed without", async (t) => {
  const folder = temporaryFolder()
  const write = async (name: string, config: object, bytes: number): Promise<void> => {
    await mkdir(join(folder, name), { recursive: true })
    await writeFile(join(folder, name, 'adapter_config.json'), JSON.stringify(config))
    await writeFile(join(folder, name, 'adapter_model.safetensors'), Buffer.alloc(bytes))
  }
  await write('a', { peft_type: 'LORA', r: 8 }, 1000)
  await write('b', { peft_type: 'IA3', r: null }, 10)
  const engine = Object.assign(new HandEngine(), { adapterNames: ['a', 'b', 'elsewhere'] })
  engine.shown = { ...engine.shown, adapters: { usedBytes: 10, bytes: 100, loaded: ['b'], mostRank: 100 } }
  const cards = new AdapterCards(folder)
  const expected = [
    { name: 'a', isLoaded: false, about: { method: 'LORA', rank: 8, bytes: 1000 } },
    { name: 'b', isLoaded: true, about: { method: 'IA3', rank: null, bytes: 10 } },
    { name: 'elsewhere', isLoaded: false, about: null },
  ]
  t.deepEqual(await cards.list(engine), expected)
  t.deepEqual(await cards.list(engine), expected)
})
