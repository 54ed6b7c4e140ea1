// Weights in shards: an index that does not fit its files is refused, and what is saved in shards is read back.
import { existsSync, truncateSync, writeFileSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { type HeddleErrorCode, loadModel } from '../lib/index.js'
import { addon } from '../lib/native.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel, tinyModelFolder } from './tiny_model.js'

const [first, second] = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const

/** Two shards, of a and b and of c, with an index of one's choice. */
async function shards(weightMap: Readonly<Record<string, unknown>>): Promise<string> {
  const folder = temporaryFolder()
  const entry = (name: string) => ({ name, tensor: addon.tensorFromData('f32', [1], Float32Array.of(name.length)) })
  await addon.writeSafetensors(join(folder, first), [entry('a'), entry('b')], {})
  await addon.writeSafetensors(join(folder, second), [entry('c')], {})
  const path = join(folder, 'model.safetensors.index.json')
  writeFileSync(path, JSON.stringify({ weight_map: weightMap }))
  return path
}

async function refused(t: ExecutionContext, path: string, code: HeddleErrorCode, message: RegExp): Promise<void> {
  const error = await t.throwsAsync(openSafetensors(path), { code })
  t.regex(error!.message, message)
  t.true(error!.message.includes(path))
}

test('an index that fits its shards opens', async (t) => {
  const archive = await openSafetensors(await shards({ c: second, b: first, a: first }))
  t.deepEqual([...archive.tensors.keys()].sort(), ['a', 'b', 'c'])
  archive.close()
})

for (const [what, map, code, message] of [
  [
    'names a file that is missing',
    { a: first, b: first, c: 'x.safetensors' },
    'ERR_HEDDLE_IO',
    /x\.safetensors beside/,
  ],
  [
    'names a tensor of another shard',
    { a: first, b: second, c: second },
    'ERR_HEDDLE_FORMAT',
    /"b" in the shard model-00002.*it in model-00001/,
  ],
  [
    'names a tensor that is nowhere',
    { a: first, b: first, c: second, d: second },
    'ERR_HEDDLE_FORMAT',
    /"d".*no shard/,
  ],
  ['leaves a tensor out', { a: first, c: second }, 'ERR_HEDDLE_FORMAT', /names "b" of model-00001/],
  ['points out of the folder', { a: `../${first}` }, 'ERR_HEDDLE_FORMAT', /beside the index/],
  ['points to an absolute path', { a: `/tmp/${first}` }, 'ERR_HEDDLE_FORMAT', /beside the index/],
  ['points to no file', { a: 5 }, 'ERR_HEDDLE_FORMAT', /beside the index/],
] as const)
  test(`refused: an index that ${what}`, async (t) => {
    await refused(t, await shards(map), code, message)
  })

test('a model saved in shards has the names of transformers and loads as the same model', async (t) => {
  const model = await tinyModel()
  const folder = join(temporaryFolder(), 'saved')
  await model.save(folder)
  await model.save(folder, { max_shard_size: '100KB' })
  const names = (await readdir(folder)).filter((name) => name.includes('safetensors')).sort()
  const count = names.length - 1
  t.true(count > 1)
  t.is(names[0], `model-00001-of-0000${count}.safetensors`)
  t.is(names.at(-1), 'model.safetensors.index.json')
  const index = JSON.parse(await readFile(join(folder, names.at(-1)!), 'utf8')) as {
    metadata: { total_size: number }
    weight_map: Record<string, string>
  }
  const weights = model.network.weights()
  t.is(
    index.metadata.total_size,
    weights.reduce((sum, { tensor }) => sum + 4 * tensor.size, 0),
  )
  t.deepEqual(Object.keys(index.weight_map), weights.map(({ name }) => name).sort())
  const again = await loadModel(folder)
  for (const [i, { tensor }] of again.network.weights().entries())
    t.deepEqual(await tensor.data(), await weights[i]!.tensor.data())
  await again.dispose()
  await model.save(folder)
  t.false(existsSync(join(folder, names[0]!)))
  await model.dispose()
})

test('a shard size that is none is refused', async (t) => {
  const model = await tinyModel()
  for (const size of ['5 bananas', 0, '', -1])
    await t.throwsAsync(model.save(temporaryFolder(), { max_shard_size: size }), { code: 'ERR_HEDDLE_ARGUMENT' })
  await model.dispose()
})

/** The tiny model's folder as one whose embedding has so many rows: its file is mostly a hole. */
async function hugeFolder(rows: number): Promise<string> {
  const folder = await tinyModelFolder()
  const path = join(folder, 'model.safetensors')
  const header = JSON.stringify({
    'model.embed_tokens.weight': { dtype: 'F32', shape: [rows, 64], data_offsets: [0, rows * 256] },
  })
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  writeFileSync(path, Buffer.concat([length, Buffer.from(header)]))
  truncateSync(path, 8 + header.length + rows * 256)
  return folder
}

test('a model that cannot fit into memory is refused with both numbers of bytes, before it is allocated', async (t) => {
  const rows = 2 ** 32
  const folder = await hugeFolder(rows)
  const error = await t.throwsAsync(loadModel(folder), { code: 'ERR_HEDDLE_OOM' })
  t.regex(error!.message, new RegExp(`expected ${rows * 256} bytes.* in f32, got \\d+ bytes available.*'bf16'`))
  await t.throwsAsync(loadModel(folder, { precision: 'bf16' }), {
    code: 'ERR_HEDDLE_OOM',
    message: /expected 549755813888 bytes/,
  })
})

test('memoryLimit takes the place of what is available', async (t) => {
  const folder = await tinyModelFolder()
  const error = await t.throwsAsync(loadModel(folder, { memoryLimit: 1000 }), { code: 'ERR_HEDDLE_OOM' })
  t.regex(error!.message, /got 1000 bytes allowed by memoryLimit/)
  // Enough is asked for: the huge model fails for another reason, its missing tensors.
  await t.throwsAsync(loadModel(await hugeFolder(2 ** 32), { memoryLimit: 2 ** 50 }), { code: 'ERR_HEDDLE_FORMAT' })
  await t.throwsAsync(loadModel(folder, { memoryLimit: -1 }), { code: 'ERR_HEDDLE_ARGUMENT' })
})
