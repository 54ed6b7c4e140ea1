/** Writes fuzz/seeds: small files that are well formed, one for each thing that a format can hold. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { encodeGgufValues } from '../lib/formats/gguf_writer.js'
import { encode, pointwise } from '../test/support/instruction_list.js'

const seeds = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'fuzz', 'seeds')

function put(format: string, name: string, bytes: Uint8Array): void {
  mkdirSync(join(seeds, format), { recursive: true })
  writeFileSync(join(seeds, format, name), bytes)
}

const words = (...values: readonly bigint[]): Buffer => Buffer.from(BigUint64Array.from(values).buffer)

function safetensors(header: string, dataBytes: number): Uint8Array {
  const text = Buffer.from(header)
  return Buffer.concat([words(BigInt(text.length)), text, Buffer.alloc(dataBytes)])
}

put('safetensors', 'empty', safetensors('{}', 0))
put(
  'safetensors',
  'two',
  safetensors(
    '{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b\\u00e9":{"shape":[], "dtype":"BF16","data_offsets":[8,10]}}  ',
    10,
  ),
)

interface GgufTensor {
  readonly name: string
  readonly inner: readonly number[]
  readonly type: number
  readonly offset: number
}

function gguf(
  values: Parameters<typeof encodeGgufValues>[0],
  tensors: readonly GgufTensor[],
  dataBytes: number,
): Uint8Array {
  const metadata = encodeGgufValues(values)
  const text = (value: string) => Buffer.concat([words(BigInt(value.length)), Buffer.from(value)])
  const u32 = (value: number) => Buffer.from(Uint32Array.of(value).buffer)
  const infos = tensors.map(({ name, inner, type, offset }) =>
    Buffer.concat([text(name), u32(inner.length), words(...inner.map(BigInt)), u32(type), words(BigInt(offset))]),
  )
  const counts = words(BigInt(tensors.length), BigInt(metadata.count))
  const head = Buffer.concat([u32(0x46554747), u32(3), counts, metadata.bytes, ...infos])
  return Buffer.concat([head, Buffer.alloc(-head.length & 31), Buffer.alloc(dataBytes)])
}

put('gguf', 'empty', gguf({}, [], 0))
put(
  'gguf',
  'values',
  gguf(
    {
      'general.architecture': { type: 'string', value: 'llama' },
      'general.alignment': { type: 'u32', value: 64 },
      n: { type: 'i32', value: -1 },
      f: { type: 'f32', value: 1e-5 },
      b: { type: 'bool', value: true },
      s: { type: 'array', of: 'string', values: ['warp', 'weft'] },
      a: { type: 'array', of: 'i32', values: [1, 2, 3] },
    },
    [],
    0,
  ),
)
put(
  'gguf',
  'tensors',
  gguf(
    {},
    [
      { name: 'w', inner: [32, 2], type: 8, offset: 0 },
      { name: 'k', inner: [256], type: 12, offset: 96 },
      { name: 'n', inner: [3], type: 0, offset: 256 },
    ],
    288,
  ),
)

const vector = { kind: 'input', shape: [4], index: 0 } as const
put('instructions', 'empty', encode({ buffers: [], instructions: [] }))
put(
  'instructions',
  'add',
  encode({
    buffers: [vector, { ...vector, index: 1 }, { kind: 'temp', shape: [4] }, { kind: 'output', shape: [4], index: 0 }],
    instructions: [pointwise('add', [0, 1], 2), pointwise('mul', [2, 0], 3)],
  }),
)
put(
  'instructions',
  'attributes',
  encode({
    buffers: [vector, { kind: 'output', shape: [2, 2], index: 0 }, { kind: 'alias', shape: [4], index: 0 }],
    instructions: [
      {
        op: 'any',
        inputs: [0, null],
        outputs: [1],
        attributes: [
          ['text', 'f32'],
          ['number', 0.5],
          ['numbers', [1, 2]],
          ['texts', ['a', 'b']],
        ],
      },
    ],
  }),
)
