// What becomes of texts when memory is short, callers are slow, gone or too many, a step fails, or weights change; and
// that every architecture is served.
import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { cp } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { createEngine, type Engine, type EngineOptions, loadModel, lora, type Model } from '../lib/index.js'
import { decoders } from '../lib/models/registry.js'
import { golden, goldenJson, root } from './golden.js'
import { type Asked, alone, collected, recorded, served, sum, told } from './support/engine_texts.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModelFolder } from './tiny_model.js'

let model: Model
const engines: Engine[] = []
test.before('load the embedded model', async () => {
  model = await loadModel(join(root, 'models', 'heddle-tiny'))
})
test.after.always('close everything', async () => {
  for (const engine of engines) await engine.close(AbortSignal.abort())
  await model?.dispose()
})

const pageTokens = 16
/** Keys and values of a page: 2 · 4 layers · 2 heads · 64 numbers a token, f32. */
const pageBytes = pageTokens * 2 * 4 * 2 * 64 * 4

/** An engine with room for so many pages. */
async function engineOf(pages: number, options: EngineOptions = {}): Promise<Engine> {
  const engine = await createEngine(model, { memory: { cache: pages * pageBytes }, ...options })
  engines.push(engine)
  return engine
}

const ids = (length: number, seed: number): Int32Array =>
  Int32Array.from({ length }, (_, i) => 5 + ((i * 37 + seed * 101) % 4000))

const aborted = { code: 'ERR_HEDDLE_ABORTED' }
const empty = { running: 0, waiting: 0, cache: { usedBytes: 0 } }

for (const [name, more] of [
  ['greedy', {}],
  ['seeded', { temperature: 1, seed: 3, repetitionPenalty: 1.2 }],
  ['of a form', { responseFormat: { type: 'regex', pattern: '([a-f]{2} ){20,40}' } }],
] as const)
  test(`pages that run out: texts wait, are read again, and come out as they are alone (${name})`, async (t) => {
    const engine = await engineOf(12, { maxBatch: 6 })
    const record = recorded(engine)
    const requests = [0, 1, 2, 3, 4, 5].map((seed): Asked => {
      return { prompt: ids(20 + seed, seed), options: { maxTokens: 60, ...more } }
    })
    const texts = await Promise.all(requests.map((request) => served(engine, request)))
    for (const [i, request] of requests.entries()) t.deepEqual(told(texts[i]!), told(await alone(model, request)))
    // Read more than once: some were preempted.
    t.true(sum(record.steps.map(({ promptTokens }) => promptTokens)) > sum([0, 1, 2, 3, 4, 5].map((i) => 20 + i)))
    t.true(record.ended.every(({ reason }) => reason === 'length' || reason === 'stop'))
    t.like(engine.state(), empty)
  })

test('a text that could never fit is refused, with what would help; one that just fits is made', async (t) => {
  const engine = await engineOf(4)
  t.is(engine.state().maxTokens, 65)
  await t.throwsAsync(served(engine, { prompt: ids(30, 1), options: { maxTokens: 36 } }), {
    code: 'ERR_HEDDLE_OOM',
    message: /at most 65 tokens.*got 30 and 36.*memory\.cache/,
  })
  const request = { prompt: ids(30, 1), options: { maxTokens: 35, minTokens: 35 } }
  t.deepEqual(told(await served(engine, request)), told(await alone(model, request)))
})

test('an abort signal ends one request wherever it is, frees what it held, and no other', async (t) => {
  const engine = await engineOf(40, { maxBatch: 2 })
  const { ended } = recorded(engine)
  const request = { prompt: ids(20, 7), options: { maxTokens: 80, minTokens: 80 } }
  const other = served(engine, request)
  const controllers = [0, 1, 2].map(() => new AbortController())
  const streams = controllers.map(({ signal }, seed) =>
    engine.generateTokens(ids(30, seed), { maxTokens: 200, signal }),
  )
  await streams[0]!.next()
  // The second has a step behind it or waits, the third waits for a place.
  const waiting = streams.slice(1).map((stream) => stream.next())
  for (const controller of controllers) controller.abort()
  await t.throwsAsync(streams[0]!.next(), aborted)
  for (const next of waiting) await t.throwsAsync(next, aborted)
  t.deepEqual(told(await other), told(await alone(model, request)))
  await t.throwsAsync(served(engine, request, { signal: AbortSignal.abort() }), aborted)
  t.like(engine.state(), empty)
  t.deepEqual(ended.map(({ reason }) => reason).sort(), ['aborted', 'aborted', 'aborted', 'length'])
})

test('leaving the loop frees everything at once', async (t) => {
  const engine = await engineOf(40)
  for await (const _ of engine.generateTokens(ids(40, 1), { maxTokens: 200, minTokens: 200 })) break
  t.like(engine.state(), empty)
  const stream = engine.generate('The House', { maxTokens: 200, minTokens: 200 })
  await stream.next()
  await stream.return()
  t.like(engine.state(), empty)
})

test('a caller who does not read holds up only itself: a few tokens are made, then the text waits', async (t) => {
  const engine = await engineOf(60, { maxBatch: 2 })
  const { steps } = recorded(engine)
  const request = { prompt: ids(10, 1), options: { maxTokens: 120, minTokens: 120 } }
  const slow = engine.generateTokens(request.prompt, request.options)
  const first = await slow.next()
  for (let seed = 2; seed < 6; seed += 1) await served(engine, { prompt: ids(10, seed), options: { maxTokens: 60 } })
  t.true(sum(steps.map(({ newTokens }) => newTokens)) <= 4 * 60 + 40)
  t.like(engine.state(), { running: 0, waiting: 1 })
  const rest = await collected(slow)
  t.deepEqual(told([first.value!, ...rest]), told(await alone(model, request)))
})

test('callers who do not read give their pages up to those who do', async (t) => {
  const engine = await engineOf(10, { maxBatch: 2 })
  const request = { prompt: ids(40, 1), options: { maxTokens: 100, minTokens: 100 } }
  const slow = engine.generateTokens(request.prompt, request.options)
  const first = await slow.next()
  const big = { prompt: ids(100, 2), options: { maxTokens: 50, minTokens: 50 } }
  t.deepEqual(told(await served(engine, big)), told(await alone(model, big)))
  t.deepEqual(told([first.value!, ...(await collected(slow))]), told(await alone(model, request)))
})

test('requests beyond the queue are refused with ERR_HEDDLE_BUSY, and those in it are served', async (t) => {
  const engine = await engineOf(60, { maxBatch: 1, maxQueue: 2 })
  const requests = [0, 1, 2, 3, 4].map((seed) => served(engine, { prompt: ids(5, seed), options: { maxTokens: 5 } }))
  const results = await Promise.allSettled(requests)
  t.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'fulfilled', 'fulfilled', 'rejected', 'rejected'],
  )
  t.like((results[4] as PromiseRejectedResult).reason, { code: 'ERR_HEDDLE_BUSY' })
  t.is((await served(engine, { prompt: ids(5, 1), options: { maxTokens: 5 } })).length, 5)
})

test('close waits for what runs and takes nothing new', async (t) => {
  const engine = await engineOf(60)
  const request = { prompt: ids(5, 1), options: { maxTokens: 30, minTokens: 30 } }
  const stream = engine.generateTokens(request.prompt, request.options)
  const first = await stream.next()
  const [rest] = await Promise.all([collected(stream), engine.close()])
  t.deepEqual(told([first.value!, ...rest]), told(await alone(model, request)))
  t.true(engine.state().isClosed)
  await t.throwsAsync(served(engine, request), { code: 'ERR_HEDDLE_ARGUMENT', message: /closed/ })
})

test('close with a signal ends what runs and waits', async (t) => {
  const engine = await engineOf(60, { maxBatch: 1 })
  const streams = [1, 2].map((seed) => engine.generateTokens(ids(5, seed), { maxTokens: 400, minTokens: 400 }))
  await streams[0]!.next()
  const second = streams[1]!.next()
  await engine.close(AbortSignal.timeout(30))
  await t.throwsAsync(second, aborted)
  await t.throwsAsync(collected(streams[0]!), aborted)
})

test('a step that fails ends the texts that were in it, and the engine lives on', async (t) => {
  const own = await loadModel(await tinyModelFolder())
  const engine = await createEngine(own)
  const { ended } = recorded(engine)
  const request = { prompt: Int32Array.of(1, 2, 3), options: { maxTokens: 5, minTokens: 5 } }
  const network = own.network as { hidden: Model['network']['hidden'] }
  const { hidden } = network
  network.hidden = async () => {
    throw new Error('out of luck')
  }
  const failed = await Promise.allSettled([served(engine, request), served(engine, request)])
  network.hidden = hidden
  t.true(failed.every((result) => result.status === 'rejected' && result.reason.message === 'out of luck'))
  t.deepEqual(told(await served(engine, request)), told(await alone(own, request)))
  t.deepEqual(
    ended.map(({ reason }) => reason),
    ['failed', 'failed', 'length'],
  )
  t.like(engine.state(), empty)
  await engine.close()
  await own.dispose()
})

test('weights that change: texts go on with the new ones, and nothing old is found in the cache', async (t) => {
  const own = await loadModel(await tinyModelFolder())
  const engine = await createEngine(own)
  const { ended } = recorded(engine)
  const request = { prompt: ids(40, 1).map((id) => id % 250), options: { maxTokens: 8, minTokens: 8 } }
  await served(engine, request)
  await served(engine, request)
  const adapter = await own.attach(lora({ r: 4, init_lora_weights: false }))
  await own.merge(adapter)
  t.deepEqual(told(await served(engine, request)), told(await alone(own, request)))
  own.unmerge(adapter)
  t.deepEqual(told(await served(engine, request)), told(await alone(own, request)))
  t.deepEqual(
    ended.map(({ cachedTokens }) => cachedTokens),
    [0, 32, 0, 0],
  )
  await engine.close()
  await own.dispose()
})

test('requests without end hold memory flat', async (t) => {
  t.timeout(120_000)
  const child = fileURLToPath(new URL('./support/engine_leak_child.js', import.meta.url))
  const flags = ['--expose-gc', '--max-semi-space-size=1', '--no-opt', '--no-sparkplug', '--max-lazy']
  const { stdout } = await promisify(execFile)(process.execPath, [...flags, child, await tinyModelFolder(), '600'])
  const bytes = stdout.trim().split('\n').map(Number)
  const text = bytes.map((each) => (each / 2 ** 20).toFixed(1)).join(', ')
  t.true(bytes.length === 6 && bytes.slice(1).every((each) => each / bytes[1]! <= 1.03), `MiB: ${text}`)
})

const architectures = readdirSync(golden('models')).filter((name) =>
  decoders.some(
    ({ modelType }) => modelType === goldenJson<{ model_type: string }>(`models/${name}/config.json`).model_type,
  ),
)

/** A golden model with the tokenizer of the tiny one. */
async function architecture(name: string): Promise<Model> {
  const folder = join(temporaryFolder(), name)
  await cp(golden(`models/${name}`), folder, { recursive: true })
  const tiny = await tinyModelFolder()
  for (const file of ['tokenizer.json', 'tokenizer_config.json']) await cp(join(tiny, file), join(folder, file))
  return loadModel(folder)
}

for (const name of architectures.filter((each) => each !== 'phi3-longrope'))
  test(`${name}: texts made at the same time, in few pages, are what each is alone`, async (t) => {
    const own = await architecture(name)
    const { layers, heads, size } = own.network.keyValues
    const cache = 5 * pageTokens * 2 * layers * heads * size * 4
    const engine = await createEngine(own, { maxBatch: 3, stepTokens: 11, memory: { cache } })
    // llama-dynamic turns texts of more than 16 tokens by their length.
    const requests = [7, 20, 24, 30].map((length, seed): Asked => {
      const prompt = Int32Array.from({ length }, (_, i) => 3 + ((i * i + seed) % 60))
      return { prompt, options: { maxTokens: 28, temperature: seed % 2, seed } }
    })
    const texts = await Promise.all(requests.map((request) => served(engine, request)))
    for (const [i, request] of requests.entries()) t.deepEqual(told(texts[i]!), told(await alone(own, request)))
    await engine.close()
    await own.dispose()
  })

test('a network that turns the keys of a long text anew is refused, and told where to go', async (t) => {
  const own = await architecture('phi3-longrope')
  await t.throwsAsync(createEngine(own), { code: 'ERR_HEDDLE_ARGUMENT', message: /longrope.*model\.generate/ })
  await own.dispose()
})
