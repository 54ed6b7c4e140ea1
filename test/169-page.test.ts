// The page at `/`, as people use it: a browser clicks and types through all of it.
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import fastify from 'fastify'
import OpenAI, { toFile } from 'openai'
import type { Browser, Locator, Page } from 'playwright-core'
import { adamw, createEngine, type Engine, loadModel, lora, type Model, train } from '../lib/index.js'
import { heddle, startServer } from '../lib/serve/index.js'
import { addKey } from '../lib/serve/keys.js'
import { parseLimits } from '../lib/serve/limits.js'
import { serverOptions } from '../lib/serve/log.js'
import { openBrowser, openPage, type PageOptions, type WatchedPage } from './support/browser.js'
import { tinyChatFolder } from './support/chat_model.js'
import { deferred } from './support/deferred.js'
import { temporaryFolder } from './support/temporary_folder.js'

const question = 'Who?'
/** What the adapter is trained to say: markup, which must stay text. */
const word = '<b>blue</b>'

let browser: Browser
let model: Model
let engine: Engine
let url: string
let client: OpenAI
const closing: (() => Promise<unknown>)[] = []

/** Texts rest after so many tokens, until `open` is resolved. Tests that make use of it, or of what all share, are serial. */
let hold = { tokens: Number.POSITIVE_INFINITY, open: deferred<void>() }

test.before(async () => {
  browser = await openBrowser()
  closing.unshift(() => browser.close())
  model = await loadModel(await tinyChatFolder())
  closing.unshift(() => model.dispose())
  const folders = { data: temporaryFolder(), adapters: join(temporaryFolder(), 'adapters') }
  await teach(join(folders.adapters, 'blue'))
  engine = await createEngine(model, { adapters: folders.adapters })
  const app = fastify(serverOptions(parseLimits(), false))
  await app.register(heddle, { engine: holding(engine), modelName: 'tiny', folders, page: true })
  closing.unshift(async () => {
    await app.close()
    await engine.close()
  })
  url = await app.listen({ host: '127.0.0.1', port: 0 })
  client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })
})

test.after.always(async () => {
  for (const close of closing) await close()
})

const conversation = (answer: string, asked = question): string =>
  `${JSON.stringify({
    messages: [
      { role: 'user', content: asked },
      { role: 'assistant', content: answer },
    ],
  })}\n`

const uploaded = async (text: string): Promise<{ readonly id: string }> =>
  client.files.create({ file: await toFile(Buffer.from(text), 'conversations.jsonl'), purpose: 'fine-tune' })

/** Trains an adapter to answer with the word. */
async function teach(folder: string): Promise<void> {
  const data = join(temporaryFolder(), 'word.jsonl')
  await writeFile(data, conversation(word))
  const method = lora({ r: 8, lora_alpha: 16, target_modules: 'all-linear' })
  const options = { data, method, optimizer: adamw({ lr: 1e-2 }), maxSteps: 60, batchSize: 1, maxLength: 64, seed: 1 }
  for await (const _ of train(model, options));
  await mkdir(folder, { recursive: true })
  await model.adapters.at(-1)!.save(folder)
}

/** The same engine, whose texts rest where `hold` says. */
function holding(inner: Engine): Engine {
  async function* generateTokens(...[prompt, options]: Parameters<Engine['generateTokens']>) {
    let count = 0
    for await (const token of inner.generateTokens(prompt, options)) {
      yield token
      count += 1
      if (count === hold.tokens) await Promise.race([hold.open.promise, abortOf(options?.signal)])
    }
  }
  return new Proxy(inner, {
    get(target, name) {
      if (name === 'generateTokens') return generateTokens
      const value: unknown = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

const abortOf = (signal: AbortSignal | undefined): Promise<void> =>
  new Promise((resolve) => signal?.addEventListener('abort', () => resolve()))

/** Opens the page and waits for what it shows of the server. */
async function open(t: ExecutionContext, options?: PageOptions): Promise<WatchedPage> {
  const watched = await openPage(t, browser, url, options)
  await watched.page.getByLabel('Question to both models').waitFor()
  return watched
}

/** Waits until it has the text. */
const shows = (place: Locator, text: string | RegExp): Promise<void> => place.filter({ hasText: text }).waitFor()

const answers = (page: Page): readonly [Locator, Locator] => [
  page.locator('[data-side=left]').last(),
  page.locator('[data-side=right]').last(),
]
const said = (answer: Locator): Promise<string | null> => answer.locator('.text').textContent()

async function ask(page: Page, text = question): Promise<void> {
  await page.getByLabel('Temperature').fill('0')
  await page.getByLabel('Question to both models').fill(text)
  await page.keyboard.press('Enter')
}

/** Lets texts come so far and no further, until what is returned is called. */
function holdAt(t: ExecutionContext, tokens: number): () => void {
  const held = { tokens, open: deferred<void>() }
  const release = (): void => {
    held.open.resolve()
    hold = { tokens: Number.POSITIVE_INFINITY, open: deferred() }
  }
  hold = held
  t.teardown(release)
  return release
}

test.serial('models and adapters are listed with their size, and with where they are', async (t) => {
  const { page, faults } = await open(t)
  const models = page.getByRole('region', { name: 'Models' })
  await shows(models, '1 adapter, 0 in memory')
  await shows(models.getByRole('list', { name: 'Base' }), /tiny.*78\.2K weights in f32 · 25\d tokens/s)
  const card = models.getByRole('list', { name: 'Adapters' }).getByRole('listitem')
  await shows(card, /^blueComparelora · r 8 · \d+\.\d kBon disk$/)
  await client.chat.completions.create({
    model: 'blue',
    messages: [{ role: 'user', content: question }],
    max_tokens: 1,
  })
  await page.reload()
  await shows(card, 'in memory')
  t.deepEqual(faults, [])
})

test.serial('one question goes to base and adapter, whose answers stream side by side', async (t) => {
  const { page, faults } = await open(t)
  const release = holdAt(t, 4)
  await ask(page)
  const [left, right] = answers(page)
  await shows(right, word.slice(0, 4))
  await shows(left, /./)
  for (const answer of [left, right]) await shows(answer, 'Writing…')
  t.is(await said(right), word.slice(0, 4))
  release()
  await shows(left, /\d+ tokens/)
  await shows(right, /Done · \d+ tokens/)
  t.is(await said(right), word)
  t.not(await said(left), word)
  const [one, other] = [await left.boundingBox(), await right.boundingBox()]
  t.is(one!.y, other!.y)
  t.true(other!.x >= one!.x + one!.width)
  t.deepEqual(faults, [])
})

test('what a model says is text, whatever it looks like', async (t) => {
  const { page, faults } = await open(t)
  await ask(page)
  const [, right] = answers(page)
  await shows(right, /Done/)
  t.is(await said(right), word)
  t.is(await page.locator('.conversation b').count(), 0)
  t.deepEqual(faults, [])
})

test.serial('an answer can be stopped: the texts end at once, and what was said stays', async (t) => {
  const { page, faults } = await open(t)
  holdAt(t, 3)
  await ask(page)
  const [left, right] = answers(page)
  await shows(right, word.slice(0, 3))
  await page.getByRole('button', { name: 'Stop' }).click()
  for (const answer of [left, right]) await shows(answer, 'Stopped')
  t.is(await said(right), word.slice(0, 3))
  const { running, waiting } = engine.state()
  t.deepEqual([running, waiting], [0, 0])
  t.deepEqual(faults, [])
})

test('a conversation goes on with what each column said itself', async (t) => {
  const { page, faults } = await open(t)
  const bodies: { model: string; messages: object[] }[] = []
  page.on('request', (request) => {
    if (request.url().endsWith('/v1/chat/completions')) bodies.push(request.postDataJSON() as (typeof bodies)[number])
  })
  await page.getByLabel('Max tokens').fill('12')
  await ask(page)
  for (const answer of answers(page)) await shows(answer, /tokens/)
  const first = await Promise.all(answers(page).map(said))
  await ask(page, 'And now?')
  for (const answer of answers(page)) await shows(answer, /tokens/)
  t.like(bodies[0], { temperature: 0, max_tokens: 12, model: 'tiny' })
  for (const [side, model] of ['tiny', 'blue'].entries())
    t.like(bodies[2 + side], {
      model,
      messages: [
        { role: 'user', content: question },
        { role: 'assistant', content: first[side] },
        { role: 'user', content: 'And now?' },
      ],
    })
  await page.getByRole('button', { name: 'New chat' }).click()
  await shows(page.getByRole('log'), 'One question, two answers')
  t.deepEqual(faults, [])
})

test('a running job shows its losses as they fall, and is cancelled by pressing twice', async (t) => {
  const { id: training_file } = await uploaded(conversation(word).repeat(8))
  const { page, faults } = await open(t)
  const heddle = { training: { max_steps: 100_000 } }
  const { id } = await client.fineTuning.jobs.create({ model: 'tiny', training_file, suffix: 'long', heddle } as never)
  const job = page.getByRole('article', { name: 'Job long' })
  await shows(job, /running/)
  await shows(job, /Step \d+ of 100000, training loss \d/)
  const before = await job.getByRole('img').getAttribute('aria-label')
  t.regex(before!, /^Loss by step\. Step \d+ of 100000, training loss \d\.\d{4}$/)
  await job.locator(`.chart:not([aria-label="${before}"])`).waitFor()
  t.true(await isDrawn(job.locator('canvas')))
  const cancel = job.getByRole('button', { name: 'Cancel job long' })
  await cancel.click()
  t.is((await client.fineTuning.jobs.retrieve(id)).status, 'running')
  await job.getByRole('button', { name: 'Really cancel job long' }).click()
  await shows(job, 'cancelled')
  await job.getByRole('button', { name: 'long' }).and(page.locator(':focus')).waitFor()
  t.is((await client.fineTuning.jobs.retrieve(id)).status, 'cancelled')
  t.is(await job.getByRole('button', { name: /cancel/i }).count(), 0)
  t.deepEqual(faults, [])
})

/** Whether anything but the ground is to be seen. */
const isDrawn = (canvas: Locator): Promise<boolean> =>
  canvas.evaluate((element) => {
    const { width, height, getContext } = element as unknown as Canvas
    const { data } = getContext.call(element, '2d').getImageData(0, 0, width, height)
    return data.some((value) => value > 0)
  })

/** What is used of the browser's. */
interface Canvas {
  readonly width: number
  readonly height: number
  getContext(kind: '2d'): { getImageData(...box: readonly number[]): { readonly data: Uint8Array } }
}

test('a job that is started on the page makes an adapter, which can then be asked', async (t) => {
  const { page, faults } = await open(t)
  const file = {
    name: 'green.jsonl',
    mimeType: 'application/jsonl',
    buffer: Buffer.from(conversation('green').repeat(4)),
  }
  await page.getByText('New job').click()
  await page.getByLabel('Conversations').setInputFiles(file)
  await page.getByLabel('Name').fill('green')
  await page.getByLabel('Epochs').fill('2')
  await page.getByRole('button', { name: 'Start' }).click()
  await shows(page.getByRole('article', { name: 'Job green' }), 'succeeded')
  const compare = page.getByRole('button', { name: /^Compare ft:tiny:green:/ })
  await compare.click()
  await page.locator('#question:focus').waitFor()
  t.regex(await page.getByLabel('Right model').inputValue(), /^ft:tiny:green:/)
  await ask(page)
  await shows(answers(page)[1], /ft:tiny:green:.*tokens/s)
  t.deepEqual(faults, [])
})

test('what is refused is said where it was asked', async (t) => {
  const { page, faults } = await open(t, { allowed: [400] })
  await ask(page, 'long '.repeat(100))
  for (const answer of answers(page)) await shows(answer, /maximum context length is \d+ tokens/)
  t.deepEqual(faults, [])
})

test.serial('memory and throughput are numbers with curves, and follow what the server does', async (t) => {
  const { page, faults } = await open(t)
  const load = page.getByRole('region', { name: 'Memory and throughput' })
  await shows(load.locator('#memory'), /\d MB resident/)
  holdAt(t, 6)
  await ask(page)
  await shows(load.locator('#texts'), /[12] (running|waiting)/)
  await shows(load.locator('#cache'), /\d kB in use/)
  const label = await load.locator('#throughput').getByRole('img').getAttribute('aria-label')
  t.regex(label!, /^Throughput of the last minutes, at most [\d,.]*[1-9]/)
  for (const canvas of await load.locator('canvas').all()) t.true(await isDrawn(canvas))
  t.deepEqual(faults, [])
})

test.serial('every control is reached and left by Tab alone, in the order of the page', async (t) => {
  const { page, faults } = await open(t)
  const { id: training_file } = await uploaded(conversation(word))
  const job = await client.fineTuning.jobs.create({ model: 'tiny', training_file, suffix: 'brief' })
  await client.fineTuning.jobs.cancel(job.id)
  await page.getByRole('button', { name: 'brief' }).waitFor()
  const there = await tabbed(page, 'Tab')
  t.deepEqual(there, [
    'To the content',
    'New chat',
    'Left model',
    'Right model',
    'Conversation',
    'Question to both models',
    'Temperature',
    'Max tokens',
    'Stop',
    'Send',
    'Adapters',
    'Compare blue with the base',
    'New job',
    'brief',
  ])
  t.deepEqual((await tabbed(page, 'Shift+Tab')).toReversed(), there)
  t.deepEqual(faults, [])
})

/** What has the focus after each press, until it is the browser's, or the first one's, again. Throws where it is unseen. */
async function tabbed(page: Page, key: string): Promise<string[]> {
  const found: string[] = []
  for (;;) {
    await page.keyboard.press(key)
    const [name, outline] = (await page.evaluate(focus)) as [string, number]
    if (name === '' || name === found[0]) return found
    if (outline < 2) throw new Error(`${name} does not show that it has the focus`)
    found.push(name)
  }
}

/** Asked in the browser: the name of what has the focus, and the width of its outline. */
const focus = `(() => {
  const it = document.activeElement
  if (it === document.body) return ['', 0]
  const label = it.labels?.[0]
  const name = it.getAttribute('aria-label') ?? (label?.querySelector('span') ?? label ?? it).textContent
  return [name.trim(), parseFloat(getComputedStyle(it).outlineWidth)]
})()`

test.serial('a question is asked, and its answers are stopped, without a mouse', async (t) => {
  const { page, faults } = await open(t)
  holdAt(t, 2)
  await page.getByLabel('Temperature').fill('0')
  const field = page.getByLabel('Question to both models')
  await field.focus()
  await page.keyboard.type('One line')
  await page.keyboard.press('Shift+Enter')
  await page.keyboard.type('and another')
  t.is(await field.inputValue(), 'One line\nand another')
  await page.keyboard.press('ControlOrMeta+A')
  await page.keyboard.type(question)
  await page.keyboard.press('Enter')
  for (const answer of answers(page)) await shows(answer, 'Writing…')
  t.is(await page.getByRole('log').getAttribute('aria-busy'), 'true')
  await page.keyboard.press('Escape')
  for (const answer of answers(page)) await shows(answer, 'Stopped')
  t.is(await page.getByRole('log').getAttribute('aria-busy'), 'false')
  t.deepEqual(faults, [])
})

test('numbers out of range are not sent', async (t) => {
  const { page, faults } = await open(t)
  await page.getByLabel('Max tokens').fill('0')
  await ask(page)
  await page.locator('input:invalid:focus').waitFor()
  t.is(await page.locator('.answer').count(), 0)
  t.deepEqual(faults, [])
})

test('it is light or dark as its reader likes, and every text can be read on its ground', async (t) => {
  const { page, faults } = await open(t, { colorScheme: 'light' })
  const names = ['text', 'muted', 'accent', 'second', 'danger', 'good', 'panel', 'ground', 'question']
  const colours = async (): Promise<Record<string, string>> =>
    Object.fromEntries(
      await Promise.all(
        names.map(async (name) => [
          name,
          await page.evaluate<string>(`getComputedStyle(document.body).getPropertyValue('--${name}')`),
        ]),
      ),
    )
  const light = await colours()
  await page.emulateMedia({ colorScheme: 'dark' })
  const dark = await colours()
  t.true(luminance(light.ground!) > 0.8 && luminance(dark.ground!) < 0.05)
  for (const scheme of [light, dark])
    for (const ground of [scheme.panel!, scheme.ground!, scheme.question!])
      for (const name of ['text', 'muted', 'accent', 'danger', 'good'])
        t.true(contrast(scheme[name]!, ground) >= 4.5, `${name} ${scheme[name]} on ${ground}`)
  t.deepEqual(faults, [])
})

/** Of WCAG 2. */
function luminance(colour: string): number {
  const channels = [1, 3, 5].map((at) => Number.parseInt(colour.trim().slice(at, at + 2), 16) / 255)
  const [r, g, b] = channels.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!
}

function contrast(one: string, other: string): number {
  const [dark, light] = [luminance(one), luminance(other)].toSorted((a, b) => a - b)
  return (light! + 0.05) / (dark! + 0.05)
}

test('where keys are asked for, the page asks, and keeps a key in its tab only', async (t) => {
  const keys = join(temporaryFolder(), 'keys.txt')
  const key = await addKey(keys, { name: 'owner', scopes: ['admin'] })
  const server = await startServer({ model, modelName: 'tiny', data: temporaryFolder(), port: 0, logger: false, keys })
  t.teardown(() => server.close(AbortSignal.timeout(1)))
  const { page, faults } = await openPage(t, browser, server.url, { allowed: [401] })
  await page.locator('input:focus').waitFor()
  await page.keyboard.type('hk-wrong')
  await page.keyboard.press('Enter')
  await page.getByText('This key is not known to the server.').waitFor()
  await page.getByLabel('API key').fill(key)
  await page.keyboard.press('Enter')
  await ask(page)
  await shows(answers(page)[0], /tokens/)
  const kept = '[Object.values(sessionStorage), Object.values(localStorage), document.cookie, location.href]'
  t.deepEqual(await page.evaluate(kept), [[key], [], '', `${server.url}/`])
  const other = await page.context().newPage()
  t.teardown(() => other.close())
  await other.goto(server.url)
  await other.getByLabel('API key').waitFor()
  await page.getByRole('button', { name: 'Forget key' }).click()
  await page.getByText('This server asks for a key.').waitFor()
  t.deepEqual(await page.evaluate(kept), [[], [], '', `${server.url}/`])
  t.deepEqual(faults, [])
})

test('a key for asking opens the chat, and the other parts say what they would need', async (t) => {
  const keys = join(temporaryFolder(), 'keys.txt')
  const key = await addKey(keys, { name: 'asker', scopes: ['infer'] })
  const options = {
    model,
    modelName: 'tiny',
    data: temporaryFolder(),
    port: 0,
    logger: false,
    keys,
    prefix: '/llm',
  } as const
  const server = await startServer(options)
  t.teardown(() => server.close(AbortSignal.timeout(1)))
  const { page, faults } = await openPage(t, browser, `${server.url}/llm`, { allowed: [401, 403] })
  t.is(page.url(), `${server.url}/llm/`)
  await page.getByLabel('API key').fill(key)
  await page.keyboard.press('Enter')
  await ask(page)
  await shows(answers(page)[0], /tokens/)
  await shows(page.getByRole('region', { name: 'Training' }), 'The API key "asker" is not good for "train".')
  await shows(page.getByRole('region', { name: 'Memory' }), 'The API key "asker" is not good for "metrics".')
  t.deepEqual(faults, [])
})

test('a server that is gone is told of, and found again', async (t) => {
  const first = await startServer({ model, modelName: 'tiny', data: temporaryFolder(), port: 0, logger: false })
  const { page } = await openPage(t, browser, first.url)
  await page.getByLabel('Question to both models').waitFor()
  await first.close(AbortSignal.timeout(1))
  await page.getByText('The server does not answer.').first().waitFor()
  const port = Number(new URL(first.url).port)
  const second = await startServer({ model, modelName: 'tiny', data: temporaryFolder(), port, logger: false })
  t.teardown(() => second.close(AbortSignal.timeout(1)))
  await page.getByText('The server does not answer.').first().waitFor({ state: 'detached' })
  await ask(page)
  await shows(answers(page)[0], /tokens/)
  t.truthy(await said(answers(page)[0]))
})
