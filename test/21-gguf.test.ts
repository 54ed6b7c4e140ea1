import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { HeddleError } from '../lib/errors.js'
import { type ByteSource, sourceOf } from '../lib/formats/byte_source.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { type GgufArray, readGgufHeader, readGgufNumbers, readGgufStrings } from '../lib/formats/gguf.js'
import { addon } from '../lib/native.js'
import { fetchModel } from './models/fetch.js'
import { temporaryFolder } from './support/temporary_folder.js'

/** Builds a GGUF file byte by byte. */
class Bytes {
  readonly #parts: Buffer[] = []

  u8 = (value: number) => this.#add(Buffer.from([value]))
  u32 = (value: number) => this.#number(4, (buffer) => buffer.writeUInt32LE(value))
  f32 = (value: number) => this.#number(4, (buffer) => buffer.writeFloatLE(value))
  u64 = (value: number) => this.#number(8, (buffer) => buffer.writeBigUInt64LE(BigInt(value)))
  text = (value: string) => this.u64(Buffer.byteLength(value)).#add(Buffer.from(value))

  /** Zeros up to a multiple of the alignment, then so many more. */
  data = (alignment: number, size: number) =>
    this.#add(Buffer.alloc(-this.size & (alignment - 1))).#add(Buffer.alloc(size))

  get size(): number {
    return this.#parts.reduce((sum, { length }) => sum + length, 0)
  }

  done = (): Uint8Array => Buffer.concat(this.#parts)

  #add(part: Buffer): this {
    this.#parts.push(part)
    return this
  }

  #number(size: number, write: (buffer: Buffer) => void): this {
    const buffer = Buffer.alloc(size)
    write(buffer)
    return this.#add(buffer)
  }
}

const magic = 0x46554747
const typeCode = { u8: 0, u32: 4, f32: 6, bool: 7, string: 8, array: 9 } as const
const f32Type = 0
const q8Type = 8

const start = (tensors: number, values: number, version = 3) =>
  new Bytes().u32(magic).u32(version).u64(tensors).u64(values)

interface TensorSpec {
  readonly name: string
  readonly inner: readonly number[]
  readonly type: number
  readonly offset: number
}

function tensorInfo(bytes: Bytes, { name, inner, type, offset }: TensorSpec): Bytes {
  bytes.text(name).u32(inner.length)
  for (const size of inner) bytes.u64(size)
  return bytes.u32(type).u64(offset)
}

/** A file of tensors alone. */
function tensorFile(specs: readonly TensorSpec[], dataBytes: number): Uint8Array {
  const bytes = start(specs.length, 0)
  for (const spec of specs) tensorInfo(bytes, spec)
  return bytes.data(32, dataBytes).done()
}

function memory(bytes: Uint8Array): ByteSource {
  const read = (offset: number, length: number) => Uint8Array.from(bytes.subarray(offset, offset + length)).buffer
  return sourceOf('memory.gguf', { size: bytes.length, read })
}

test('metadata of every kind is read, arrays only located', async (t) => {
  const bytes = start(0, 6)
    .text('a')
    .u32(typeCode.u32)
    .u32(7)
    .text('b')
    .u32(typeCode.f32)
    .f32(1e-5)
    .text('c')
    .u32(typeCode.bool)
    .u8(1)
    .text('d')
    .u32(typeCode.string)
    .text('héddle')
    .text('e')
    .u32(typeCode.array)
    .u32(typeCode.string)
    .u64(2)
    .text('warp')
    .text('weft')
    .text('f')
    .u32(typeCode.array)
    .u32(typeCode.u8)
    .u64(3)
    .u8(1)
    .u8(2)
    .u8(3)
    .done()
  const source = memory(bytes)
  const { metadata } = await readGgufHeader(source)
  t.deepEqual(
    ['a', 'b', 'c', 'd'].map((key) => metadata.get(key)),
    [7, 1e-5, true, 'héddle'],
  )
  t.deepEqual(readGgufStrings(source, metadata.get('e') as GgufArray), ['warp', 'weft'])
  t.deepEqual(readGgufNumbers(source, metadata.get('f') as GgufArray), [1, 2, 3])
})

test('version 2 is read as version 3 is', async (t) => {
  t.is((await readGgufHeader(memory(start(0, 0, 2).done()))).version, 2)
})

test('tensors come outermost dimension first, with their place in the file', async (t) => {
  const specs = [
    { name: 'w', inner: [64, 2], type: q8Type, offset: 0 },
    { name: 'n', inner: [3], type: f32Type, offset: 160 },
  ]
  const bytes = tensorFile(specs, 172)
  const { tensors } = await readGgufHeader(memory(bytes))
  const offset = bytes.length - 172
  t.deepEqual(tensors.get('w'), { name: 'w', shape: [2, 64], encoding: 'q8_0', offset, byteLength: 136 })
  t.deepEqual(tensors.get('n'), { name: 'n', shape: [3], encoding: 'f32', offset: offset + 160, byteLength: 12 })
})

test('general.alignment moves the data', async (t) => {
  const bytes = start(1, 1).text('general.alignment').u32(typeCode.u32).u32(256)
  const file = tensorInfo(bytes, { name: 'n', inner: [1], type: f32Type, offset: 0 })
    .data(256, 4)
    .done()
  t.is((await readGgufHeader(memory(file))).tensors.get('n')!.offset % 256, 0)
})

const one = (change: Partial<TensorSpec>, dataBytes = 4) =>
  tensorFile([{ name: 'n', inner: [1], type: f32Type, offset: 0, ...change }], dataBytes)

const hostile: readonly (readonly [string, Uint8Array, RegExp])[] = [
  ['an empty file', new Uint8Array(0), /truncated/],
  ['another magic number', new Bytes().u32(0x04034b50).u32(3).u64(0).u64(0).done(), /GGUF/],
  ['version 1', start(0, 0, 1).done(), /2 or 3/],
  ['a big-endian file', start(0, 0, 0x03000000).done(), /big-endian/],
  ['more tensors than the file has room for', start(2 ** 40, 0).done(), /at most 0/],
  ['more metadata than the file has room for', start(0, 2 ** 52).done(), /at most 0/],
  ['a count beyond 2^53', new Bytes().u32(magic).u32(3).u32(0).u32(0xffffffff).u64(0).done(), /below 2\^53/],
  ['a key longer than the file', start(0, 1).u64(1000).u64(0).done(), /1000 bytes at/],
  ['a key that occurs twice', start(0, 2).text('a').u32(0).u8(1).text('a').u32(0).u8(1).done(), /"a" twice/],
  ['an unknown value type', start(0, 1).text('a').u32(13).u64(0).done(), /type of a/],
  ['a boolean that is 2', start(0, 1).text('a').u32(typeCode.bool).u8(2).done(), /0 or 1/],
  ['text that is no UTF-8', start(0, 1).text('a').u32(typeCode.string).u64(1).u8(0xff).done(), /UTF-8/],
  [
    'an array longer than the file',
    start(0, 1)
      .text('a')
      .u32(9)
      .u32(4)
      .u64(2 ** 50)
      .done(),
    /length of a/,
  ],
  ['an array of arrays', start(0, 1).text('a').u32(9).u32(9).u64(0).u64(0).done(), /array of arrays/],
  ['an alignment that is no power of two', start(0, 1).text('general.alignment').u32(4).u32(24).done(), /power of two/],
  ['a tensor of rank 0', one({ inner: [] }), /rank of n/],
  ['a tensor of rank 5', one({ inner: [1, 1, 1, 1, 1] }), /rank of n/],
  ['an empty dimension', one({ inner: [0] }), /shape of n/],
  ['a shape whose product overflows', one({ inner: [2 ** 50, 2 ** 50] }), /shape of n/],
  ['rows that are no multiple of the block', one({ inner: [33], type: q8Type }), /multiple of 32/],
  ['a type that Heddle cannot read', one({ inner: [256], type: 16 }), /IQ2_XXS/],
  ['a type that does not exist', one({ type: 99 }), /type number 99/],
  ['an offset that is not aligned', one({ offset: 4 }, 64), /multiple of 32/],
  ['an offset beyond the file', one({ offset: 2 ** 52 }), /truncated/],
  ['data beyond the end of the file', one({ inner: [64] }), /truncated/],
  ['a name longer than 64 bytes', one({ name: 'n'.repeat(65) }), /at most 64/],
  [
    'a tensor name that occurs twice',
    tensorFile(
      [
        { name: 'n', inner: [1], type: 0, offset: 0 },
        { name: 'n', inner: [1], type: 0, offset: 32 },
      ],
      64,
    ),
    /"n" twice/,
  ],
  [
    'tensors that overlap',
    tensorFile(
      [
        { name: 'n', inner: [16], type: 0, offset: 0 },
        { name: 'm', inner: [1], type: 0, offset: 32 },
      ],
      64,
    ),
    /share no byte/,
  ],
]

for (const [what, bytes, message] of hostile)
  test(`refused: ${what}`, async (t) => {
    const error = await t.throwsAsync(readGgufHeader(memory(bytes)), { instanceOf: HeddleError })
    t.is((error as HeddleError).code, 'ERR_HEDDLE_FORMAT')
    t.regex(error!.message, message)
  })

const specs = fc.uniqueArray(
  fc.record({ name: fc.string({ maxLength: 16 }), rows: fc.integer({ min: 1, max: 4 }), quantised: fc.boolean() }),
  { selector: ({ name }) => name, maxLength: 5 },
)

const files = fc
  .record({ specs, values: fc.uniqueArray(fc.string({ maxLength: 12 }), { maxLength: 5 }) })
  .map((file) => {
    const bytes = start(file.specs.length, file.values.length)
    for (const [index, key] of file.values.entries())
      if (index % 2) bytes.text(key).u32(typeCode.string).text(`value of ${key}`)
      else bytes.text(key).u32(typeCode.array).u32(typeCode.string).u64(2).text('x').text(key)
    let offset = 0
    for (const { name, rows, quantised } of file.specs) {
      tensorInfo(bytes, { name, inner: [32, rows], type: quantised ? q8Type : f32Type, offset })
      offset += Math.ceil((rows * (quantised ? 34 : 128)) / 32) * 32
    }
    return { ...file, bytes: bytes.data(32, offset).done() }
  })

const withoutAlignmentKey = files.filter(({ values }) => !values.includes('general.alignment'))

test('every well-formed file is read as it was written', async (t) => {
  const property = fc.asyncProperty(withoutAlignmentKey, async (file) => {
    const { metadata, tensors } = await readGgufHeader(memory(file.bytes))
    const shapes = file.specs.every(({ name, rows }) => `${tensors.get(name)?.shape}` === `${[rows, 32]}`)
    return shapes && tensors.size === file.specs.length && file.values.every((key) => metadata.has(key))
  })
  await t.notThrowsAsync(fc.assert(property, { seed: 1, numRuns: 200 }))
})

test('every file cut inside its header is refused', async (t) => {
  const property = fc.asyncProperty(withoutAlignmentKey, fc.nat(), async ({ bytes }, cut) => {
    const result = await readGgufHeader(memory(bytes.subarray(0, cut % bytes.length))).catch((error: unknown) => error)
    if (result instanceof HeddleError) return result.code === 'ERR_HEDDLE_FORMAT'
    // Only the padding after the last tensor's bytes, which nobody reads, may be missing.
    return !(result instanceof Error) && bytes.length - (cut % bytes.length) < 32
  })
  await t.notThrowsAsync(fc.assert(property, { seed: 2, numRuns: 300 }))
})

test('a damaged file is read or refused, nothing else', async (t) => {
  const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 8 })
  const property = fc.asyncProperty(files, damage, async ({ bytes }, changes) => {
    const damaged = Uint8Array.from(bytes)
    for (const [position, value] of changes) damaged[position % damaged.length] = value
    const result = await readGgufHeader(memory(damaged)).catch((error: unknown) => error)
    return !(result instanceof Error) || (result instanceof HeddleError && result.code === 'ERR_HEDDLE_FORMAT')
  })
  await t.notThrowsAsync(fc.assert(property, { seed: 3, numRuns: 500 }))
})

test('SmolLM2 opens with the config and the parameter names of Hugging Face', async (t) => {
  const checkpoint = await openCheckpoint(await fetchModel('smollm2'))
  t.like(checkpoint.config, {
    model_type: 'llama',
    hidden_size: 576,
    intermediate_size: 1536,
    num_hidden_layers: 30,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    head_dim: 64,
    rms_norm_eps: 1e-5,
    rope_theta: 100000,
    rope_scaling: null,
    max_position_embeddings: 8192,
    vocab_size: 49152,
    tie_word_embeddings: true,
    bos_token_id: 1,
    eos_token_id: 2,
  })
  t.is(checkpoint.tensors.size, 272)
  t.deepEqual(checkpoint.tensors.get('model.layers.29.self_attn.k_proj.weight')?.shape, [192, 576])
  t.deepEqual(checkpoint.tensors.get('model.embed_tokens.weight')?.shape, [49152, 576])
  checkpoint.close()
})

test('quantised blocks load as f32', async (t) => {
  const header = start(1, 0)
  tensorInfo(header, { name: 'w', inner: [32, 1], type: q8Type, offset: 0 })
  const bytes = Buffer.from(header.data(32, 34).done())
  const block = bytes.subarray(bytes.length - 34)
  block.writeUInt16LE(0x3800, 0)
  for (let i = 0; i < 32; i++) block.writeInt8(i - 16, 2 + i)
  const path = join(temporaryFolder(), 'w.gguf')
  writeFileSync(path, bytes)
  const file = await addon.openFile(path)
  const tensor = file.tensor({ encoding: 'q8_0', dtype: 'f32', shape: [1, 32], offset: bytes.length - 34 })
  const values = [...new Float32Array(await addon.tensorData(tensor))]
  t.deepEqual(
    values,
    Array.from({ length: 32 }, (_, i) => (i - 16) / 2),
  )
  file.close()
})

const opened = async (t: ExecutionContext, source: string) =>
  (await t.throwsAsync(openCheckpoint(source), { instanceOf: HeddleError })) as HeddleError

test('a model of another architecture is refused by name', async (t) => {
  const path = join(temporaryFolder(), 'other.gguf')
  writeFileSync(path, start(0, 1).text('general.architecture').u32(typeCode.string).text('mamba').done())
  const error = await opened(t, path)
  t.is(error.code, 'ERR_HEDDLE_FORMAT')
  t.regex(error.message, /"mamba"/)
})

test('a source that is neither folder, GGUF file nor hub id is ERR_HEDDLE_ARGUMENT', async (t) => {
  for (const source of ['/nowhere/at/all', 'missing.gguf', 'package.json', ''])
    t.is((await opened(t, source)).code, 'ERR_HEDDLE_ARGUMENT', source)
})
