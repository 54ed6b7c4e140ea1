// Files under the native core: bounds of the mapping, decoding of what GGUF and safetensors hold, the atomic writer.

import { mkdir, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import type { HeddleError } from '../lib/errors.js'
import { addon, type Encoding, type NativeTensor } from '../lib/native.js'
import type { DType } from '../lib/tensor/dtype.js'
import { randomNumbers } from './random_numbers.js'
import { temporaryFolder } from './support/temporary_folder.js'

const folder = temporaryFolder()
test.after.always(() => rm(folder, { recursive: true, force: true }))

let files = 0
const fileOf = async (bytes: Uint8Array) => {
  const path = join(folder, `${++files}.bin`)
  await writeFile(path, bytes)
  return addon.openFile(path)
}

const seededBytes = (count: number, seed: number) =>
  Uint8Array.from(randomNumbers(count, seed), (value) => (value + 1) * 128)

const code = (error: unknown) => (error as HeddleError).code

test('a missing file and a folder are IO errors that name the path', async (t) => {
  for (const path of [join(folder, 'missing'), folder]) {
    const error = await t.throwsAsync(addon.openFile(path))
    t.is(code(error), 'ERR_HEDDLE_IO')
    t.true(error!.message.includes(path))
  }
})

test('reads give the bytes of the file and nothing beyond it', async (t) => {
  const bytes = seededBytes(1000, 1)
  const file = await fileOf(bytes)
  t.is(file.size, 1000)
  t.deepEqual(new Uint8Array(file.read(10, 20)), bytes.slice(10, 30))
  t.is(file.read(1000, 0).byteLength, 0)
  for (const [offset, length] of [
    [0, 1001],
    [1000, 1],
    [2 ** 53 - 1, 1],
    [999, 2 ** 25],
  ] as const)
    t.is(code(t.throws(() => file.read(offset, length))), 'ERR_HEDDLE_FORMAT')
  for (const [offset, length] of [
    [-1, 1],
    [0.5, 1],
    [0, Number.NaN],
    [2 ** 53, 1],
    [0, 2 ** 27],
  ] as const)
    t.is(code(t.throws(() => file.read(offset, length))), 'ERR_HEDDLE_ARGUMENT')
})

test('an empty file can be opened and read nothing of', async (t) => {
  const file = await fileOf(new Uint8Array())
  t.is(file.size, 0)
  t.is(code(t.throws(() => file.read(0, 1))), 'ERR_HEDDLE_FORMAT')
})

test('a closed file refuses to be read, and its tensors live on', async (t) => {
  const file = await fileOf(new Uint8Array(Float32Array.of(1, 2).buffer))
  const tensor = file.tensor({ encoding: 'f32', dtype: 'f32', shape: [2], offset: 0 })
  file.close()
  t.is(code(t.throws(() => file.read(0, 1))), 'ERR_HEDDLE_ARGUMENT')
  t.deepEqual(new Float32Array(await addon.tensorData(tensor)), Float32Array.of(1, 2))
})

test('a tensor that reaches beyond the file is refused', async (t) => {
  const file = await fileOf(new Uint8Array(34 * 4))
  for (const [encoding, shape, offset] of [
    ['f32', [35], 0],
    ['f32', [1], 133],
    ['q8_0', [5, 32], 0],
    ['q8_0', [4, 32], 2],
    ['q4_0', [2 ** 20, 2 ** 20], 0],
    ['f32', [0], 200],
  ] as const)
    t.is(code(t.throws(() => file.tensor({ encoding, dtype: 'f32', shape, offset }))), 'ERR_HEDDLE_FORMAT')
})

test('shapes, types and heads that cannot be are refused', async (t) => {
  const file = await fileOf(new Uint8Array(4096))
  const make = (encoding: string, dtype: string, shape: number[], interleavedHeads?: number) => () =>
    file.tensor({
      encoding: encoding as Encoding,
      dtype: dtype as DType,
      shape,
      offset: 0,
      ...(interleavedHeads === undefined ? {} : { interleavedHeads }),
    })
  t.is(code(t.throws(make('q4_0', 'f32', [4, 33]))), 'ERR_HEDDLE_SHAPE')
  t.is(code(t.throws(make('q4_0', 'f32', []))), 'ERR_HEDDLE_SHAPE')
  t.is(code(t.throws(make('f32', 'f32', [2 ** 40, 2 ** 40]))), 'ERR_HEDDLE_SHAPE')
  t.is(code(t.throws(make('f32', 'f32', [-1]))), 'ERR_HEDDLE_ARGUMENT')
  t.is(code(t.throws(make('q9_k', 'f32', [32]))), 'ERR_HEDDLE_FORMAT')
  t.is(code(t.throws(make('i32', 'f32', [32]))), 'ERR_HEDDLE_DTYPE')
  t.is(code(t.throws(make('f32', 'i64', [32]))), 'ERR_HEDDLE_DTYPE')
  t.is(code(t.throws(make('f32', 'f32', [6, 4], 2))), 'ERR_HEDDLE_SHAPE')
  t.is(code(t.throws(make('q8_0', 'f32', [64], 2))), 'ERR_HEDDLE_SHAPE')
})

test('every dense type comes back as it is, at any offset', async (t) => {
  const bytes = seededBytes(200, 3)
  const file = await fileOf(bytes)
  for (const [dtype, size] of [
    ['f32', 4],
    ['f64', 8],
    ['bf16', 2],
    ['f16', 2],
    ['i32', 4],
    ['i64', 8],
    ['u8', 1],
    ['u32', 4],
  ] as const)
    for (const offset of [0, 3, 8, 64]) {
      const tensor = file.tensor({ encoding: dtype, dtype, shape: [2, 5], offset })
      t.is(tensor.dtype, dtype)
      t.deepEqual(new Uint8Array(await addon.tensorData(tensor)), bytes.slice(offset, offset + 10 * size))
    }
})

/** The plain reading of the formats' definitions. */
const half = (view: DataView, at: number): number => {
  const bits = view.getUint16(at, true)
  const exponent = (bits >> 10) & 31
  const mantissa = bits & 1023
  const magnitude =
    exponent === 31
      ? mantissa
        ? Number.NaN
        : Number.POSITIVE_INFINITY
      : exponent
        ? 2 ** (exponent - 15) * (1 + mantissa / 1024)
        : 2 ** -14 * (mantissa / 1024)
  return bits & 0x8000 ? -magnitude : magnitude
}

const { fround } = Math
const blockFormats: Readonly<
  Record<string, { bytes: number; element: (v: DataView, at: number, i: number) => number }>
> = {
  q4_0: {
    bytes: 18,
    element: (v, at, i) => fround((nibble(v, at + 2, i) - 8) * half(v, at)),
  },
  q4_1: {
    bytes: 20,
    element: (v, at, i) => fround(fround(nibble(v, at + 4, i) * half(v, at)) + half(v, at + 2)),
  },
  q8_0: { bytes: 34, element: (v, at, i) => fround(v.getInt8(at + 2 + i) * half(v, at)) },
}

function nibble(view: DataView, at: number, i: number): number {
  return i < 16 ? view.getUint8(at + i) & 15 : view.getUint8(at + i - 16) >> 4
}

/** Random blocks whose f16 scales are finite. */
const randomBlocks = (count: number, size: number, scales: number, seed: number) => {
  const bytes = seededBytes(count * size, seed)
  for (let block = 0; block < count; ++block)
    for (let scale = 0; scale < scales; ++scale) bytes[block * size + scale * 2 + 1]! &= 0xbf
  return bytes
}

const bf16 = (value: number): number => {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0]!
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff
}

for (const [encoding, { bytes: size, element }] of Object.entries(blockFormats)) {
  test(`${encoding} decodes as the plain reference does, to f32 and bf16`, async (t) => {
    const [rows, columns] = [7, 96]
    const bytes = randomBlocks((rows * columns) / 32, size, encoding === 'q4_1' ? 2 : 1, 5)
    const file = await fileOf(bytes)
    const view = new DataView(bytes.buffer)
    const expected = Float32Array.from({ length: rows * columns }, (_, i) =>
      element(view, Math.floor(i / 32) * size, i % 32),
    )
    const options = { encoding: encoding as Encoding, shape: [rows, columns], offset: 0 }
    const wide = await addon.tensorData(file.tensor({ ...options, dtype: 'f32' }))
    t.deepEqual(new Float32Array(wide), expected)
    const narrow = await addon.tensorData(file.tensor({ ...options, dtype: 'bf16' }))
    t.deepEqual(new Uint16Array(narrow), Uint16Array.from(expected, bf16))
  })
}

test('f16, bf16 and f64 decode to f32', async (t) => {
  const bytes = seededBytes(65536 * 2, 6)
  const words = new Uint16Array(bytes.buffer)
  for (let i = 0; i < words.length; ++i) words[i] = i
  const file = await fileOf(bytes)
  const view = new DataView(bytes.buffer)
  const decode = async (encoding: Encoding, count: number) =>
    new Float32Array(await addon.tensorData(file.tensor({ encoding, dtype: 'f32', shape: [count], offset: 0 })))
  // Compared number by number: a NaN is a NaN, whatever its bits.
  const fromHalves = await decode('f16', 65536)
  t.true(fromHalves.every((value, i) => Object.is(value, half(view, i * 2))))
  const wide = new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer)
  const fromBrain = await decode('bf16', 65536)
  t.true(fromBrain.every((value, i) => Object.is(value, wide[i])))
  const doubles = await fileOf(new Uint8Array(Float64Array.of(0.1, -1e300, 3).buffer))
  const tensor = doubles.tensor({ encoding: 'f64', dtype: 'f32', shape: [3], offset: 0 })
  t.deepEqual(new Float32Array(await addon.tensorData(tensor)), Float32Array.of(0.1, -1e300, 3))
})

test('interleaved rope rows come back in Hugging Face order', async (t) => {
  const [heads, size, columns] = [3, 8, 32]
  const rows = heads * size
  const values = Float32Array.from({ length: rows * columns }, (_, i) => i)
  const file = await fileOf(new Uint8Array(values.buffer))
  const tensor = file.tensor({
    encoding: 'f32',
    dtype: 'f32',
    shape: [rows, columns],
    offset: 0,
    interleavedHeads: heads,
  })
  const got = new Float32Array(await addon.tensorData(tensor))
  for (let head = 0; head < heads; ++head)
    for (let half = 0; half < 2; ++half)
      for (let j = 0; j < size / 2; ++j) {
        const huggingFace = head * size + half * (size / 2) + j
        const llamaCpp = head * size + 2 * j + half
        t.is(got[huggingFace * columns], values[llamaCpp * columns])
      }
})

test('a decoded tensor cannot be written', async (t) => {
  const file = await fileOf(new Uint8Array(64))
  const tensor = file.tensor({ encoding: 'f32', dtype: 'f32', shape: [2], offset: 0 })
  t.is(code(t.throws(() => addon.tensorWrite(tensor, new Float32Array(2)))), 'ERR_HEDDLE_ARGUMENT')
})

interface Entry {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly data_offsets: readonly [number, number]
}

const parse = (file: Uint8Array) => {
  const bytes = Uint8Array.from(file)
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true))
  const text = new TextDecoder().decode(bytes.subarray(8, 8 + length))
  const { __metadata__: metadata, ...tensors } = JSON.parse(text) as { __metadata__?: Record<string, string> } & Record<
    string,
    Entry
  >
  return { length, text, metadata, tensors: tensors as Record<string, Entry>, data: bytes.slice(8 + length) }
}

const f32 = (values: readonly number[], shape = [values.length]): NativeTensor =>
  addon.tensorFromData('f32', shape, Float32Array.from(values))

test('safetensors: header, order, padding and contents are those of the reference library', async (t) => {
  const path = join(folder, 'written.safetensors')
  await addon.writeSafetensors(
    path,
    [
      { name: 'b.small', tensor: addon.tensorFromData('u8', [3], Uint8Array.of(1, 2, 3)) },
      { name: 'z "quoted"\n', tensor: f32([1, 2, 3, 4], [2, 2]) },
      { name: 'a', tensor: f32([5]) },
      { name: 'half', tensor: f32([1, 2]), dtype: 'bf16' },
      { name: 'long', tensor: addon.tensorFromData('i64', [1], BigInt64Array.of(-7n)) },
    ],
    { format: 'pt', note: 'é' },
  )
  const { length, text, metadata, tensors, data } = parse(await readFile(path))
  t.is(length % 8, 0)
  t.regex(text, /^\{"__metadata__":\{.*\} *$/)
  t.deepEqual(metadata, { format: 'pt', note: 'é' })
  t.deepEqual(Object.keys(tensors), ['long', 'a', 'z "quoted"\n', 'half', 'b.small'])
  t.deepEqual(tensors['z "quoted"\n'], { dtype: 'F32', shape: [2, 2], data_offsets: [12, 28] })
  t.deepEqual(tensors.half, { dtype: 'BF16', shape: [2], data_offsets: [28, 32] })
  t.is(data.length, 35)
  t.deepEqual(new Float32Array(data.slice(12, 28).buffer), Float32Array.of(1, 2, 3, 4))
  t.deepEqual(new Uint16Array(data.slice(28, 32).buffer), Uint16Array.of(0x3f80, 0x4000))
})

test('safetensors: what is written can be mapped and read back', async (t) => {
  const path = join(folder, 'round.safetensors')
  const values = randomNumbers(300_000, 9)
  await addon.writeSafetensors(
    path,
    [
      { name: 'w', tensor: addon.tensorFromData('f32', [300, 1000], values) },
      { name: 'h', tensor: addon.tensorFromData('f32', [300, 1000], values), dtype: 'f16' },
    ],
    {},
  )
  const { length, tensors } = parse(await readFile(path))
  const file = await addon.openFile(path)
  const back = (name: string, encoding: Encoding) =>
    file.tensor({ encoding, dtype: 'f32', shape: [300, 1000], offset: 8 + length + tensors[name]!.data_offsets[0] })
  t.deepEqual(new Float32Array(await addon.tensorData(back('w', 'f32'))), values)
  const halves = new Float32Array(await addon.tensorData(back('h', 'f16')))
  t.true(halves.every((value, i) => Math.abs(value - values[i]!) <= 2 ** -11 * Math.abs(values[i]!) + 2 ** -25))
})

test('safetensors: a failed write leaves the old file and nothing else', async (t) => {
  const place = join(folder, 'atomic')
  await mkdir(place)
  const path = join(place, 'model.safetensors')
  await addon.writeSafetensors(path, [{ name: 'w', tensor: f32([1]) }], {})
  const before = await readFile(path)
  const twice = [
    { name: 'w', tensor: f32([2]) },
    { name: 'w', tensor: f32([3]) },
  ]
  t.is(code(await t.throwsAsync(addon.writeSafetensors(path, twice, {}))), 'ERR_HEDDLE_ARGUMENT')
  t.deepEqual(await readFile(path), before)
  t.deepEqual(await readdir(place), ['model.safetensors'])

  const target = join(place, 'folder')
  await mkdir(target)
  t.is(code(await t.throwsAsync(addon.writeSafetensors(target, twice.slice(1), {}))), 'ERR_HEDDLE_IO')
  t.deepEqual((await readdir(place)).sort(), ['folder', 'model.safetensors'])
})

test('safetensors: a file can be replaced while it is mapped', async (t) => {
  const path = join(folder, 'replaced.safetensors')
  await addon.writeSafetensors(path, [{ name: 'w', tensor: f32([1, 2]) }], {})
  const { length } = parse(await readFile(path))
  const file = await addon.openFile(path)
  const tensor = file.tensor({ encoding: 'f32', dtype: 'f32', shape: [2], offset: 8 + length })
  await addon.writeSafetensors(path, [{ name: 'w', tensor: f32([3, 4]) }], {})
  t.deepEqual(new Float32Array(await addon.tensorData(tensor)), Float32Array.of(1, 2))
})

test('safetensors: writers of one path do not mix their bytes', async (t) => {
  const path = join(folder, 'contended.safetensors')
  const tensors = [1, 2, 3, 4].map((value) =>
    addon.tensorFromData('f32', [100_000], new Float32Array(100_000).fill(value)),
  )
  await Promise.all(tensors.map((tensor) => addon.writeSafetensors(path, [{ name: 'w', tensor }], {})))
  const { data } = parse(await readFile(path))
  const values = new Float32Array(data.buffer)
  t.true(values.every((value) => value === values[0]))
})

test('a file cut short before it is opened is refused by its bounds', async (t) => {
  const path = join(folder, 'short.safetensors')
  await addon.writeSafetensors(path, [{ name: 'w', tensor: f32([1, 2, 3, 4]) }], {})
  const { length } = parse(await readFile(path))
  await truncate(path, (await stat(path)).size - 1)
  const file = await addon.openFile(path)
  const options = { encoding: 'f32', dtype: 'f32', shape: [4], offset: 8 + length } as const
  t.is(code(t.throws(() => file.tensor(options))), 'ERR_HEDDLE_FORMAT')
})
