/** GGUF version 3 from values and tensors; the numbers of the tensors are streamed by the native core. */
import { addon, type TensorFileEntry } from '../native.js'

/** A metadata value with its type in the file. */
export type GgufWritable =
  | { readonly type: 'u32' | 'i32' | 'f32'; readonly value: number }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'string'; readonly value: string }
  | { readonly type: 'array'; readonly of: 'i32' | 'f32'; readonly values: readonly number[] }
  | { readonly type: 'array'; readonly of: 'string'; readonly values: readonly string[] }

/** Encoded metadata. */
export interface GgufBlock {
  readonly count: number
  readonly bytes: Uint8Array
}

/** A tensor to write, under its name in the file. */
export type GgufEntry = TensorFileEntry

const alignment = 32
const typeCodes = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const
const tensorTypes = { f32: 0, f16: 1, q8_0: 8, bf16: 30 } as const
const blocks = { f32: [1, 4], f16: [1, 2], bf16: [1, 2], q8_0: [32, 34] } as const

/** Encodes values by key. Blocking: long arrays are for worker threads. */
export function encodeGgufValues(values: Readonly<Record<string, GgufWritable>>): GgufBlock {
  const bytes = new ByteWriter()
  for (const [key, value] of Object.entries(values)) {
    bytes.text(key)
    bytes.u32(typeCodes[value.type])
    if (value.type !== 'array') bytes.scalar(value)
    else {
      bytes.u32(typeCodes[value.of])
      bytes.u64(value.values.length)
      if (value.of === 'string') for (const text of value.values) bytes.text(text)
      else for (const number of value.values) bytes.scalar({ type: value.of, value: number })
    }
  }
  return { count: Object.keys(values).length, bytes: bytes.done() }
}

/**
 * Writes a file that is whole or not there. Needs no more memory than a few rows of a tensor at a time.
 * @throws ERR_HEDDLE_IO, ERR_HEDDLE_ARGUMENT on a number that cannot be quantised
 */
export async function writeGguf(
  path: string,
  metadata: readonly GgufBlock[],
  entries: readonly GgufEntry[],
): Promise<void> {
  const head = new ByteWriter()
  head.u32(0x46554747)
  head.u32(3)
  head.u64(entries.length)
  head.u64(metadata.reduce((sum, { count }) => sum + count, 0))
  for (const { bytes } of metadata) head.raw(bytes)
  let offset = 0
  for (const { name, tensor, encoding } of entries) {
    head.text(name)
    head.u32(tensor.shape.length)
    for (const size of tensor.shape.toReversed()) head.u64(size)
    head.u32(tensorTypes[encoding])
    head.u64(offset)
    const [elements, bytes] = blocks[encoding]
    const size = (tensor.shape.reduce((product, each) => product * each, 1) / elements) * bytes
    offset += Math.ceil(size / alignment) * alignment
  }
  await addon.writeTensorFile(path, head.done(), alignment, entries)
}

/** Little-endian bytes that grow. */
class ByteWriter {
  #view = new DataView(new ArrayBuffer(1 << 12))
  #length = 0

  u32(value: number): void {
    const at = this.#grow(4)
    this.#view.setUint32(at, value, true)
  }

  u64(value: number): void {
    const at = this.#grow(8)
    this.#view.setBigUint64(at, BigInt(value), true)
  }

  scalar({ type, value }: Exclude<GgufWritable, { readonly type: 'array' }>): void {
    if (type === 'string') this.text(value)
    else if (type === 'bool') {
      const at = this.#grow(1)
      this.#view.setUint8(at, value ? 1 : 0)
    } else {
      const at = this.#grow(4)
      if (type === 'f32') this.#view.setFloat32(at, value, true)
      else if (type === 'i32') this.#view.setInt32(at, value, true)
      else this.#view.setUint32(at, value, true)
    }
  }

  text(value: string): void {
    const bytes = Buffer.from(value)
    this.u64(bytes.length)
    this.raw(bytes)
  }

  raw(bytes: Uint8Array): void {
    const at = this.#grow(bytes.length)
    new Uint8Array(this.#view.buffer).set(bytes, at)
  }

  done(): Uint8Array {
    return new Uint8Array(this.#view.buffer, 0, this.#length)
  }

  /** Makes room for more bytes; returns where they start. */
  #grow(size: number): number {
    const start = this.#length
    this.#length += size
    if (this.#length > this.#view.byteLength) {
      const larger = new Uint8Array(2 * this.#length)
      larger.set(new Uint8Array(this.#view.buffer, 0, start))
      this.#view = new DataView(larger.buffer)
    }
    return start
  }
}
