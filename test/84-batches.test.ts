// Many texts at once, how tokens are chosen, what is reported of them, and what later texts know of earlier ones.
import test from 'ava'
import { blockTokens, PrefixStore } from '../lib/generate/prefix_store.js'
import { Session } from '../lib/generate/session.js'
import { SessionPool } from '../lib/generate/session_pool.js'
import { sampleToken, settingNames } from '../lib/graph/ops/sample.js'
import { program } from '../lib/graph/program.js'
import {
  adamw,
  type GeneratedToken,
  type GenerateOptions,
  HeddleError,
  loadModel,
  lora,
  type Model,
  tensor,
} from '../lib/index.js'
import { zeros } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { greedySettings, nextToken } from './support/next_token.js'
import { proverbs, textFile, tinyModel, tinyModelFolder } from './tiny_model.js'

let model: Model
test.before('train a tiny model', async () => {
  model = await loadModel(await tinyModelFolder())
  const data = await textFile()
  for await (const _ of train(model, {
    data,
    full: true,
    maxSteps: 60,
    maxLength: 64,
    optimizer: adamw({ lr: 1e-2 }),
  }));
})
test.after.always('dispose', () => model?.dispose())

async function textOf(from: string, options: GenerateOptions = {}): Promise<string> {
  let text = ''
  for await (const piece of model.generate(from, { maxTokens: 24, ...options })) text += piece
  return text
}

type Settings = Partial<typeof greedySettings>
interface Edits {
  readonly bias?: readonly number[]
  readonly history?: readonly number[]
  readonly promptLength?: number
  readonly allowed?: readonly number[]
  readonly top?: number
}

/** `count` draws of one row of logits, each with a seed of its own. */
async function draw(logits: readonly number[], settings: Settings, count: number, edits: Edits = {}) {
  const { bias, history, promptLength = 0, allowed, top = 1 } = edits
  const width = logits.length
  const values = settingNames.map((name) => ({ ...greedySettings, ...settings })[name])
  const mask = allowed && Uint32Array.of(allowed.reduce((bits, token) => bits | (1 << token), 0))
  const repeated = <T>(row: readonly T[]): T[] => Array.from({ length: count }, () => row).flat()
  const optional = [
    bias && tensor([...bias]),
    mask && tensor(Uint32Array.from(repeated([...mask])), [count, 1]),
    history && tensor(Int32Array.from(repeated(history)), [count, history.length]),
    history && tensor(new Int32Array(count).fill(promptLength)),
  ]
  const run = program((x, draws, set, ...more) => {
    const next = () => more.shift()
    const [b, m, h, p] = optional.map((value) => (value ? next() : undefined))
    return { ...sampleToken(x!, { draws: draws!, settings: set!, bias: b, mask: m, history: h, promptLength: p, top }) }
  })
  const draws = Uint32Array.from(Array.from({ length: count }, (_, seed) => [seed, 7, 3, 0]).flat())
  const results = await run(
    tensor(repeated(logits), [count, width]),
    tensor(draws, [count, 4]),
    tensor(repeated(values), [count, values.length]),
    ...optional.filter((value) => value !== undefined),
  )
  const read = async (name: keyof typeof results) => Array.from(await results[name].data(), Number)
  const found = {
    tokens: await read('token'),
    logProbabilities: await read('logProbability'),
    topTokens: await read('topTokens'),
    topLogProbabilities: await read('topLogProbabilities'),
  }
  run.dispose()
  return found
}

function softmax(logits: readonly number[]): number[] {
  const top = Math.max(...logits)
  const weights = logits.map((x) => Math.exp(x - top))
  const total = weights.reduce((sum, w) => sum + w)
  return weights.map((w) => w / total)
}

/** Pearson's statistic of the draws against what transformers' processors leave. */
function chiSquared(tokens: readonly number[], expected: readonly number[]): number {
  const counts = expected.map((_, token) => tokens.filter((each) => each === token).length)
  return expected.reduce((sum, p, token) => {
    if (p === 0) return sum + (counts[token]! > 0 ? Number.POSITIVE_INFINITY : 0)
    return sum + (counts[token]! - p * tokens.length) ** 2 / (p * tokens.length)
  }, 0)
}

const logits = [2, 1.5, 1, 0.2, -0.5, -1, -3, 0.9]
const only = (keep: (p: number, x: number) => boolean, source: readonly number[]): number[] => {
  const p = softmax(source)
  return softmax(source.map((x, i) => (keep(p[i]!, x) ? x : Number.NEGATIVE_INFINITY)))
}
const warmer = logits.map((x) => x / 0.7)
const cases: readonly (readonly [string, Settings, Edits, readonly number[]])[] = [
  ['all tokens', { temperature: 1 }, {}, softmax(logits)],
  ['temperature', { temperature: 0.7 }, {}, softmax(warmer)],
  [
    'min-p, after the temperature',
    { temperature: 0.7, minP: 0.2 },
    {},
    only((p) => p >= 0.2 * Math.max(...softmax(warmer)), warmer),
  ],
  [
    'top-k, then min-p',
    { temperature: 1, topK: 5, minP: 0.3 },
    {},
    only((_, x) => x >= 0.9 && Math.exp(x - 2) >= 0.3, logits),
  ],
  [
    'a bias',
    { temperature: 1 },
    { bias: [0, 0, 0, 0, 0, 0, 4, 0] },
    softmax(logits.map((x, i) => (i === 6 ? x + 4 : x))),
  ],
  [
    'a repetition penalty, also on the prompt, once per token',
    { temperature: 1, repetitionPenalty: 2 },
    { history: [0, 0, 4, -1], promptLength: 1 },
    softmax(logits.map((x, i) => (i === 0 ? x / 2 : i === 4 ? x * 2 : x))),
  ],
  [
    'presence and frequency penalties, on new tokens only',
    { temperature: 1, presencePenalty: 0.5, frequencyPenalty: 0.25 },
    { history: [1, 0, 0, 4, -1], promptLength: 1 },
    softmax(logits.map((x, i) => (i === 0 ? x - 1 : i === 4 ? x - 0.75 : x))),
  ],
  ['a mask', { temperature: 1 }, { allowed: [1, 4, 6] }, only((_, x) => [1.5, -0.5, -3].includes(x), logits)],
]
for (const [name, settings, edits, expected] of cases)
  test(`draws follow the distribution: ${name}`, async (t) => {
    const { tokens } = await draw(logits, settings, 4000, edits)
    // 99.99 % of fair samples stay below it at 7 degrees of freedom.
    t.true(chiSquared(tokens, expected) < 30, `${chiSquared(tokens, expected)}`)
  })

test('greedy choice heeds bias, penalties and mask, in that order', async (t) => {
  const greedy = async (settings: Settings, edits: Edits) => (await draw(logits, settings, 1, edits)).tokens[0]
  t.is(await greedy({}, { bias: [0, 0, 0, 0, 5, 0, 0, 0] }), 4)
  t.is(await greedy({ repetitionPenalty: 1.5 }, { history: [0] }), 1)
  // The bias makes -0.5 to 4.5, which the penalty then divides.
  t.is(await greedy({ repetitionPenalty: 3 }, { bias: [0, 0, 0, 0, 5, 0, 0, 0], history: [4] }), 0)
  t.is(await greedy({}, { bias: [0, 0, 0, 0, 5, 0, 0, 0], allowed: [2, 3] }), 2)
})

test('texts of one step have biases of their own', async (t) => {
  const run = program((x, draws, set, bias) => sampleToken(x!, { draws: draws!, settings: set!, bias: bias! }).token)
  const rows = [0, 4, 7, 2]
  const bias = rows.flatMap((wanted) => logits.map((_, token) => (token === wanted ? 9 : 0)))
  const greedy = settingNames.map((name) => greedySettings[name])
  const tokens = await run(
    tensor(
      rows.flatMap(() => logits),
      [4, 8],
    ),
    tensor(new Uint32Array(16), [4, 4]),
    tensor(
      rows.flatMap(() => greedy),
      [4, 7],
    ),
    tensor(bias, [4, 8]),
  )
  t.deepEqual([...(await tokens.data())], rows)
  run.dispose()
})

test("log-probabilities are the model's own, whatever changes the choice", async (t) => {
  const { tokens, logProbabilities, topTokens, topLogProbabilities } = await draw(logits, { temperature: 2 }, 3, {
    bias: [0, 0, 0, 0, 9, 0, 0, 0],
    top: 3,
  })
  const p = softmax(logits)
  t.deepEqual(tokens, [4, 4, 4])
  t.true(logProbabilities.every((value) => Math.abs(value - Math.log(p[4]!)) < 1e-5))
  t.deepEqual(topTokens.slice(0, 3), [0, 1, 2])
  t.true(topLogProbabilities.slice(0, 3).every((value, i) => Math.abs(value - Math.log(p[i]!)) < 1e-5))
})

const prompts = ['3. A stitch', '1', proverbs.slice(0, 200), 'Haste makes', proverbs.slice(40, 61)]

test('a batch of ragged prompts gives each the text that it gives alone', async (t) => {
  for (const options of [{}, { temperature: 1, seed: 3, topK: 20 }, { repetitionPenalty: 1.3, minTokens: 4 }]) {
    const texts = await model.generateBatch(prompts, { maxTokens: 24, ...options })
    for (const [index, from] of prompts.entries())
      t.is(texts[index]!.text, await textOf(from, options), `${JSON.stringify(options)} ${from}`)
  }
})

test('texts of a batch end on their own', async (t) => {
  const alone = await Promise.all(prompts.map((from) => textOf(from, { stop: ['\n', 'ne'] })))
  const texts = await model.generateBatch(prompts, { maxTokens: 24, stop: ['\n', 'ne'] })
  t.deepEqual(
    texts.map(({ text }) => text),
    alone,
  )
  t.true(new Set(texts.map(({ tokens }) => tokens.length)).size > 1)
  t.true(texts.some(({ finishReason }) => finishReason === 'stop'))
})

test('an empty batch is empty, and one bad prompt refuses the batch', async (t) => {
  t.deepEqual(await model.generateBatch([]), [])
  await t.throwsAsync(model.generateBatch(['a', '']), { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' })
})

test('best-of keeps the likeliest of several texts', async (t) => {
  const options = { temperature: 1.5, seed: 2, maxTokens: 12, logProbabilities: 1 }
  const [best] = await model.generateBatch(['3. A'], { ...options, bestOf: 6 })
  const [first] = await model.generateBatch(['3. A'], options)
  const mean = ({ tokens }: typeof best & {}) =>
    tokens.reduce((sum, { logProbability }) => sum + logProbability!, 0) / tokens.length
  t.true(mean(best!) > mean(first!))
})

test('tokens come with their text, log-probabilities and the reason of the end', async (t) => {
  const found: GeneratedToken[] = []
  for await (const token of model.generateTokens('3. A stitch', { maxTokens: 5, logProbabilities: 2 }))
    found.push(token)
  t.is(found.length, 5)
  t.is(found.map(({ text }) => text).join(''), await textOf('3. A stitch', { maxTokens: 5 }))
  t.deepEqual(
    found.map(({ finishReason }) => finishReason),
    [undefined, undefined, undefined, undefined, 'length'],
  )
  for (const { token, logProbability, top } of found) {
    t.is(top!.length, 2)
    t.is(top![0]!.token, token)
    t.is(top![0]!.logProbability, logProbability!)
    t.true(top![1]!.logProbability <= logProbability! && logProbability! <= 0)
  }
})

test('minTokens keeps end tokens away, logitBias brings tokens up', async (t) => {
  const [end] = model.tokenizer.eosTokenIds
  const logitBias = { [end!]: 100 }
  t.is(await textOf('3. A', { logitBias }), '')
  t.is((await textOf('3. A', { logitBias, minTokens: 7 })).length, 7)
  const [z] = await model.tokenizer.encode('z')
  t.is(await textOf('3. A', { logitBias: { [z!]: 100 }, maxTokens: 3 }), 'zzz')
  await t.throwsAsync(textOf('3. A', { logitBias: { 99999: 1 } }), { message: /logitBias/ })
})

test('a text that begins like an earlier one starts where they part, and is the same', async (t) => {
  const session = await Session.create(model.network, { precision: 'f32' }, 256)
  const ids = await model.tokenizer.encode(proverbs.slice(0, 100))
  const first = await nextToken(session, ids)
  t.is(session.commonPrefix(ids), 100)
  session.truncate(40)
  t.is(await nextToken(session, ids.subarray(40)), first)
  session.dispose()
  const from = proverbs.slice(0, 120)
  const longer = await textOf(from)
  await textOf(`${from}something else`)
  t.is(await textOf(from), longer)
})

test('beginnings that other texts have overwritten come back from the store, and change nothing', async (t) => {
  const pool = new SessionPool(model.network, 'stored', 2 ** 24)
  const texts = [proverbs.slice(0, 200), proverbs.slice(30, 230), proverbs.slice(60, 250)]
  const encoded = await Promise.all(texts.map((text) => model.tokenizer.encode(text)))
  const first: number[][] = []
  for (const round of [0, 1, 2])
    for (const [index, prompt] of encoded.entries()) {
      const lease = await pool.take({ prompt, batch: 1, tokens: 256, adapter: undefined })
      const known = lease.session.commonPrefix(prompt)
      t.is(known, round === 0 ? lease.session.tokens.length : 64 * Math.floor((prompt.length - 1) / 64))
      const tokens = [await nextToken(lease.session, prompt.subarray(lease.session.tokens.length))]
      while (tokens.length < 6) tokens.push(await nextToken(lease.session, Int32Array.of(tokens.at(-1)!)))
      if (round === 0) first.push(tokens)
      else t.deepEqual(tokens, first[index]!)
      pool.release(lease)
    }
  pool.close()
})

test('the store of beginnings keeps to its bytes, and the latest blocks', async (t) => {
  const bytes = 1 << 10
  const store = new PrefixStore(3 * bytes)
  const textOfBlocks = (...blocks: readonly number[]): number[] =>
    blocks.flatMap((block) => Array.from({ length: blockTokens }, () => block))
  const add = (text: readonly number[]): Promise<void> => store.add('weights', text, async () => [zeros([bytes / 4])])
  await add(textOfBlocks(1, 2))
  await add(textOfBlocks(1, 3))
  t.is(store.find('weights', textOfBlocks(1, 2), 200).length, 2)
  t.is(store.find('weights', textOfBlocks(1, 3), 127).length, 1)
  t.is(store.find('other weights', textOfBlocks(1, 3), 200).length, 0)
  await add(textOfBlocks(4))
  t.is(store.find('weights', textOfBlocks(4), 200).length, 1)
  t.is(store.find('weights', textOfBlocks(1, 3), 200).length, 1)
  store.clear()
  t.is(store.find('weights', textOfBlocks(4), 200).length, 0)
})

test('nothing of a cache outlives a change of the weights or of the adapter', async (t) => {
  const other = await loadModel(await tinyModelFolder())
  const adapter = await other.attach(lora({ r: 4 }))
  const write = async (): Promise<string> => {
    let text = ''
    for await (const piece of other.generate('abcdefgh', { adapter, maxTokens: 8 })) text += piece
    return text
  }
  await write()
  const data = await textFile('aaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb\n'.repeat(40))
  for await (const _ of train(other, { data, adapter, maxSteps: 10, maxLength: 32, optimizer: adamw({ lr: 3e-2 }) }));
  const session = await Session.create(other.network, { precision: 'f32', hook: adapter.hook }, 256)
  const ids: number[] = []
  for (let fed = await other.tokenizer.encode('abcdefgh'); ids.length < 8; fed = Int32Array.of(ids.at(-1)!))
    ids.push(await nextToken(session, fed))
  session.dispose()
  t.is(await write(), await other.tokenizer.decode(ids))
  await other.dispose()
})

test('embed() gives the mean, or the last, of the hidden states, whatever they are padded with', async (t) => {
  const texts = ['3. A stitch', proverbs.slice(0, 50)]
  for (const pooling of ['mean', 'last'] as const) {
    const vectors = await model.embed(texts, { pooling, normalize: false })
    for (const [index, text] of texts.entries()) {
      const ids = await model.tokenizer.encode(text)
      const run = program((row) => model.network.hidden({ ids: row! }, { precision: 'f32', training: false }))
      const hidden = (await (await run(tensor(ids, [1, ids.length]))).data()) as Float32Array
      run.dispose()
      const size = hidden.length / ids.length
      const expected = Array.from({ length: size }, (_, i) => {
        if (pooling === 'last') return hidden[(ids.length - 1) * size + i]!
        return ids.reduce((sum, _, at) => sum + hidden[at * size + i]!, 0) / ids.length
      })
      t.true(expected.every((value, i) => Math.abs(value - vectors[index]![i]!) < 1e-4))
    }
  }
  const [unit] = await model.embed(['abc'])
  t.true(Math.abs(Math.hypot(...unit!) - 1) < 1e-5)
  await t.throwsAsync(model.embed(['a', '']), { code: 'ERR_HEDDLE_ARGUMENT' })
})

test.serial('embed() takes tokens for texts, and compiles once for all calls', async (t) => {
  const text = '5. Still waters'
  // The model of the other tests is in use at the same time.
  const own = await tinyModel()
  const { network } = own
  const { hidden } = network
  let traces = 0
  network.hidden = (...given) => {
    traces += 1
    return hidden.apply(network, given)
  }
  try {
    const options = { pooling: 'mean', normalize: true } as const
    const [vector] = await own.embed([text], options)
    const before = traces
    const [same] = await own.embed([await own.tokenizer.encode(text)], options)
    t.deepEqual(same, vector)
    t.is(traces, before)
  } finally {
    network.hidden = hidden
  }
  await t.throwsAsync(own.embed([Int32Array.of(100_000)]), { code: 'ERR_HEDDLE_ARGUMENT' })
  await own.dispose()
})
