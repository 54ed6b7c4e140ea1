import { readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import test from 'ava'
import fc from 'fast-check'
import { lora } from '../lib/adapters/methods/lora.js'
import { type Batch, collate } from '../lib/data/collate.js'
import { Dataset, type DatasetOptions } from '../lib/data/dataset.js'
import { pack } from '../lib/data/packing.js'
import { openRows } from '../lib/data/rows.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import type { Model } from '../lib/model.js'
import { buildNetwork } from '../lib/models/build.js'
import { decoders } from '../lib/models/registry.js'
import { causalLm } from '../lib/objectives/causal_lm.js'
import { evaluate, evaluator } from '../lib/train/evaluate.js'
import type { TrainOptions } from '../lib/train/options.js'
import { train } from '../lib/train/train.js'
import { golden } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel } from './tiny_model.js'

let model: Model
test.before('load the tiny model', async () => {
  model = await tinyModel()
})
test.after.always('dispose', () => model?.dispose())

/** Rows of very different lengths. */
const rows = Array.from({ length: 60 }, (_, i) => ({
  prompt: `${i}?`,
  completion: ` ${'la'.repeat((i * i) % 23)} ${i}.`,
}))

function jsonl(content: readonly unknown[] = rows): string {
  const path = join(temporaryFolder(), 'data.jsonl')
  writeFileSync(path, content.map((row) => JSON.stringify(row)).join('\n'))
  return path
}

const open = (source: Parameters<typeof Dataset.open>[0], options: Partial<DatasetOptions> = {}): Promise<Dataset> =>
  Dataset.open(source, model.tokenizer, { maxLength: 64, ...options })

async function batchesOf(data: Dataset, options: Partial<Parameters<Dataset['batches']>[0]> = {}): Promise<Batch[]> {
  const batches: Batch[] = []
  for await (const batch of data.batches({ batchSize: 4, ...options })) batches.push(batch)
  return batches
}

/** The sequences of batches as texts of ids and targets, sorted. */
function sequencesOf(batches: readonly Batch[]): string[] {
  return batches
    .flatMap(({ rows: count, length, inputIds, targets, segments }) => {
      const found = new Map<string, string[]>()
      for (let i = 0; i < count * length; i++) {
        if (segments[i]! < 0) continue
        const key = `${Math.floor(i / length)}/${segments[i]}`
        found.set(key, [...(found.get(key) ?? []), `${inputIds[i]}>${targets[i]}`])
      }
      return [...found.values()].map((each) => each.join(' '))
    })
    .sort()
}

test('batches from disk are those from memory, bit for bit, and can be taken up anywhere', async (t) => {
  const path = jsonl()
  for (const packing of [false, true]) {
    const common = { packing, evaluationFraction: 0.2, seed: 3 }
    const memory = await open(path, common)
    const disk = await open(path, { ...common, cacheFolder: temporaryFolder() })
    const all = await batchesOf(memory, { epoch: 2, seed: 7 })
    t.deepEqual(await batchesOf(disk, { epoch: 2, seed: 7 }), all)
    t.deepEqual(await batchesOf(disk, { epoch: 2, seed: 7, start: 3 }), all.slice(3))
    t.deepEqual(await batchesOf(disk.evaluation!), await batchesOf(memory.evaluation!))
    t.is(disk.tokens, memory.tokens)
    disk.close()
  }
})

test('what is set aside and what stays are everything, once', async (t) => {
  const path = jsonl()
  const whole = await open(path)
  const split = await open(path, { evaluationFraction: 0.25, cacheFolder: temporaryFolder() })
  t.is(split.evaluation!.size, 15)
  t.is(split.tokens + split.evaluation!.tokens, whole.tokens)
  t.deepEqual(
    sequencesOf([...(await batchesOf(split)), ...(await batchesOf(split.evaluation!))]),
    sequencesOf(await batchesOf(whole)),
  )
  split.close()
})

test('a second run finds the tokens of the first one and tokenizes nothing', async (t) => {
  const [path, cacheFolder] = [jsonl([...rows, { nothing: 1 }]), temporaryFolder()]
  let tokenized = 0
  const onProgress = () => {
    tokenized += 1
  }
  const first = await open(path, { cacheFolder, onProgress })
  t.true(tokenized > 0)
  tokenized = 0
  const second = await open(path, { cacheFolder, onProgress })
  t.is(tokenized, 0)
  t.deepEqual(await batchesOf(second), await batchesOf(first))
  t.deepEqual([second.skipped, second.description], [first.skipped, first.description])
  await open(path, { cacheFolder, onProgress, maxLength: 32 })
  t.true(tokenized > 0, 'another option')
  tokenized = 0
  utimesSync(path, 1, 1)
  await open(path, { cacheFolder, onProgress })
  t.true(tokenized > 0, 'another time of change')
})

test('tokens on disk are for their owner alone, and nothing half written stays', async (t) => {
  const [path, cacheFolder] = [jsonl(), temporaryFolder()]
  await Promise.all([open(path, { cacheFolder }), open(path, { cacheFolder })])
  const [reading, ...more] = readdirSync(cacheFolder)
  t.deepEqual(more, [])
  const folder = join(cacheFolder, reading!)
  t.is(statSync(folder).mode & 0o777, 0o700)
  for (const name of readdirSync(folder)) t.is(statSync(join(folder, name)).mode & 0o777, 0o600, name)
  await t.throwsAsync(open(jsonl([{ nothing: 1 }, { nothing: 2 }]), { cacheFolder, memoryLimit: 0 }))
  await t.throwsAsync(open(path, { cacheFolder, maxLength: 16, signal: AbortSignal.abort() }))
  t.deepEqual(
    readdirSync(cacheFolder).filter((name) => name.endsWith('.tmp')),
    [],
  )
})

test('damaged tokens on disk are made anew, whatever is damaged', async (t) => {
  const [path, cacheFolder] = [jsonl(), temporaryFolder()]
  const first = await open(path, { cacheFolder })
  const [expected, { description }] = [await batchesOf(first), first]
  const folder = join(cacheFolder, readdirSync(cacheFolder)[0]!)
  const damages: readonly ((bytes: Buffer) => Buffer)[] = [
    (bytes) => bytes.subarray(0, bytes.length - 4),
    (bytes) => Buffer.concat([bytes, Buffer.alloc(8)]),
    (bytes) => {
      bytes[bytes.length >> 1]! ^= 1
      return bytes
    },
  ]
  for (const name of ['tokens.i32', 'ends.f64', 'reading.json'])
    for (const damage of damages) {
      writeFileSync(join(folder, name), damage(readFileSync(join(folder, name))))
      const data = await open(path, { cacheFolder })
      t.deepEqual(await batchesOf(data), expected)
      t.is(data.description, description)
      data.close()
    }
})

test('what a killed process has left half written is removed after a day', async (t) => {
  const cacheFolder = temporaryFolder()
  for (const name of ['old.tmp', 'new.tmp']) await mkdir(join(cacheFolder, name))
  utimesSync(join(cacheFolder, 'old.tmp'), 1, 1)
  await open(jsonl(), { cacheFolder })
  t.deepEqual(
    readdirSync(cacheFolder).filter((name) => name.endsWith('.tmp')),
    ['new.tmp'],
  )
})

test('rows given in code can be more than memory, and leave nothing behind', async (t) => {
  async function* generate() {
    yield* rows
  }
  const cacheFolder = temporaryFolder()
  const data = await open(generate(), { cacheFolder, memoryLimit: 100 })
  t.deepEqual(readdirSync(cacheFolder), [])
  t.deepEqual(await batchesOf(data), await batchesOf(await open(jsonl())))
  data.close()
})

/** Bytes that are alive, tokens and objects. */
function liveBytes(): number {
  globalThis.gc!()
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

test.serial('a dataset of twenty times the memory limit lives within the limit', async (t) => {
  const memoryLimit = 1 << 16
  const path = jsonl(
    Array.from({ length: 5600 }, (_, i) => ({ prompt: `${i}?`, completion: ' warp and weft '.repeat(5) })),
  )
  const before = liveBytes()
  let peak = 0
  const look = () => {
    peak = Math.max(peak, liveBytes() - before)
  }
  const data = await open(path, { memoryLimit, cacheFolder: temporaryFolder(), onProgress: look })
  t.true(4 * data.tokens > 20 * memoryLimit, `${data.tokens} tokens`)
  let batches = 0
  for await (const _ of data.batches({ batchSize: 4 })) if (batches++ % 100 === 0) look()
  t.is(batches, 1400)
  // Besides the limit there are the blocks and batches under way, and what V8 compiles meanwhile.
  t.true(peak < 8 * memoryLimit, `${peak} bytes`)
  data.close()
})

test.serial('reading holds a few blocks of a file, not the file', async (t) => {
  const line = `${JSON.stringify({ text: 'warp and weft '.repeat(300) })}\n`
  const megabytes = 160
  const member = gzipSync(line.repeat(Math.ceil(2 ** 20 / line.length)))
  const path = join(temporaryFolder(), 'long.jsonl.gz')
  writeFileSync(path, Buffer.concat(Array.from({ length: megabytes }, () => member)))
  const residentAt = () => process.memoryUsage.rss()
  let [bytes, start, peak] = [0, 0, 0]
  for await (const { rows: block } of openRows(path)) {
    for (const { value } of block) bytes += String(value.text).length
    // The worker's own size is not the file's.
    if (start === 0 && bytes > 2 ** 23) start = residentAt()
    peak = Math.max(peak, residentAt())
  }
  t.true(bytes > megabytes * 0.9 * 2 ** 20)
  t.true(peak - start < (megabytes / 2) * 2 ** 20, `${(peak - start) / 2 ** 20} MiB`)
})

test('packing fills rows as best-fit decreasing does', async (t) => {
  const capacity = 40
  const lengths = fc.array(fc.integer({ min: 1, max: capacity }), { maxLength: 60 })
  const property = fc.asyncProperty(lengths, async (given) => {
    const packing = await pack(Uint32Array.from(given), capacity)
    const found = Array.from({ length: packing.rows }, (_, row) => [...packing.row(row)])
    const seen = found.flat().sort((a, b) => a - b)
    const left: number[] = []
    for (const length of given.toSorted((a, b) => b - a)) {
      const fitting = left.filter((space) => space >= length)
      const best = fitting.length > 0 ? left.indexOf(Math.min(...fitting)) : left.push(capacity) - 1
      left[best]! -= length
    }
    const spaces = found.map((row) => capacity - row.reduce((sum, position) => sum + given[position]!, 0))
    return (
      seen.every((position, index) => position === index) &&
      seen.length === given.length &&
      spaces.every((space) => space >= 0) &&
      spaces.toSorted().join() === left.toSorted().join()
    )
  })
  await t.notThrowsAsync(fc.assert(property, { seed: 1 }))
})

test('packing finds rows among thousands of spaces', async (t) => {
  const lengths = Uint32Array.from({ length: 4000 }, (_, i) => 1 + ((i * 7919) % 5000))
  const packing = await pack(lengths, 5000)
  const sum = lengths.reduce((total, length) => total + length, 0)
  t.true(packing.rows < 1.01 * Math.ceil(sum / 5000), `${packing.rows} rows for ${sum / 5000}`)
})

test('a packed row numbers its sequences, restarts their positions, and holds every sequence once', async (t) => {
  const path = jsonl()
  const [apart, together] = [await open(path), await open(path, { packing: true })]
  t.is(together.sequences, apart.size)
  t.true(together.size < apart.size / 2)
  const batches = await batchesOf(together)
  t.deepEqual(sequencesOf(batches), sequencesOf(await batchesOf(apart)))
  for (const { length, segments, positions } of batches)
    for (const [i, segment] of segments.entries()) {
      const goesOn = i % length > 0 && segments[i - 1] === segment
      t.is(positions![i], segment >= 0 && goesOn ? positions![i - 1]! + 1 : 0)
    }
})

test('packed and unpacked have the same loss', async (t) => {
  const path = jsonl()
  const [apart, together] = [await open(path), await open(path, { packing: true })]
  const [first, second] = [await evaluate(model, apart), await evaluate(model, together)]
  t.is(first.tokens, second.tokens)
  t.true(Math.abs(first.loss - second.loss) < 1e-5, `${first.loss} and ${second.loss}`)
})

test('packed and unpacked have the same loss where positions are learned, too', async (t) => {
  const network = buildNetwork(decoders, await openCheckpoint(golden('models/gpt2')))
  const sequences = [3, 9, 5].map((length, row) => ({
    ids: Int32Array.from({ length }, (_, i) => (7 * i + row) % 11),
    loss: new Uint8Array(length).fill(1),
  }))
  const score = evaluator(network, { objective: causalLm() })
  const lossOf = ({ positions: _, ...batch }: Batch, ownPositions: boolean) => {
    async function* batches() {
      yield ownPositions ? batch : { ...batch, positions: Int32Array.from(batch.segments, (_, i) => i % batch.length) }
    }
    const data = { size: 1, tokens: 17, maxLength: 32, batchCount: () => 1, batches }
    return score.run(data).then(({ loss }) => loss)
  }
  const layout = { maxLength: 32, padId: 0 }
  const apart = await lossOf(collate(sequences, layout), true)
  t.true(Math.abs((await lossOf(collate([sequences], layout), true)) - apart) < 1e-5)
  t.true(Math.abs((await lossOf(collate([sequences], layout), false)) - apart) > 1e-4)
  score.dispose()
})

test('train takes packing for a data file, and refuses it where it would do nothing', async (t) => {
  const path = jsonl()
  const stepsOf = async (options: Partial<TrainOptions>) => {
    const adapter = await model.attach(lora({ r: 2, target_modules: ['q_proj'] }))
    for await (const { total } of train(model, { data: path, maxLength: 64, adapter, ...options })) return total
    return 0
  }
  t.true((await stepsOf({ packing: true })) < (await stepsOf({})) / 2)
  await t.throwsAsync(stepsOf({ packing: true, data: await open(path) }), { message: /train\.packing/ })
})

test('with packing, texts see only themselves, and long ones go on in windows of their own', async (t) => {
  const texts = ['a'.repeat(100), 'bb', 'ccc']
  const data = await open(
    texts.map((text) => ({ text })),
    { packing: true, maxLength: 32 },
  )
  const [batch] = await batchesOf(data, { batchSize: data.size, shuffle: false })
  const found = sequencesOf([batch!])
  // 100 letters and the end of text: windows of 32 inputs, each beginning with the last target of the one before.
  t.is(data.sequences, 6)
  t.deepEqual(
    found.map((each) => each.split(' ').length).sort((a, b) => a - b),
    [2, 3, 4, 32, 32, 32],
  )
  t.true(found.every((each) => new Set(each.match(/\d+/g)!.filter((id) => id !== '0')).size === 1))
})

test('identical rows can be left out, and rows can be limited', async (t) => {
  const path = jsonl([...rows, ...rows.slice(0, 7)])
  const data = await open(path, { deduplicate: true })
  t.is(data.size, 60)
  t.regex(data.description, /7 duplicates left out$/)
  t.is((await open(path)).size, 67)
  t.is((await open(path, { maxRows: 10 })).size, 10)
})

test('the order of packed rows is the seed’s', async (t) => {
  const data = await open(jsonl(), { packing: true })
  const [a, b, c] = await Promise.all([
    batchesOf(data, { seed: 1 }),
    batchesOf(data, { seed: 1 }),
    batchesOf(data, { seed: 2 }),
  ])
  t.deepEqual(a, b)
  t.notDeepEqual(a, c)
})
