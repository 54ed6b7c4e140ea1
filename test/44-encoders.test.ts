// Text encoders: sentence vectors of the real MiniLM as sentence-transformers makes them, and what padding may not do.
import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { lora } from '../lib/adapters/methods/lora.js'
import { type EncoderModel, loadEncoder } from '../lib/encoder_model.js'
import { program } from '../lib/graph/program.js'
import { pool } from '../lib/models/encoder.js'
import type { Forward } from '../lib/nn/site.js'
import { tensor, write } from '../lib/tensor/tensor.js'
import { goldenJson, goldenTensors } from './golden.js'
import { fetchModel } from './models/fetch.js'
import { randomNumbers } from './random_numbers.js'
import { temporaryFolder } from './support/temporary_folder.js'

const plain: Forward = { precision: 'f32', training: false }
const { texts } = goldenJson<{ texts: string[] }>('minilm.json')

let folder: string
let model: EncoderModel
test.before(async () => {
  folder = await fetchModel('minilm')
  model = await loadEncoder(folder)
})
test.after.always(() => model?.dispose())

const distance = (a: Float32Array, b: Float32Array): number => Math.max(...a.map((value, i) => Math.abs(value - b[i]!)))

test('MiniLM: vectors agree with sentence-transformers to 1e-5, whatever the lengths in a batch', async (t) => {
  const expected = (await (await goldenTensors('minilm.safetensors')).get('vectors')!.data()) as Float32Array
  const vectors = await model.embed(texts)
  for (const [i, vector] of vectors.entries()) {
    t.is(vector.length, 384)
    t.true(distance(vector, expected.subarray(i * 384, (i + 1) * 384)) < 1e-5, texts[i])
  }
})

test('a text has the same vector alone and among longer ones', async (t) => {
  const alone = (await model.embed([texts[0]!]))[0]!
  const among = (await model.embed(texts, { batchSize: 3 }))[0]!
  t.true(distance(alone, among) < 1e-6)
})

test('padding has no part in the hidden states of tokens', async (t) => {
  const hidden = program(async (ids, mask) =>
    pool(await model.network.hidden({ ids: ids!, mask: mask! }, plain), mask!, 'max'),
  )
  const ids = await model.tokenizer.encode('a short text')
  const padded = (filler: number): Promise<Float32Array> => {
    const row = new Int32Array(24).fill(filler)
    row.set(ids)
    const mask = Int32Array.from(row, (_, i) => Number(i < ids.length))
    return hidden(tensor(row, [1, 24]), tensor(mask, [1, 24])).then((result) => result.data() as Promise<Float32Array>)
  }
  t.deepEqual(await padded(0), await padded(2023))
})

test('pooling and normalisation are those of the folder unless given', async (t) => {
  t.deepEqual(model.settings, { pooling: 'mean', normalize: true, maxLength: 256 })
  const other = await loadEncoder(folder, { pooling: 'cls', normalize: false, maxLength: 16 })
  t.deepEqual(other.settings, { pooling: 'cls', normalize: false, maxLength: 16 })
  const [vector] = await other.embed([texts[0]!])
  t.true(Math.hypot(...vector!) > 2)
  await other.dispose()
})

test('a module that is not known is refused by name', async (t) => {
  const copy = join(temporaryFolder(), 'minilm')
  await cp(folder, copy, { recursive: true })
  const path = join(copy, 'modules.json')
  const modules = JSON.parse(await readFile(path, 'utf8')) as object[]
  await writeFile(path, JSON.stringify([...modules, { path: '3_Dense', type: 'sentence_transformers.models.Dense' }]))
  await t.throwsAsync(loadEncoder(copy), { code: 'ERR_HEDDLE_FORMAT', message: /modules\.json.*Dense/ })
})

test('adapters act on an encoder as on a decoder: names, merging, unmerging', async (t) => {
  const [before] = await model.embed([texts[0]!])
  const adapter = await model.attach(lora({ r: 4, target_modules: ['query', 'value'] }))
  t.is(adapter.sitePaths.length, 12)
  t.is(adapter.sitePaths[0], 'encoder.layer.0.attention.self.query')
  for (const [i, value] of [...adapter.parameters().values()].entries())
    write(
      value,
      randomNumbers(value.size, i).map((number) => 0.1 * number),
    )
  const [adapted] = await model.embed([texts[0]!], { adapter })
  t.true(distance(before!, adapted!) > 1e-3)
  await model.merge(adapter)
  const [merged] = await model.embed([texts[0]!])
  t.true(distance(merged!, adapted!) < 1e-5)
  model.unmerge(adapter)
  t.deepEqual((await model.embed([texts[0]!]))[0], before)
})

test('a weight that was replaced, as training all weights does, counts in the next call', async (t) => {
  const own = await loadEncoder(folder)
  const [before] = await own.embed([texts[0]!])
  const site = own.network.sites.get('embeddings.LayerNorm')!
  site.weight = tensor(new Float32Array(384).fill(0.5))
  const [after] = await own.embed([texts[0]!])
  t.true(distance(before!, after!) > 1e-3)
  await own.dispose()
})
