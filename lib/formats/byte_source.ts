/** Bounds-checked little-endian reading of files that are not trusted, in slices that never hold the event loop. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { HeddleError } from '../errors.js'

/** Random access to the bytes of a file. */
export interface ByteSource {
  readonly path: string
  readonly size: number
  /** The bytes `[offset, offset + length)`, which lie inside the file. */
  read(offset: number, length: number): ArrayBuffer
}

/** The one error that a file which breaks its format's rules gives. */
export const formatError = (place: string, expected: string, got: string, hint?: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got, ...(hint === undefined ? {} : { hint }) })

/** A byte source over a file handle or buffer that knows no path, such as the native memory map. */
export const sourceOf = (path: string, file: Omit<ByteSource, 'path'>): ByteSource => ({
  path,
  size: file.size,
  read: (offset, length) => file.read(offset, length),
})

/** A byte source that reads with blocking calls: for worker threads, never for the main thread. */
export function openBlockingSource(path: string): ByteSource & { close(): void } {
  const handle = openSync(path, 'r')
  return {
    path,
    size: fstatSync(handle).size,
    read(offset, length) {
      const bytes = new Uint8Array(length)
      for (let done = 0; done < length; ) {
        const count = readSync(handle, bytes, done, length - done, offset + done)
        if (count === 0) throw formatError(path, `${length} bytes at offset ${offset}`, 'the end of the file')
        done += count
      }
      return bytes.buffer
    },
    close: () => closeSync(handle),
  }
}

const sliceMilliseconds = 4

/** Divides a long loop into slices: `if (pacer.due()) await pacer.turn()`. */
export class Pacer {
  readonly #stride: number
  #start = performance.now()
  #steps = 0

  /** @param stride steps between two looks at the clock: many for cheap steps, 1 for dear ones */
  constructor(stride = 256) {
    this.#stride = stride
  }

  due(): boolean {
    return ++this.#steps % this.#stride === 0 && performance.now() - this.#start > sliceMilliseconds
  }

  async turn(): Promise<void> {
    await nextTurn()
    this.#start = performance.now()
  }
}

const windowBytes = 1 << 18
const utf8 = new TextDecoder('utf-8', { fatal: true })

/** Reads forward through a {@link ByteSource}; every read past the end is ERR_HEDDLE_FORMAT. */
export class ByteCursor {
  readonly source: ByteSource
  readonly #end: number
  #position: number
  #window = new DataView(new ArrayBuffer(0))
  #windowStart = 0

  constructor(source: ByteSource, start = 0, end = source.size) {
    this.source = source
    this.#position = start
    this.#end = end
  }

  get position(): number {
    return this.#position
  }

  /** Bytes between the position and the end. */
  get remaining(): number {
    return this.#end - this.#position
  }

  u8(what: string): number {
    const at = this.#take(1, what)
    return this.#window.getUint8(at)
  }

  i8(what: string): number {
    const at = this.#take(1, what)
    return this.#window.getInt8(at)
  }

  u16(what: string): number {
    const at = this.#take(2, what)
    return this.#window.getUint16(at, true)
  }

  i16(what: string): number {
    const at = this.#take(2, what)
    return this.#window.getInt16(at, true)
  }

  u32(what: string): number {
    const at = this.#take(4, what)
    return this.#window.getUint32(at, true)
  }

  i32(what: string): number {
    const at = this.#take(4, what)
    return this.#window.getInt32(at, true)
  }

  f32(what: string): number {
    const at = this.#take(4, what)
    return this.#window.getFloat32(at, true)
  }

  f64(what: string): number {
    const at = this.#take(8, what)
    return this.#window.getFloat64(at, true)
  }

  /** An unsigned 64-bit count or offset; beyond 2^53 no file can be meant and the value is refused. */
  u64(what: string): number {
    const at = this.#take(8, what)
    const value = this.#window.getUint32(at, true) + this.#window.getUint32(at + 4, true) * 2 ** 32
    if (!Number.isSafeInteger(value)) throw this.error(what, 'a value below 2^53', `${value}`)
    return value
  }

  i64(what: string): number {
    const at = this.#take(8, what)
    const value = Number(this.#window.getBigInt64(at, true))
    if (!Number.isSafeInteger(value)) throw this.error(what, 'a value between -2^53 and 2^53', `${value}`)
    return value
  }

  /** `length` bytes as a view that is valid until the next read. */
  bytes(length: number, what: string): Uint8Array {
    const at = this.#take(length, what)
    return new Uint8Array(this.#window.buffer, at, length)
  }

  /** `length` bytes as UTF-8 text. */
  text(length: number, what: string): string {
    const start = this.#position
    try {
      return utf8.decode(this.bytes(length, what))
    } catch (cause) {
      if (cause instanceof HeddleError) throw cause
      throw formatError(this.source.path, `UTF-8 text for ${what}`, `other bytes at offset ${start}`)
    }
  }

  skip(length: number, what: string): void {
    this.#check(length, what)
    this.#position += length
  }

  error(what: string, expected: string, got: string): HeddleError {
    return formatError(this.source.path, `${expected} for ${what}`, `${got} before offset ${this.#position}`)
  }

  /** Claims `length` bytes; returns where they start inside the window, which this may move: look at it afterwards. */
  #take(length: number, what: string): number {
    this.#check(length, what)
    const start = this.#position
    if (start < this.#windowStart || start + length > this.#windowStart + this.#window.byteLength) {
      const size = Math.min(this.#end - start, Math.max(length, windowBytes))
      this.#window = new DataView(this.source.read(start, size))
      this.#windowStart = start
    }
    this.#position += length
    return start - this.#windowStart
  }

  #check(length: number, what: string): void {
    if (length > this.remaining)
      throw formatError(
        this.source.path,
        `${length} bytes at offset ${this.#position} for ${what}`,
        `only ${this.remaining} bytes left: the file is truncated or damaged`,
      )
  }
}
