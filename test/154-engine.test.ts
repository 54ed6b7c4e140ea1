// Many texts at once: each is what it would be alone, whatever the others are asked for, and what they share is computed
// once.
import { join } from 'node:path'
import test from 'ava'
import type { BatchingEngine } from '../lib/engine/batching_engine.js'
import { createEngine, type Engine, type EngineOptions, HeddleError, loadModel, type Model } from '../lib/index.js'
import { root } from './golden.js'
import { type Asked, alone, recorded, served, sum, told } from './support/engine_texts.js'

let model: Model
const engines: Engine[] = []
test.before('load the embedded model', async () => {
  model = await loadModel(join(root, 'models', 'heddle-tiny'))
})
test.after.always('close everything', async () => {
  for (const engine of engines) await engine.close(AbortSignal.abort())
  await model?.dispose()
})

async function engineOf(options: EngineOptions = {}): Promise<Engine> {
  const engine = await createEngine(model, { memory: { cache: 2 ** 25 }, ...options })
  engines.push(engine)
  return engine
}

const beginnings = [
  'The committee',
  'Mr. Speaker, I rise today to',
  'It was a dark night, and the old house at the end of the road',
  'Once',
  'The report of the Secretary of State for the year says that all of the states of the Union have been asked for '.repeat(
    2,
  ),
]
const greedy = beginnings.map((prompt, i): Asked => ({ prompt, options: { maxTokens: 20 + 5 * i } }))
const seeded = beginnings.map((prompt, seed): Asked => {
  return { prompt, options: { maxTokens: 30, temperature: 1.2, topK: 50, topP: 0.95, seed } }
})
const person = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 8 }, age: { type: 'integer', minimum: 1, maximum: 99 } },
  required: ['name', 'age'],
  additionalProperties: false,
}
const mixed: readonly Asked[] = [
  { prompt: 'The House', options: { maxTokens: 24, repetitionPenalty: 1.4 } },
  { prompt: 'The House', options: { maxTokens: 24, presencePenalty: 0.7, frequencyPenalty: 0.4 } },
  { prompt: 'The House', options: { maxTokens: 24, logitBias: { 262: -50, 284: 3 } } },
  { prompt: 'The House', options: { maxTokens: 24, logitBias: { 300: 100 }, temperature: 1, seed: 3 } },
  { prompt: 'The House', options: { maxTokens: 24, stop: ['e', 'xyz'] } },
  { prompt: 'The House', options: { maxTokens: 6, logProbabilities: 5 } },
  { prompt: 'The House', options: { maxTokens: 6, logProbabilities: 1, temperature: 0.8 } },
  { prompt: 'The House', options: { maxTokens: 40, responseFormat: { type: 'json_schema', schema: person } } },
  { prompt: 'The House', options: { maxTokens: 12, responseFormat: { type: 'regex', pattern: '[a-f]{3,9}' } } },
  { prompt: 'The House', options: { maxTokens: 12, minTokens: 12, minP: 0.1, temperature: 2, seed: 5 } },
  { prompt: Int32Array.of(5, 6, 7), options: { maxTokens: 12 } },
  { prompt: 'The House', options: { maxTokens: 1 } },
]

for (const [name, requests] of [
  ['greedy', greedy],
  ['seeded', seeded],
  ['mixed options', mixed],
] as const)
  test(`texts made at the same time are what each is alone, token for token: ${name}`, async (t) => {
    const engine = await engineOf({ maxBatch: 8, stepTokens: 48 })
    const expected = []
    for (const request of requests) expected.push(told(await alone(model, request)))
    const texts = await Promise.all(requests.map((request) => served(engine, request)))
    for (const [i, tokens] of texts.entries()) t.deepEqual(told(tokens), expected[i], JSON.stringify(requests[i]))
  })

test('whatever numbers of log-probabilities are asked for, a few programs draw', async (t) => {
  const engine = (await engineOf()) as BatchingEngine
  for (let logProbabilities = 1; logProbabilities <= 20; logProbabilities += 1)
    await served(engine, { prompt: 'The House', options: { maxTokens: 1, logProbabilities } })
  const draws = engine.profile().filter(({ op }) => op === 'sample_token')
  t.is(sum(draws.map(({ calls }) => calls)), 20)
  t.is(draws.length, 6)
})

test('log-probabilities are those of the text alone, as many as each request asks for', async (t) => {
  const engine = await engineOf()
  const requests = [1, 20, 3].map((logProbabilities): Asked => {
    return { prompt: 'The House', options: { maxTokens: 5, logProbabilities } }
  })
  const [expected, ...texts] = await Promise.all([
    alone(model, requests[1]!),
    ...requests.map((request) => served(engine, request)),
  ])
  for (const [i, tokens] of texts.entries())
    for (const [at, token] of tokens.entries()) {
      const wanted = expected![at]!
      t.true(Math.abs(token.logProbability! - wanted.logProbability!) < 1e-4)
      t.deepEqual(
        token.top!.map((each) => each.token),
        wanted.top!.slice(0, requests[i]!.options.logProbabilities).map((each) => each.token),
      )
    }
})

test('`generate` gives the pieces of the text', async (t) => {
  const engine = await engineOf()
  const pieces = { engine: '', model: '' }
  for await (const piece of engine.generate('The House', { maxTokens: 20 })) pieces.engine += piece
  for await (const piece of model.generate('The House', { maxTokens: 20 })) pieces.model += piece
  t.is(pieces.engine, pieces.model)
})

test('texts enter and leave at every step: late ones do not wait for those that are being made', async (t) => {
  const engine = await engineOf({ maxBatch: 4 })
  const order: string[] = []
  const long = served(engine, { prompt: 'The House', options: { maxTokens: 200, minTokens: 200 } }).then(() =>
    order.push('long'),
  )
  for (const name of ['first', 'second'])
    await served(engine, { prompt: name, options: { maxTokens: 3 } }).then(() => order.push(name))
  await long
  t.deepEqual(order, ['first', 'second', 'long'])
})

test('a long prompt is read in pieces, and every step goes on with the texts that are being written', async (t) => {
  const engine = await engineOf({ maxBatch: 4, stepTokens: 32 })
  const { steps } = recorded(engine)
  const writer = engine.generateTokens('The House', { maxTokens: 300, minTokens: 300 })
  for (let i = 0; i < 3; i += 1) await writer.next()
  const before = steps.length
  const prompt = Int32Array.from({ length: 300 }, (_, i) => 5 + (i % 900))
  const reader = served(engine, { prompt, options: { maxTokens: 1 } })
  const rest = (async () => {
    for await (const _ of writer);
  })()
  await reader
  const reading = steps.slice(before).filter(({ promptTokens }) => promptTokens > 0)
  t.true(reading.length >= 10)
  t.true(reading.every(({ texts, promptTokens, newTokens }) => texts === 2 && promptTokens < 32 && newTokens >= 1))
  await rest
})

test('what prompts have in common is computed once, also when they come at the same time', async (t) => {
  const engine = await engineOf()
  const { steps, ended } = recorded(engine)
  const prompt = (end: number): Int32Array => Int32Array.from({ length: 70 }, (_, i) => (i < 64 ? 10 + i : end))
  const requests = [1, 2, 3, 4].map((end): Asked => ({ prompt: prompt(end), options: { maxTokens: 8 } }))
  const together = await Promise.all(requests.map((request) => served(engine, request)))
  t.deepEqual(ended.map(({ cachedTokens }) => cachedTokens).sort(), [0, 64, 64, 64])
  t.is(sum(steps.map(({ promptTokens }) => promptTokens)), 64 + 4 * 6)
  const later = await served(engine, requests[2]!)
  t.is(ended.at(-1)!.cachedTokens, 64)
  for (const [i, request] of requests.entries()) t.deepEqual(told(together[i]!), told(await alone(model, request)))
  t.deepEqual(told(later), told(together[2]!))
})

test('a conversation that goes on finds its own answer in the cache', async (t) => {
  const engine = await engineOf()
  const { ended } = recorded(engine)
  const first = await served(engine, { prompt: Int32Array.of(9, 8, 7), options: { maxTokens: 40, minTokens: 40 } })
  const tokens = [9, 8, 7, ...first.map(({ token }) => token), 50, 51]
  await served(engine, { prompt: Int32Array.from(tokens), options: { maxTokens: 2 } })
  t.is(ended.at(-1)!.cachedTokens, 32)
})

test('what an engine tells adds up', async (t) => {
  const engine = await engineOf({ maxBatch: 3 })
  const record = recorded(engine)
  const texts = await Promise.all(greedy.map((request) => served(engine, request)))
  const lengths = texts.map(({ length }) => length)
  t.is(record.first, greedy.length)
  t.is(sum(record.steps.map(({ newTokens }) => newTokens)), sum(lengths))
  t.deepEqual(record.ended.map(({ newTokens }) => newTokens).sort(), [...lengths].sort())
  t.is(
    sum(record.steps.map(({ promptTokens }) => promptTokens)),
    sum(record.ended.map(({ promptTokens, cachedTokens }) => promptTokens - cachedTokens)),
  )
  t.true(record.steps.every(({ texts }) => texts <= 3))
  t.true(
    record.ended.every(({ adapter, reason, seconds }) => adapter === undefined && reason === 'length' && seconds > 0),
  )
  t.like(engine.state(), { running: 0, waiting: 0, maxBatch: 3, isClosed: false, cache: { usedBytes: 0 } })
})

test('the state says what is running, waiting and held', async (t) => {
  const engine = await engineOf({ maxBatch: 2 })
  const streams = [0, 1, 2].map(() => engine.generateTokens('The House', { maxTokens: 50, minTokens: 50 }))
  await Promise.all(streams.slice(0, 2).map((stream) => stream.next()))
  const third = streams[2]!.next()
  await new Promise((resolve) => setTimeout(resolve, 0))
  const { running, waiting, cache } = engine.state()
  t.true(running <= 2 && running + waiting === 3, `${running} ${waiting}`)
  t.true(cache.usedBytes > 0 && cache.usedBytes < cache.bytes)
  await Promise.all([third, ...streams.map((stream) => stream.return())])
  t.like(engine.state(), { running: 0, waiting: 0, cache: { usedBytes: 0 } })
})

test('bad requests are refused by name and disturb nobody', async (t) => {
  const engine = await engineOf({ maxBatch: 4 })
  const good = served(engine, greedy[1]!)
  for (const [prompt, options, message] of [
    ['x', { temperature: -1 }, /generateTokens\.temperature/],
    ['x', { tempreature: 1 }, /Did you mean "temperature"/],
    ['x', { logitBias: { 4096: 1 } }, /generate\.logitBias: expected token ids below 4096/],
    ['x', { responseFormat: { type: 'json_object' }, minTokens: 2 }, /generate\.minTokens/],
    ['x', { responseFormat: { type: 'regex', pattern: '(' } }, /responseFormat\.pattern/],
    ['x', { adapter: 'nobody' }, /generate\.adapter: expected one of no adapters, got nobody/],
    [new Int32Array(), {}, /prompt: expected 1 to 512 tokens/],
    [Int32Array.of(4096), {}, /prompt: expected token ids below 4096/],
    [new Int32Array(513), {}, /prompt: expected 1 to 512 tokens/],
  ] as const)
    await t.throwsAsync(served(engine, { prompt: prompt as string, options: options as Asked['options'] }), {
      instanceOf: HeddleError,
      code: 'ERR_HEDDLE_ARGUMENT',
      message,
    })
  t.deepEqual(told(await good), told(await alone(model, greedy[1]!)))
})

for (const [options, message] of [
  [{ maxBatch: 0 }, /createEngine\.maxBatch: expected an integer from 1/],
  [{ maxBatch: 300, stepTokens: 299 }, /createEngine\.stepTokens: expected at least maxBatch, 300, got 299/],
  [{ maxBach: 2 }, /Did you mean "maxBatch"/],
  [{ memory: { cache: 10 } }, /createEngine\.memory\.cache: expected at least \d+ bytes, one page, got 10/],
  [{ memory: { cash: 10 } }, /Did you mean "cache"/],
] as const)
  test(`an engine is not made with ${JSON.stringify(options)}`, async (t) => {
    await t.throwsAsync(createEngine(model, options as EngineOptions), { code: 'ERR_HEDDLE_ARGUMENT', message })
  })
