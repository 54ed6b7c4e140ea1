import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { HeddleError } from '../lib/errors.js'
import { type ByteSource, sourceOf } from '../lib/formats/byte_source.js'
import { openSafetensors, readSafetensorsHeader } from '../lib/formats/safetensors.js'
import { addon } from '../lib/native.js'
import { temporaryFolder } from './support/temporary_folder.js'

/** A file in memory. */
function memory(bytes: Uint8Array): ByteSource {
  const read = (offset: number, length: number) => Uint8Array.from(bytes.subarray(offset, offset + length)).buffer
  return sourceOf('memory.safetensors', { size: bytes.length, read })
}

/** A safetensors file of a header, as text or as a value, and so many bytes of data. */
function fileOf(header: unknown, dataBytes: number, headerLength?: number): Uint8Array {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(headerLength ?? text.length))
  return Buffer.concat([length, text, Buffer.alloc(dataBytes)])
}

const entry = (dtype: string, shape: readonly number[], start: number, end: number) => ({
  dtype,
  shape,
  data_offsets: [start, end],
})

async function refused(t: ExecutionContext, bytes: Uint8Array, message: RegExp): Promise<void> {
  const error = await t.throwsAsync(readSafetensorsHeader(memory(bytes)), { instanceOf: HeddleError })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_FORMAT')
  t.regex(error!.message, message)
}

test('a header gives names, dtypes, shapes, offsets and metadata', async (t) => {
  const header = { b: entry('BF16', [2, 3], 4, 16), a: entry('F32', [], 0, 4), __metadata__: { format: 'pt' } }
  const { entries, metadata } = await readSafetensorsHeader(memory(fileOf(header, 16)))
  const start = 8 + JSON.stringify(header).length
  t.deepEqual(entries.get('a'), { name: 'a', dtype: 'F32', shape: [], offset: start, byteLength: 4 })
  t.deepEqual(entries.get('b'), { name: 'b', dtype: 'BF16', shape: [2, 3], offset: start + 4, byteLength: 12 })
  t.deepEqual([...metadata], [['format', 'pt']])
})

test('a header may end in spaces, hold escapes and empty tensors', async (t) => {
  const text = '{ "w\\u00e9\\"" : {"shape":[0, 7], "dtype":"F32","data_offsets":[0,0]} }   '
  const { entries } = await readSafetensorsHeader(memory(fileOf(text, 0)))
  t.deepEqual([...entries.keys()], ['wé"'])
})

const hostile: readonly (readonly [string, Uint8Array, RegExp])[] = [
  ['an empty file', new Uint8Array(0), /8 bytes at offset 0/],
  ['a header length beyond the file', fileOf({}, 0, 1000), /header length of 1000/],
  ['a header length beyond 2^53', fileOf({}, 0, 2 ** 63), /below 2\^53/],
  ['a header that is no JSON', fileOf('{"a"', 0), /JSON header/],
  ['a header that is an array', fileOf('[]', 0), /"\{" for the JSON header/],
  ['text after the header', fileOf('{} {}', 0), /end of the header/],
  ['a name that occurs twice', fileOf('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', 1), /twice/],
  ['an unknown dtype', fileOf({ a: entry('F7', [1], 0, 4) }, 4), /F7/],
  ['a shape that does not fill its range', fileOf({ a: entry('F32', [2], 0, 4) }, 4), /8 bytes for F32/],
  ['a shape whose product overflows', fileOf({ a: entry('F32', [2 ** 40, 2 ** 40], 0, 4) }, 4), /a: expected/],
  ['a negative dimension', fileOf({ a: entry('F32', [-1], 0, 4) }, 4), /non-negative|integer from 0/],
  ['a range that runs backwards', fileOf({ a: entry('U8', [1], 1, 0) }, 1), /1 bytes for U8/],
  ['a gap between tensors', fileOf({ a: entry('U8', [1], 0, 1), b: entry('U8', [1], 2, 3) }, 3), /from offset 1/],
  ['tensors that overlap', fileOf({ a: entry('U8', [2], 0, 2), b: entry('U8', [2], 1, 3) }, 3), /from offset 2/],
  ['data beyond the end of the file', fileOf({ a: entry('U8', [9], 0, 9) }, 4), /truncated/],
  ['data after the last tensor', fileOf({ a: entry('U8', [1], 0, 1) }, 2), /as its header says/],
  ['a missing field', fileOf({ a: { dtype: 'U8', shape: [1] } }, 1), /data_offsets/],
  ['metadata that is no string', fileOf('{"__metadata__":{"a":1}}', 0), /JSON header/],
]

for (const [what, bytes, message] of hostile) test(`refused: ${what}`, (t) => refused(t, bytes, message))

const tensors = fc.uniqueArray(
  fc.record({
    name: fc.string({ minLength: 1, maxLength: 12 }).filter((name) => name !== '__metadata__' && name !== '__proto__'),
    shape: fc.array(fc.nat(5), { maxLength: 3 }),
    dtype: fc.constantFrom('F32', 'BF16', 'F16', 'U8', 'I64'),
  }),
  { selector: ({ name }) => name, maxLength: 6 },
)

const widths: Readonly<Record<string, number>> = { F32: 4, BF16: 2, F16: 2, U8: 1, I64: 8 }

const files = tensors.map((specs) => {
  let end = 0
  const entries = specs.map(({ name, shape, dtype }) => {
    const start = end
    end += shape.reduce((product, size) => product * size, widths[dtype]!)
    return [name, entry(dtype, shape, start, end)] as const
  })
  return { specs, bytes: fileOf(Object.fromEntries(entries), end) }
})

test('every well-formed file is read as it was written', async (t) => {
  const property = fc.asyncProperty(files, async ({ specs, bytes }) => {
    const { entries } = await readSafetensorsHeader(memory(bytes))
    for (const { name, shape, dtype } of specs)
      if (entries.get(name)?.dtype !== dtype || `${entries.get(name)?.shape}` !== `${shape}`) return false
    return entries.size === specs.length
  })
  await t.notThrowsAsync(fc.assert(property, { seed: 1, numRuns: 200 }))
})

test('every truncated file is refused', async (t) => {
  const property = fc.asyncProperty(files, fc.nat(), async ({ bytes }, cut) => {
    const result = await readSafetensorsHeader(memory(bytes.subarray(0, cut % bytes.length))).catch((error) => error)
    return result instanceof HeddleError && result.code === 'ERR_HEDDLE_FORMAT'
  })
  await t.notThrowsAsync(fc.assert(property, { seed: 2, numRuns: 300 }))
})

test('a damaged file is read or refused, nothing else', async (t) => {
  const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 8 })
  const property = fc.asyncProperty(files, damage, async ({ bytes }, changes) => {
    const damaged = Uint8Array.from(bytes)
    for (const [position, value] of changes) damaged[position % damaged.length] = value
    const result = await readSafetensorsHeader(memory(damaged)).catch((error: unknown) => error)
    return !(result instanceof Error) || (result instanceof HeddleError && result.code === 'ERR_HEDDLE_FORMAT')
  })
  await t.notThrowsAsync(fc.assert(property, { seed: 3, numRuns: 500 }))
})

test('tensors load as they are stored and as f32', async (t) => {
  const path = join(temporaryFolder(), 'model.safetensors')
  const bytes = fileOf({ a: entry('F32', [2], 0, 8), b: entry('BF16', [2], 8, 12) }, 12)
  const data = Buffer.from(bytes.buffer, bytes.byteOffset + bytes.byteLength - 12)
  data.writeFloatLE(1.5, 0)
  data.writeFloatLE(-2, 4)
  data.writeUInt16LE(0x3f80, 8)
  data.writeUInt16LE(0xc000, 10)
  writeFileSync(path, bytes)
  const archive = await openSafetensors(path)
  const values = async (name: string) => [
    ...new Float32Array(await addon.tensorData(archive.tensors.get(name)!.load('f32'))),
  ]
  t.deepEqual(await values('a'), [1.5, -2])
  t.deepEqual(await values('b'), [1, -2])
  archive.close()
})

test('what the addon writes is read back', async (t) => {
  const path = join(temporaryFolder(), 'out.safetensors')
  const tensor = addon.tensorFromData('f32', [2, 2], Float32Array.of(1, 2, 3, 4))
  await addon.writeSafetensors(path, [{ name: 'w', tensor }], { format: 'pt' })
  const archive = await openSafetensors(path)
  t.deepEqual([...archive.metadata], [['format', 'pt']])
  t.deepEqual(archive.tensors.get('w')?.shape, [2, 2])
  t.deepEqual([...new Float32Array(await addon.tensorData(archive.tensors.get('w')!.load('f32')))], [1, 2, 3, 4])
  archive.close()
})

test('shards are found through their index', async (t) => {
  const folder = temporaryFolder()
  writeFileSync(join(folder, 'model-1.safetensors'), fileOf({ a: entry('U8', [1], 0, 1) }, 1))
  writeFileSync(join(folder, 'model-2.safetensors'), fileOf({ b: entry('U8', [2], 0, 2) }, 2))
  const index = join(folder, 'model.safetensors.index.json')
  writeFileSync(index, JSON.stringify({ weight_map: { a: 'model-1.safetensors', b: 'model-2.safetensors' } }))
  const archive = await openSafetensors(index)
  t.deepEqual([...archive.tensors.keys()], ['a', 'b'])
  archive.close()
})

test('an index that names other folders, or tensors that are not there, is refused', async (t) => {
  const folder = temporaryFolder()
  writeFileSync(join(folder, 'model-1.safetensors'), fileOf({ a: entry('U8', [1], 0, 1) }, 1))
  const index = join(folder, 'model.safetensors.index.json')
  for (const map of [{ a: '../model-1.safetensors' }, { a: 7 }, { missing: 'model-1.safetensors' }, {}]) {
    writeFileSync(index, JSON.stringify({ weight_map: map }))
    const error = await t.throwsAsync(openSafetensors(index), { instanceOf: HeddleError })
    t.is((error as HeddleError).code, 'ERR_HEDDLE_FORMAT', JSON.stringify(map))
  }
})

test('a file that does not exist is ERR_HEDDLE_IO', async (t) => {
  const error = await t.throwsAsync(openSafetensors('/nowhere/model.safetensors'), { instanceOf: HeddleError })
  t.is((error as HeddleError).code, 'ERR_HEDDLE_IO')
})
