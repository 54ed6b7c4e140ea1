// Text generation: streaming, sampling, where it stops, what it refuses, and that nothing of one call reaches another.
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import type { Adapter } from '../lib/adapters/adapter.js'
import { Session } from '../lib/generate/session.js'
import { StopFilter } from '../lib/generate/stop_filter.js'
import { program } from '../lib/graph/program.js'
import { adamw, type GenerateOptions, HeddleError, loadModel, lora, type Model, tensor } from '../lib/index.js'
import { linear } from '../lib/nn/site.js'
import { train } from '../lib/train/train.js'
import { fetchModel } from './models/fetch.js'
import { nextToken } from './support/next_token.js'
import { proverbs, textFile, tinyModelFolder } from './tiny_model.js'

const plain = { precision: 'f32', training: false } as const
const prompt = '3. A stitch'

/** A tiny model that has learned to write proverbs; `config` and `tokenizer` change its files first. */
async function proverbModel({ config = {}, tokenizer = {} } = {}): Promise<Model> {
  const folder = await tinyModelFolder()
  for (const [name, change] of [
    ['config.json', config],
    ['tokenizer_config.json', tokenizer],
  ] as const) {
    const path = join(folder, name)
    await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...change }))
  }
  const model = await loadModel(folder)
  await drain(
    train(model, { data: await textFile(), full: true, maxSteps: 60, maxLength: 64, optimizer: adamw({ lr: 1e-2 }) }),
  )
  return model
}

async function drain(steps: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of steps);
}

async function textOf(model: Model, from: string = prompt, options: GenerateOptions = {}): Promise<string> {
  let text = ''
  for await (const piece of model.generate(from, { maxTokens: 40, ...options })) text += piece
  return text
}

/** What a session that has seen nothing writes greedily. */
async function freshText(model: Model, hook?: Adapter['hook'], tokens = 40) {
  const session = await Session.create(model.network, { precision: 'f32', hook }, 256)
  const ids = await greedyIds(session, await model.tokenizer.encode(prompt), tokens)
  session.dispose()
  return model.tokenizer.decode(ids)
}

async function greedyIds(session: Session, from: Int32Array, count: number): Promise<number[]> {
  const ids: number[] = []
  for (let fed = from; ids.length < count; fed = Int32Array.of(ids.at(-1)!)) ids.push(await nextToken(session, fed))
  return ids
}

/** Logits of every position `[n][vocabulary]`, computed without a cache. */
async function uncachedLogits({ network }: Model, ids: readonly number[]): Promise<Float32Array[]> {
  const run = program(async (row) => linear(network.outputSite, await network.hidden({ ids: row! }, plain), plain))
  const logits = (await (await run(tensor(Int32Array.from(ids), [1, ids.length]))).data()) as Float32Array
  run.dispose()
  const width = network.vocabularySize
  return ids.map((_, i) => logits.subarray(i * width, (i + 1) * width))
}

const largest = (row: Float32Array): number => row.indexOf(Math.max(...row))

let shared: Model
test.before('train a tiny model', async () => {
  shared = await proverbModel({ config: { max_position_embeddings: 700 } })
})
test.after.always('dispose', () => shared?.dispose())

test('pieces come one by one and make up the text', async (t) => {
  const pieces: string[] = []
  for await (const piece of shared.generate(prompt, { maxTokens: 40 })) pieces.push(piece)
  t.is(pieces.length, 40)
  t.is(pieces.join(''), await freshText(shared))
  t.true(proverbs.includes(pieces.join('').slice(0, 20)), pieces.join(''))
})

for (const [length, bucket] of [
  [5, 'one bucket'],
  [290, 'several buckets'],
  [655, 'buckets that only just fit into the cache'],
] as const)
  test(`a prompt of ${length} tokens (${bucket}): the cache changes nothing`, async (t) => {
    const from = (await shared.tokenizer.encode(proverbs)).subarray(0, length)
    const session = await Session.create(shared.network, { precision: 'f32' }, Math.min(700, length + 45))
    const ids = await greedyIds(session, from, 40)
    session.dispose()
    const logits = await uncachedLogits(shared, [...from, ...ids])
    t.deepEqual(ids, logits.slice(length - 1, -1).map(largest))
  })

test('a prompt as long as the model allows gives one token', async (t) => {
  t.is((await textOf(shared, proverbs.slice(0, 700))).length, 1)
})

test('the same seed gives the same text, another one another', async (t) => {
  const options = { temperature: 1.5, seed: 7 }
  const text = await textOf(shared, prompt, options)
  t.is(await textOf(shared, prompt, options), text)
  t.not(await textOf(shared, prompt, { ...options, seed: 8 }), text)
  t.not(await textOf(shared, prompt, { ...options, seed: 7 + 2 ** 40 }), text)
})

test('topK 1 and a tiny topP are greedy at any temperature', async (t) => {
  const greedy = await textOf(shared)
  t.is(await textOf(shared, prompt, { temperature: 5, topK: 1 }), greedy)
  t.is(await textOf(shared, prompt, { temperature: 5, topP: 1e-9 }), greedy)
  t.not(await textOf(shared, prompt, { temperature: 5 }), greedy)
})

test('topK and topP draw from just the tokens they allow', async (t) => {
  const from = await shared.tokenizer.encode(prompt)
  const row = (await uncachedLogits(shared, [...from])).at(-1)!
  const temperature = 3
  const ranked = [...row.keys()].sort((a, b) => row[b]! - row[a]!)
  const weights = ranked.map((id) => Math.exp((row[id]! - row[ranked[0]!]!) / temperature))
  const total = weights.reduce((sum, weight) => sum + weight)
  let before = 0
  const nucleus = ranked.filter((_, rank) => {
    const isIn = before < 0.5
    before += weights[rank]! / total
    return isIn
  })
  const session = await Session.create(shared.network, { precision: 'f32' }, 64)
  for (const [limits, allowed] of [
    [{ topK: 4, topP: 1 }, ranked.slice(0, 4)],
    [{ topK: 0, topP: 0.5 }, nucleus],
  ] as const) {
    const drawn = new Set<number>()
    for (let seed = 0; seed < 200; seed += 1) {
      session.truncate(0)
      drawn.add(await nextToken(session, from, { temperature, seed, ...limits }))
    }
    t.true([...drawn].every((id) => allowed.includes(id)))
    t.true(drawn.size > Math.min(allowed.length, 10) / 2)
  }
  session.dispose()
})

test('a stop string ends the text before it, also one that spans many tokens', async (t) => {
  const text = await textOf(shared)
  const stop = text.slice(10, 16)
  t.is(await textOf(shared, prompt, { stop }), text.slice(0, text.indexOf(stop)))
  t.is(await textOf(shared, prompt, { stop: ['never', stop, text.slice(12, 30)] }), text.slice(0, text.indexOf(stop)))
  t.is(await textOf(shared, prompt, { stop: 'never' }), text)
})

test('the stop filter finds stop strings however the text is cut', (t) => {
  const stops = ['</s>', '\n\n', 'aab']
  for (const [text, expected] of [
    ['one </s> two', 'one '],
    ['a\nb\n\nc', 'a\nb'],
    ['aaaab', 'aa'],
    ['no stop </s', 'no stop </s'],
  ] as const)
    for (let size = 1; size <= text.length; size += 1) {
      const filter = new StopFilter(stops)
      let shown = ''
      for (let at = 0; at < text.length; at += size) shown += filter.push(text.slice(at, at + size))
      t.is(shown + filter.flush(), expected)
    }
})

test('maxTokens counts new tokens', async (t) => {
  for (const maxTokens of [1, 2, 17]) t.is((await textOf(shared, prompt, { maxTokens })).length, maxTokens)
})

test('an end token ends the text and is not part of it', async (t) => {
  const model = await proverbModel({ tokenizer: { eos_token: 'Ċ' } })
  const text = await textOf(model)
  t.false(text.includes('\n'))
  t.true(text.length > 5 && text.length < 40, text)
  await model.dispose()
})

test('an adapter changes the text, also after generating with it and training on; the base stays as it was', async (t) => {
  const model = await proverbModel()
  const base = await textOf(model)
  const adapter = await model.attach(lora({ r: 4 }))
  t.is(await textOf(model, prompt, { adapter }), base)
  const data = await textFile('aaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb\n'.repeat(40))
  await drain(train(model, { data, adapter, maxSteps: 10, maxLength: 32, optimizer: adamw({ lr: 3e-2 }) }))
  const adapted = await textOf(model, prompt, { adapter })
  t.not(adapted, base)
  t.is(adapted, await freshText(model, adapter.hook))
  t.is(await textOf(model), base)
  await model.merge(adapter)
  t.is(await textOf(model), adapted)
  await t.throwsAsync(textOf(model, prompt, { adapter }), { code: 'ERR_HEDDLE_ARGUMENT', message: /generate\.adapter/ })
  model.unmerge(adapter)
  t.is(await textOf(model), base)
  await model.dispose()
})

test('training all weights after generating changes the text', async (t) => {
  const model = await proverbModel()
  const before = await textOf(model)
  const data = await textFile('aaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb\n'.repeat(40))
  for (let round = 0; round < 2; round += 1) {
    await drain(train(model, { data, full: true, maxSteps: 6, maxLength: 32, optimizer: adamw({ lr: 1e-2 }) }))
    const after = await textOf(model)
    t.not(after, before)
    t.is(after, await freshText(model))
  }
  await model.dispose()
})

test('calls at the same time do not disturb each other', async (t) => {
  const requests = Array.from({ length: 6 }, (_, seed) => ({ seed, temperature: seed % 2, maxTokens: 20 + seed }))
  const apart: string[] = []
  for (const request of requests) apart.push(await textOf(shared, prompt, request))
  t.deepEqual(await Promise.all(requests.map((request) => textOf(shared, prompt, request))), apart)
})

test('leaving the loop early leaves the model usable', async (t) => {
  const expected = await textOf(shared)
  for (let round = 0; round < 3; round += 1) for await (const _ of shared.generate(prompt)) break
  t.is(await textOf(shared), expected)
})

test('a signal stops generation with ERR_HEDDLE_ABORTED, wherever it is, and leaves the model usable', async (t) => {
  const expected = await textOf(shared)
  const aborted = { instanceOf: HeddleError, code: 'ERR_HEDDLE_ABORTED' }
  await t.throwsAsync(textOf(shared, prompt, { signal: AbortSignal.abort() }), aborted)
  for (const pieces of [0, 1, 5]) {
    const controller = new AbortController()
    const stream = shared.generate(prompt, { maxTokens: 200, signal: controller.signal })
    for (let i = 0; i < pieces; i += 1) await stream.next()
    const next = stream.next()
    controller.abort()
    await t.throwsAsync(
      next.then(() => stream.next()),
      aborted,
    )
    t.is(await textOf(shared), expected)
  }
})

test('a signal stops a long prompt of a real model while it runs', async (t) => {
  const model = await loadModel(await fetchModel('smollm2'))
  await textOf(model, 'Hello', { maxTokens: 1 })
  const signal = AbortSignal.timeout(400)
  const long = 'The quick brown fox jumps over the lazy dog. '.repeat(700)
  await t.throwsAsync(textOf(model, long, { signal, chat: false }), { code: 'ERR_HEDDLE_ABORTED' })
  t.is(await textOf(model, 'What is the capital of France?'), 'The capital of France is Paris.')
  await model.dispose()
})

test('a real model: sampled pieces make up the text that their tokens stand for', async (t) => {
  const model = await loadModel(await fetchModel('smollm2'))
  const options = { temperature: 1, topK: 50, topP: 0.9, seed: 3, maxTokens: 40, chat: false }
  const from = 'Emoji: 🙂🇫🇷🎉 and 漢字, naïve café: 🙂'
  const pieces: string[] = []
  for await (const piece of model.generate(from, options)) pieces.push(piece)
  const session = await Session.create(model.network, { precision: 'f32' }, 256)
  const ids: number[] = []
  for (let fed = await model.tokenizer.encode(from); ids.length < 40; fed = Int32Array.of(ids.at(-1)!)) {
    const token = await nextToken(session, fed, { temperature: 1, topK: 50, topP: 0.9, seed: 3 })
    if (model.tokenizer.eosTokenIds.includes(token)) break
    ids.push(token)
  }
  t.is(pieces.join(''), await model.tokenizer.decode(ids, { skipSpecialTokens: true }))
  t.false(pieces.slice(0, -1).some((piece) => piece.endsWith('\ufffd')))
  await model.dispose()
})

for (const [options, message] of [
  [{ maxTokens: 0 }, /^generate\.maxTokens: expected an integer from 1, got 0/],
  [{ maxTokens: 1.5 }, /^generate\.maxTokens/],
  [{ maxTokens: Number.NaN }, /^generate\.maxTokens.* got NaN/],
  [{ temperature: -1 }, /^generate\.temperature: expected a number of at least 0, got -1/],
  [{ temperature: Number.POSITIVE_INFINITY }, /^generate\.temperature/],
  [{ topK: -1 }, /^generate\.topK/],
  [{ topK: 2 ** 40 }, /^generate\.topK/],
  [{ topP: 0 }, /^generate\.topP/],
  [{ topP: 1.1 }, /^generate\.topP/],
  [{ seed: -1 }, /^generate\.seed/],
  [{ stop: '' }, /^generate\.stop/],
  [{ stop: ['a', ''] }, /^generate\.stop/],
  [{ adapter: {} }, /^generate\.adapter/],
  [{ signal: {} }, /^generate\.signal/],
  [{ maxToken: 3 }, /^generate: .*"maxToken"\. Did you mean "maxTokens"\?/],
] as const)
  test(`generate() refuses ${JSON.stringify(options)}`, async (t) => {
    await t.throwsAsync(textOf(shared, prompt, options as unknown as GenerateOptions), {
      instanceOf: HeddleError,
      code: 'ERR_HEDDLE_ARGUMENT',
      message,
    })
  })

for (const [name, from] of [
  ['an empty prompt', ''],
  ['an empty conversation', []],
  ['no prompt', null],
  ['a number', 5],
  ['a prompt longer than the model allows', proverbs.slice(0, 701)],
  ['messages without a chat template', [{ role: 'user', content: 'hi' }]],
] as const)
  test(`generate() refuses ${name}`, async (t) => {
    await t.throwsAsync(textOf(shared, from as unknown as string), {
      instanceOf: HeddleError,
      code: 'ERR_HEDDLE_ARGUMENT',
    })
  })

test('generate() refuses the adapter of another model', async (t) => {
  const other = await loadModel(await tinyModelFolder())
  const adapter = await other.attach(lora({ r: 4 }))
  await t.throwsAsync(textOf(shared, prompt, { adapter }), { code: 'ERR_HEDDLE_ARGUMENT', message: /another model/ })
  await other.dispose()
})

test('generate() after dispose() is refused', async (t) => {
  const model = await loadModel(await tinyModelFolder())
  await textOf(model)
  await model.dispose()
  await t.throwsAsync(textOf(model), { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' })
})
