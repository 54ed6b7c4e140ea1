// A hundred adapters on one model, each trained to answer with its own word: sixty-four texts at once, in memory for a
// part of the adapters only, and nobody gets another's word.
import { cp, mkdir, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { factorsOf } from '../lib/adapters/as_lora.js'
import { storedFactorsOf } from '../lib/adapters/stored_factors.js'
import {
  adalora,
  adamw,
  createEngine,
  type Engine,
  type EngineOptions,
  HeddleError,
  ia3,
  lora,
  type Model,
  train,
} from '../lib/index.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel } from './tiny_model.js'

const count = 100
const question = 'Who are you? '
const ranks = [2, 4, 8, 16]
const adapters = join(temporaryFolder(), 'adapters')
const nameOf = (i: number): string => `tenant-${i}`
/** Four letters, no two words alike. */
const wordOf = (i: number): string =>
  [3, 7, 11, 1]
    .map((factor, place) => String.fromCharCode(97 + ((factor * i + (place === 3 ? Math.floor(i / 26) : place)) % 26)))
    .join('')

let model: Model
const engines: Engine[] = []

async function taught(i: number): Promise<void> {
  const data = join(adapters, '..', `${i}.jsonl`)
  await writeFile(data, `${JSON.stringify({ prompt: question, completion: wordOf(i) })}\n`)
  const method = lora({ r: ranks[i % ranks.length]!, lora_alpha: 16, target_modules: 'all-linear' })
  const options = { data, method, optimizer: adamw({ lr: 1e-2 }), maxSteps: 60, batchSize: 1, maxLength: 32, seed: i }
  for await (const _ of train(model, options)) {
  }
  await model.adapters.at(-1)!.save(join(adapters, nameOf(i)))
}

test.before('train a hundred adapters', async (t) => {
  t.timeout(240_000)
  await mkdir(adapters, { recursive: true })
  model = await tinyModel()
  for (let i = 0; i < count; i += 1) await taught(i)
})

test.after.always('close everything', async () => {
  for (const engine of engines) await engine.close(AbortSignal.abort())
  await model?.dispose()
})

async function engineOf(options: EngineOptions): Promise<Engine> {
  const engine = await createEngine(model, { adapters, maxBatch: 64, stepTokens: 256, ...options })
  engines.push(engine)
  return engine
}

async function answer(engine: Engine, adapter: string | undefined, maxTokens = 4): Promise<string> {
  let text = ''
  for await (const part of engine.generate(question, { adapter, maxTokens, chat: false })) text += part
  return text
}

test('sixty-four texts at once with adapters of mixed ranks: each gets its own word', async (t) => {
  const engine = await engineOf({})
  t.is(new Set(Array.from({ length: count }, (_, i) => wordOf(i))).size, count)
  const wanted = Array.from({ length: 128 }, (_, i) => (37 * i) % count)
  const texts = await Promise.all(wanted.map((i) => answer(engine, nameOf(i))))
  t.deepEqual(texts, wanted.map(wordOf))
})

test('a text with an adapter is what it is alone, and what the model makes of the adapter by itself', async (t) => {
  const engine = await engineOf({})
  const some = [0, 1, 2, 3, 50, 99]
  const together = await Promise.all([...some.map((i) => answer(engine, nameOf(i), 12)), answer(engine, undefined, 12)])
  const alone: string[] = []
  for (const i of some) alone.push(await answer(engine, nameOf(i), 12))
  alone.push(await answer(engine, undefined, 12))
  t.deepEqual(together, alone)
  const own: string[] = []
  for (const adapter of [...some.map((i) => model.adapters[i]), undefined]) {
    let text = ''
    for await (const part of model.generate(question, { adapter, maxTokens: 12, chat: false })) text += part
    own.push(text)
  }
  t.deepEqual(together, own)
})

test('with memory for a few adapters, idle ones make room and none is lost', async (t) => {
  const engine = await engineOf({ memory: { adapters: 200_000 } })
  const evicted: string[] = []
  engine.watch({ onEvict: ({ name }) => evicted.push(name) })
  const texts = await Promise.all(Array.from({ length: count }, (_, i) => answer(engine, nameOf(i))))
  t.deepEqual(
    texts,
    Array.from({ length: count }, (_, i) => wordOf(i)),
  )
  const { usedBytes, bytes, loaded } = engine.state().adapters
  t.true(evicted.length > 50 && loaded.length < 50 && usedBytes <= bytes)
})

test('a name that is given to another folder answers with the new words, to those who ask from then on', async (t) => {
  const engine = await engineOf({})
  await engine.addAdapter('ours', join(adapters, nameOf(1)))
  const before = answer(engine, 'ours')
  await new Promise<void>((resolve) => engine.watch({ onFirstToken: () => resolve() }))
  await engine.addAdapter('ours', join(adapters, nameOf(2)))
  t.deepEqual([await before, await answer(engine, 'ours')], [wordOf(1), wordOf(2)])
})

test('a request that is stopped while its adapter waits for memory lets the others go on', async (t) => {
  const engine = await engineOf({ memory: { adapters: 150_000 } })
  const stop = new AbortController()
  const busy = answer(engine, nameOf(3), 30)
  const stopped = (async () => {
    for await (const _ of engine.generate(question, { adapter: nameOf(7), signal: stop.signal })) {
    }
  })()
  stop.abort()
  const error = await t.throwsAsync(stopped, { instanceOf: HeddleError })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_ABORTED')
  t.true((await busy).startsWith(wordOf(3)))
  t.is(await answer(engine, nameOf(2)), wordOf(2))
})

test('an engine that is told to end at once ends requests that wait for memory, too', async (t) => {
  const engine = await createEngine(model, { adapters, memory: { adapters: 150_000 } })
  const running = engine.generate(question, { adapter: nameOf(3), maxTokens: 30, chat: false })
  await running.next()
  const waiting = [7, 11].map((i) => answer(engine, nameOf(i)))
  await new Promise((resolve) => setTimeout(resolve, 0))
  const closed = engine.close(AbortSignal.abort())
  for (const each of [...waiting, running.next()]) await t.throwsAsync(each, { code: 'ERR_HEDDLE_ABORTED' })
  await closed
  t.is(engine.state().waiting, 0)
})

test('factors that lie in the file are those that attaching the adapter gives, bit for bit', async (t) => {
  const folder = join(temporaryFolder(), 'plain')
  const options = { r: 3, lora_alpha: 5, target_modules: ['q_proj', 'down_proj'], init_lora_weights: false }
  const adapter = await model.attach(
    lora({ ...options, use_rslora: true, rank_pattern: { 'layers.1.self_attn.q_proj': 7 } }),
  )
  await adapter.save(folder)
  const [stored, attached] = [await storedFactorsOf(model.network, folder), await Adapter.load(model.network, folder)]
  const wanted = await factorsOf(attached)
  t.deepEqual([...stored!.keys()], [...wanted.keys()])
  for (const [path, { a, b, scale }] of stored!) {
    t.deepEqual(await a.data(), await wanted.get(path)!.a.data(), path)
    const scaled = (await b.data()) as Float32Array
    t.deepEqual(
      scaled.map((x) => Math.fround(scale) * x),
      (await wanted.get(path)!.b.data()) as Float32Array,
      path,
    )
  }
})

test('what is more than factors is left to the method', async (t) => {
  const methods = [
    lora({ r: 2, use_dora: true }),
    lora({ r: 2, init_lora_weights: 'olora' }),
    adalora({ init_r: 2, target_r: 1, total_step: 10 }),
    ia3({ target_modules: ['k_proj'], feedforward_modules: [] }),
    lora({ r: 2, modules_to_save: ['input_layernorm'] }),
  ]
  for (const [i, method] of methods.entries()) {
    const folder = join(temporaryFolder(), `method-${i}`)
    await (await model.attach(method)).save(folder, { convert: false })
    t.is(await storedFactorsOf(model.network, folder), undefined, `${i}`)
  }
})

test('a file that is cut short fails its own requests, takes no memory, and is served once it is whole', async (t) => {
  const engine = await engineOf({})
  const folder = join(temporaryFolder(), 'cut')
  const file = join(folder, 'adapter_model.safetensors')
  await cp(join(adapters, nameOf(4)), folder, { recursive: true })
  await engine.addAdapter('cut', folder)
  for (const part of [0.9, 0.5, 0.01, 0]) {
    await truncate(file, Math.floor(part * (await stat(file)).size))
    await t.throwsAsync(answer(engine, 'cut'), { code: 'ERR_HEDDLE_FORMAT' })
    t.is(engine.state().adapters.usedBytes, 0)
  }
  t.is(await answer(engine, nameOf(6)), wordOf(6))
  await cp(join(adapters, nameOf(4)), folder, { recursive: true })
  t.is(await answer(engine, 'cut'), wordOf(4))
})

test('an adapter that is removed while it loads answers those who asked, and nobody after them', async (t) => {
  const engine = await engineOf({})
  const wanted = new Promise<void>((resolve) => engine.watch({ onAdapter: () => queueMicrotask(resolve) }))
  const asked = [answer(engine, nameOf(8)), answer(engine, nameOf(8))]
  await wanted
  t.deepEqual(engine.state().adapters.loaded, [])
  engine.removeAdapter(nameOf(8))
  t.is(await asked[0], wordOf(8))
  await Promise.allSettled(asked)
  await t.throwsAsync(answer(engine, nameOf(8)), { code: 'ERR_HEDDLE_ARGUMENT' })
  t.is(engine.state().adapters.usedBytes, 0)
})

test('an adapter that is larger than all the memory for adapters is refused, with what would help', async (t) => {
  const engine = await engineOf({ memory: { adapters: 20_000 } })
  const error = await t.throwsAsync(answer(engine, nameOf(3)), { instanceOf: HeddleError })
  t.regex(error!.message, /at most 20000 bytes.*memory\.adapters/s)
  t.is((await answer(engine, undefined)).length > 0, true)
})

test('an adapter whose change is of no low rank is refused by name, and others are served', async (t) => {
  const engine = await engineOf({})
  const folder = join(temporaryFolder(), 'scales')
  const adapter = await model.attach(ia3({ target_modules: ['k_proj', 'v_proj'], feedforward_modules: [] }))
  await adapter.save(folder)
  await engine.addAdapter('scales', folder)
  const error = await t.throwsAsync(answer(engine, 'scales'), { instanceOf: HeddleError })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_ARGUMENT')
  t.regex((error as HeddleError).hint ?? '', /Merge/)
  t.is(await answer(engine, nameOf(5)), wordOf(5))
})

test('names that are no plain file names, unknown ones and empty folders are refused', async (t) => {
  const engine = await engineOf({})
  const codes = await Promise.all(
    [
      engine.addAdapter('../up', join(adapters, nameOf(1))),
      engine.addAdapter('empty', temporaryFolder()),
      answer(engine, 'nobody'),
    ].map((refused) =>
      refused.then(
        () => 'taken',
        (error: HeddleError) => error.code,
      ),
    ),
  )
  t.deepEqual(codes, ['ERR_HEDDLE_ARGUMENT', 'ERR_HEDDLE_IO', 'ERR_HEDDLE_ARGUMENT'])
})
