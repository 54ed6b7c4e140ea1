// Every refusal of a weight file says where it is, what was expected and what came; cut anywhere, a file is refused.
import { truncateSync, writeFileSync } from 'node:fs'
import { copyFile, cp, stat } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { openGguf } from '../lib/formats/gguf.js'
import { encodeGgufValues } from '../lib/formats/gguf_writer.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { exportGguf, HeddleError, loadModel, lora } from '../lib/index.js'
import { golden } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModel, tinyModelFolder } from './tiny_model.js'

const folder = temporaryFolder()
const openers = { safetensors: openSafetensors, gguf: openGguf } as const

async function refused(t: ExecutionContext, kind: keyof typeof openers, path: string, about: RegExp): Promise<void> {
  const error = (await t.throwsAsync(openers[kind](path), { instanceOf: HeddleError, code: 'ERR_HEDDLE_FORMAT' }))!
  const { place, expected, got } = error as HeddleError
  t.true(place.startsWith(path), place)
  t.true(expected.length > 0 && got.length > 0)
  t.regex(error.message, about)
}

function safetensors(header: string, dataBytes: number, length = header.length): Buffer {
  const words = BigUint64Array.of(BigInt.asUintN(64, BigInt(length)))
  return Buffer.concat([Buffer.from(words.buffer), Buffer.from(header), Buffer.alloc(dataBytes)])
}

const tensor = (shape: string, start: number | string, end: number | string, dtype = 'F32') =>
  `{"dtype":"${dtype}","shape":${shape},"data_offsets":[${start},${end}]}`
const nested = `${'{"a":'.repeat(5000)}1${'}'.repeat(5000)}`

interface GgufTensor {
  readonly inner: readonly bigint[]
  readonly type?: number
  readonly offset?: bigint
}

/** A GGUF file of metadata bytes and tensors a, b, …, with counts of one's choice. */
function gguf(metadata: Buffer, values: bigint, tensors: readonly GgufTensor[] = [], count = tensors.length): Buffer {
  const u32 = (...numbers: number[]) => Buffer.from(Uint32Array.from(numbers).buffer)
  const u64 = (...numbers: bigint[]) => Buffer.from(BigUint64Array.from(numbers).buffer)
  const infos = tensors.map(({ inner, type = 0, offset = 0n }, i) =>
    Buffer.concat([u64(1n), Buffer.from('abc'[i]!), u32(inner.length), u64(...inner), u32(type), u64(offset)]),
  )
  const head = Buffer.concat([u32(0x46554747, 3), u64(BigInt(count), values), metadata, ...infos])
  return Buffer.concat([head, Buffer.alloc(-head.length & 31), Buffer.alloc(64)])
}

const noValues = Buffer.alloc(0)
const value = (key: string, ...rest: readonly number[]) =>
  Buffer.concat([Buffer.from(BigUint64Array.of(BigInt(key.length)).buffer), Buffer.from(key), Buffer.from(rest)])
const alignment = (size: number) =>
  Buffer.from(encodeGgufValues({ 'general.alignment': { type: 'u32', value: size } }).bytes)
const word = (number: number) => [number, 0, 0, 0]
const long = (number: number) => [...word(number), 0, 0, 0, 0]

const hostile: readonly (readonly [keyof typeof openers, string, Buffer, RegExp])[] = [
  ['safetensors', 'a header length of 2^64 - 1', safetensors('{}', 0, -1), /below 2\^53/],
  ['safetensors', 'a header length of 2^52', safetensors('{}', 0, 2 ** 52), /header length/],
  [
    'safetensors',
    'offsets beyond 2^53',
    safetensors(`{"a":${tensor('[1]', '18446744073709551612', '18446744073709551616')}}`, 4),
    /2\^53/,
  ],
  [
    'safetensors',
    'a shape whose product wraps to the right size',
    safetensors(`{"a":${tensor('[4294967296,4294967296,1]', 0, 0)}}`, 0),
    /a: expected/,
  ],
  [
    'safetensors',
    'a shape of 65 dimensions',
    safetensors(`{"a":${tensor(`[${'1,'.repeat(64)}1]`, 0, 4)}}`, 4),
    /at most 64/,
  ],
  ['safetensors', 'a negative dimension', safetensors(`{"a":${tensor('[-1]', 0, 4)}}`, 4), /integer/],
  [
    'safetensors',
    'tensors that overlap',
    safetensors(`{"a":${tensor('[2]', 0, 8)},"b":${tensor('[2]', 4, 12)}}`, 12),
    /b: expected data from offset 8/,
  ],
  [
    'safetensors',
    'one range twice',
    safetensors(`{"a":${tensor('[2]', 0, 8)},"b":${tensor('[2]', 0, 8)}}`, 8),
    /b: expected data from offset 8/,
  ],
  ['safetensors', 'a dtype that does not exist', safetensors(`{"a":${tensor('[1]', 0, 4, 'F33')}}`, 4), /F33/],
  ['safetensors', 'a dtype of another size', safetensors(`{"a":${tensor('[1]', 0, 4, 'F64')}}`, 4), /8 bytes for F64/],
  [
    'safetensors',
    'a name twice',
    safetensors(`{"a":${tensor('[1]', 0, 4)},"a":${tensor('[1]', 0, 4)}}`, 4),
    /"a" twice/,
  ],
  [
    'safetensors',
    'an escaped name twice',
    safetensors(`{"a":${tensor('[1]', 0, 4)},"\\u0061":${tensor('[1]', 0, 4)}}`, 4),
    /"a" twice/,
  ],
  ['safetensors', 'objects inside each other, 5000 deep', safetensors(nested, 0), /a: expected the keys|JSON/],
  ['safetensors', 'metadata inside metadata', safetensors(`{"__metadata__":{"a":${nested}}}`, 0), /JSON/],
  ['gguf', '2^63 tensors', gguf(noValues, 0n, [], 2 ** 63), /below 2\^53/],
  ['gguf', 'a billion tensors', gguf(noValues, 0n, [], 1e9), /at most \d+, for which the file has room/],
  ['gguf', '2^64 - 1 metadata values', gguf(noValues, 2n ** 64n - 1n), /below 2\^53/],
  ['gguf', 'a key of 2^40 bytes', gguf(Buffer.from([0, 0, 0, 0, 0, 1, 0, 0]), 1n), /length of a metadata key/],
  [
    'gguf',
    'a string of 2^31 bytes',
    gguf(value('a', ...word(8), 0, 0, 0, 128, 0, 0, 0, 0), 1n),
    /length of a metadata value/,
  ],
  [
    'gguf',
    'arrays inside arrays',
    gguf(value('a', ...word(9), ...word(9), ...long(1), ...word(9), ...long(1)), 1n),
    /array of arrays/,
  ],
  [
    'gguf',
    'an array of 2^40 strings',
    gguf(value('a', ...word(9), ...word(8), 0, 0, 0, 0, 0, 1, 0, 0), 1n),
    /length of a/,
  ],
  ['gguf', 'a key twice', gguf(Buffer.concat([value('a', ...word(0), 1), value('a', ...word(0), 1)]), 2n), /"a" twice/],
  ['gguf', 'an alignment of 0', gguf(alignment(0), 1n), /power of two/],
  ['gguf', 'an alignment of 2^31', gguf(alignment(2 ** 31), 1n), /power of two/],
  ['gguf', 'a shape whose product overflows', gguf(noValues, 0n, [{ inner: [2n ** 32n, 2n ** 32n] }]), /shape of a/],
  ['gguf', 'a dimension of 0', gguf(noValues, 0n, [{ inner: [0n] }]), /shape of a/],
  ['gguf', 'five dimensions', gguf(noValues, 0n, [{ inner: [1n, 1n, 1n, 1n, 1n] }]), /rank of a/],
  ['gguf', 'half a block', gguf(noValues, 0n, [{ inner: [128n], type: 12 }]), /multiple of 256/],
  ['gguf', 'a type that does not exist', gguf(noValues, 0n, [{ inner: [1n], type: 4 }]), /type number 4/],
  [
    'gguf',
    'tensors that overlap',
    gguf(noValues, 0n, [{ inner: [12n] }, { inner: [1n], offset: 32n }]),
    /share no byte/,
  ],
  ['gguf', 'one range twice', gguf(noValues, 0n, [{ inner: [8n] }, { inner: [8n] }]), /share no byte/],
  [
    'gguf',
    'an offset that wraps around',
    gguf(noValues, 0n, [{ inner: [8n], offset: 2n ** 64n - 32n }]),
    /below 2\^53/,
  ],
  ['gguf', 'data behind the end', gguf(noValues, 0n, [{ inner: [8n], offset: 64n }]), /truncated/],
]

for (const [kind, what, bytes, about] of hostile)
  test(`refused: ${kind} with ${what}`, async (t) => {
    const path = join(folder, `${what.replaceAll(/\W/g, '_')}.${kind}`)
    writeFileSync(path, bytes)
    await refused(t, kind, path, about)
  })

test('safetensors and GGUF cut at every 4 kB are refused', async (t) => {
  const model = await tinyModel()
  const gguf = join(folder, 'whole.gguf')
  await exportGguf(model, gguf, { type: 'f32' })
  await model.dispose()
  const files = { gguf, safetensors: join(await tinyModelFolder(), 'model.safetensors') } as const
  for (const kind of ['safetensors', 'gguf'] as const) {
    const path = join(folder, `cut.${kind}`)
    await copyFile(files[kind], path)
    const { size } = await stat(path)
    t.true(size > 100_000)
    for (let length = Math.floor((size - 1) / 4096) * 4096; length >= 0; length -= 4096) {
      truncateSync(path, length)
      await refused(t, kind, path, /expected/)
    }
  }
})

test('an adapter of another base model is refused', async (t) => {
  const model = await tinyModel()
  const adapter = await model.attach(lora({ r: 2, target_modules: ['q_proj', 'down_proj'] }))
  const path = join(folder, 'adapter')
  await adapter.save(path)
  await model.dispose()
  const other = await loadModel(await otherModel())
  const error = await t.throwsAsync(other.loadAdapter(path), { instanceOf: HeddleError, code: 'ERR_HEDDLE_FORMAT' })
  t.true((error as HeddleError).place.startsWith(path))
  await other.dispose()
})

/** A Llama of one layer with a tokenizer, so that the second layer of the adapter has no module. */
async function otherModel(): Promise<string> {
  const tokenizer = await tinyModelFolder()
  const target = join(folder, 'other')
  await cp(golden('tiny-llama-llama3'), target, { recursive: true })
  await copyFile(join(tokenizer, 'tokenizer.json'), join(target, 'tokenizer.json'))
  return target
}
