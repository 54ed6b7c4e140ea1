import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import { type Batch, bucketLength, collate, ignoredTarget } from '../lib/data/collate.js'
import { Dataset } from '../lib/data/dataset.js'
import { type Order, shuffledOrder } from '../lib/data/shuffle.js'
import { HeddleError } from '../lib/errors.js'
import { Tokenizer } from '../lib/tokenize/tokenizer.js'
import { fetchModel } from './models/fetch.js'
import { temporaryFolder } from './support/temporary_folder.js'

let tokenizer: Tokenizer

test.before('load SmolLM2', async () => {
  tokenizer = await Tokenizer.load({ kind: 'gguf', path: await fetchModel('smollm2') })
})

test.after.always('close', () => tokenizer?.close())

function file(name: string, content: string): string {
  const path = join(temporaryFolder(), name)
  writeFileSync(path, content)
  return path
}

const jsonl = (...rows: readonly unknown[]) => file('data.jsonl', rows.map((row) => JSON.stringify(row)).join('\n'))

async function batchesOf(dataset: Dataset, options: Parameters<Dataset['batches']>[0]): Promise<Batch[]> {
  const batches: Batch[] = []
  for await (const batch of dataset.batches(options)) batches.push(batch)
  return batches
}

/** The first batch, unshuffled, one row per sequence. */
async function onlyBatch(dataset: Dataset): Promise<Batch> {
  const [batch] = await batchesOf(dataset, { batchSize: dataset.size, shuffle: false })
  return batch!
}

const learned = (batch: Batch) => tokenizer.decode(batch.targets.filter((id) => id !== ignoredTarget))

test('a chat learns the assistant turns with their end-of-turn tokens only', async (t) => {
  const messages = [
    { role: 'user', content: 'Warp?' },
    { role: 'assistant', content: 'Lengthwise.' },
    { role: 'user', content: 'Weft?' },
    { role: 'assistant', content: 'Crosswise.' },
  ]
  const batch = await onlyBatch(await Dataset.open(jsonl({ messages }), tokenizer, { maxLength: 256 }))
  t.is(await learned(batch), 'Lengthwise.<|im_end|>Crosswise.<|im_end|>')
})

test('a completion learns the completion and the end of text', async (t) => {
  const path = jsonl({ prompt: 'The loom', completion: ' weaves.' })
  const batch = await onlyBatch(await Dataset.open(path, tokenizer, { maxLength: 64 }))
  t.is(await learned(batch), ' weaves.<|im_end|>')
  t.is(await tokenizer.decode(batch.inputIds.filter((_, i) => batch.segments[i] === 0)), 'The loom weaves.')
})

test('texts are joined with the end of text between and every token but the first is learned', async (t) => {
  const batch = await onlyBatch(
    await Dataset.open(jsonl({ text: 'One.' }, { text: 'Two.' }), tokenizer, { maxLength: 64 }),
  )
  const first = await tokenizer.decode(batch.inputIds.slice(0, 1))
  t.is(first + (await learned(batch)), 'One.<|im_end|>Two.<|im_end|>')
})

test('a text file is cut into windows that go on where the last one ended', async (t) => {
  const text = 'It was the best of times, it was the worst of times. '.repeat(40)
  const dataset = await Dataset.open(file('text.txt', text), tokenizer, { maxLength: 48 })
  const batches = await batchesOf(dataset, { batchSize: 1, shuffle: false })
  const [first] = batches[0]!.inputIds
  const targets = batches.flatMap(({ targets }) => [...targets].filter((id) => id !== ignoredTarget))
  t.is(await tokenizer.decode([first!, ...targets]), `${text}<|im_end|>`)
  t.true(batches.slice(0, -1).every(({ length, tokens }) => length === 48 && tokens === 48))
})

test('rows that cannot be used are listed, and only a file without any other is refused', async (t) => {
  const usable = {
    messages: [
      { role: 'user', content: 'Hi' },
      { role: 'assistant', content: 'Hello' },
    ],
  }
  const tooLong = {
    messages: [
      { role: 'user', content: 'long '.repeat(200) },
      { role: 'assistant', content: 'x' },
    ],
  }
  const dataset = await Dataset.open(jsonl(usable, { nothing: 1 }, tooLong), tokenizer, { maxLength: 64 })
  t.is(dataset.size, 1)
  t.deepEqual(
    dataset.skipped.map(({ line }) => line),
    [2, 3],
  )
  t.regex(dataset.skipped[1]!.reason, /nothing to learn within the first 64 tokens/)
  const error = await t.throwsAsync(Dataset.open(jsonl({ nothing: 1 }), tokenizer, { maxLength: 64 }), {
    instanceOf: HeddleError,
  })
  t.regex(error!.message, /data\.jsonl:1: .*keys nothing/)
})

test('the evaluation part is set aside by the seed alone', async (t) => {
  const path = jsonl(...Array.from({ length: 20 }, (_, i) => ({ prompt: `${i}`, completion: ` is ${i}` })))
  const open = (seed: number) => Dataset.open(path, tokenizer, { maxLength: 32, evaluationFraction: 0.25, seed })
  const [a, b, c] = await Promise.all([open(1), open(1), open(2)])
  t.is(a.size, 15)
  t.is(a.evaluation?.size, 5)
  t.deepEqual(await onlyBatch(a.evaluation!), await onlyBatch(b.evaluation!))
  t.notDeepEqual(await onlyBatch(a.evaluation!), await onlyBatch(c.evaluation!))
})

test('batches are the same for the same seed and epoch, and can be taken up anywhere', async (t) => {
  const path = jsonl(...Array.from({ length: 11 }, (_, i) => ({ prompt: `${i}`, completion: ` is ${i}` })))
  const dataset = await Dataset.open(path, tokenizer, { maxLength: 32 })
  const all = await batchesOf(dataset, { batchSize: 2, seed: 5, epoch: 1 })
  t.is(all.length, dataset.batchCount(2))
  t.deepEqual(await batchesOf(dataset, { batchSize: 2, seed: 5, epoch: 1, start: 3 }), all.slice(3))
  t.notDeepEqual(await batchesOf(dataset, { batchSize: 2, seed: 5, epoch: 2 }), all)
  t.is(
    all.reduce((sum, { tokens }) => sum + tokens, 0),
    (await onlyBatch(dataset)).tokens,
  )
})

test('a signal stops tokenizing with ERR_HEDDLE_ABORTED', async (t) => {
  const controller = new AbortController()
  const path = file('long.txt', 'warp and weft '.repeat(200_000))
  const onProgress = () => controller.abort()
  const work = Dataset.open(path, tokenizer, { maxLength: 64, signal: controller.signal, onProgress })
  const error = await t.throwsAsync(work, { instanceOf: HeddleError })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_ABORTED')
})

test('a missing file is ERR_HEDDLE_IO, another kind of file ERR_HEDDLE_ARGUMENT', async (t) => {
  const codeOf = async (path: string) => {
    const work = Dataset.open(path, tokenizer, { maxLength: 64 })
    return ((await t.throwsAsync(work, { instanceOf: HeddleError })) as HeddleError).code
  }
  t.is(await codeOf('/nowhere/data.jsonl'), 'ERR_HEDDLE_IO')
  t.is(await codeOf(file('data.xlsx', 'a,b')), 'ERR_HEDDLE_ARGUMENT')
})

test('options out of range are ERR_HEDDLE_ARGUMENT', async (t) => {
  const path = jsonl({ text: 'a b' })
  for (const options of [{ maxLength: 0 }, { maxLength: 1.5 }, { maxLength: 8, evaluationFraction: 0.9 }]) {
    const error = await t.throwsAsync(Dataset.open(path, tokenizer, options), { instanceOf: HeddleError })
    t.is((error as HeddleError).code, 'ERR_HEDDLE_ARGUMENT')
  }
})

test('targets are the inputs moved by one, where there is a loss', (t) => {
  const sequence = { ids: Int32Array.of(5, 6, 7, 8), loss: Uint8Array.of(1, 0, 1, 1) }
  const batch = collate([sequence, undefined], { maxLength: 4, padId: 9 })
  t.deepEqual([...batch.inputIds], [5, 6, 7, 9, 9, 9, 9, 9])
  t.deepEqual([...batch.targets], [-100, 7, 8, -100, -100, -100, -100, -100])
  t.deepEqual([...batch.segments], [0, 0, 0, -1, -1, -1, -1, -1])
  t.is(batch.tokens, 2)
})

test('padded lengths are few, hold the sequence and waste at most a third', (t) => {
  const lengths = Array.from({ length: 1000 }, (_, i) => i + 1)
  const buckets = lengths.map((length) => bucketLength(length, 1000))
  t.deepEqual([...new Set(buckets)], [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000])
  t.true(lengths.every((length, i) => buckets[i]! >= length && (length <= 32 || length / buckets[i]! > 0.65)))
})

test('an order has every number once, knows the way back, and depends on seed and stream', (t) => {
  const numbers = (order: Order) => Array.from({ length: order.count }, (_, position) => order.at(position))
  const property = fc.property(fc.integer({ min: 1, max: 300 }), fc.nat(), fc.nat(), (count, seed, stream) => {
    const order = shuffledOrder(count, seed, stream)
    const shuffled = numbers(order)
    return (
      shuffled.toSorted((a, b) => a - b).every((value, index) => value === index) &&
      shuffled.every((value, position) => order.positionOf(value) === position)
    )
  })
  t.notThrows(() => fc.assert(property, { seed: 1 }))
  t.notDeepEqual(numbers(shuffledOrder(50, 1, 0)), numbers(shuffledOrder(50, 2, 0)))
  t.notDeepEqual(numbers(shuffledOrder(50, 1, 0)), numbers(shuffledOrder(50, 1, 1)))
  t.is(shuffledOrder(2 ** 40, 1, 0).positionOf(shuffledOrder(2 ** 40, 1, 0).at(12_345_678_901)), 12_345_678_901)
})

test('an order puts every number everywhere equally often', (t) => {
  const [count, draws] = [5, 5000]
  const seen = new Uint32Array(count * count)
  for (let seed = 0; seed < draws; seed++)
    for (let position = 0; position < count; position++)
      seen[position * count + shuffledOrder(count, seed, 0).at(position)]! += 1
  const expected = draws / count
  const chiSquare = seen.reduce((sum, times) => sum + (times - expected) ** 2 / expected, 0)
  // 16 degrees of freedom: 39 is exceeded once in a thousand.
  t.true(chiSquare < 39, `${chiSquare}`)
})
