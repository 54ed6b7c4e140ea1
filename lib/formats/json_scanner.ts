/**
 * A forward reader of JSON bytes that gives the event loop its turns, for headers too large for one `JSON.parse`.
 * It also sees what `JSON.parse` hides: a key that occurs twice.
 */
import type { ByteCursor } from './byte_source.js'

/** Bounds on single values, so that none can hold the event loop. */
const maxStringBytes = 1 << 22
const maxArrayLength = 64

const quote = 0x22
const backslash = 0x5c
const isSpace = (byte: number) => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09
const isDigit = (byte: number) => byte >= 0x30 && byte <= 0x39

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** Reads values of the few kinds that file headers are made of. */
export class JsonScanner {
  readonly #cursor: ByteCursor
  #peeked: number | undefined

  constructor(cursor: ByteCursor) {
    this.#cursor = cursor
  }

  /** The next byte that is not white space, without taking it; undefined at the end. */
  peek(): string | undefined {
    while (this.#peeked === undefined && this.#cursor.remaining > 0) {
      const byte = this.#cursor.u8('JSON')
      if (!isSpace(byte)) this.#peeked = byte
    }
    return this.#peeked === undefined ? undefined : String.fromCharCode(this.#peeked)
  }

  /** Takes `token` when it comes next. */
  accept(token: string): boolean {
    if (this.peek() !== token) return false
    this.#peeked = undefined
    return true
  }

  expect(token: string): void {
    if (!this.accept(token)) throw this.error(`"${token}"`)
  }

  string(): string {
    this.expect('"')
    const bytes: number[] = []
    let escaped = false
    for (let byte = this.#cursor.u8('JSON string'); byte !== quote; byte = this.#cursor.u8('JSON string')) {
      if (bytes.length >= maxStringBytes) throw this.error(`a string below ${maxStringBytes} bytes`, 'a longer one')
      bytes.push(byte)
      if (byte === backslash) {
        escaped = true
        bytes.push(this.#cursor.u8('JSON string'))
      }
    }
    try {
      const text = utf8.decode(Uint8Array.from(bytes))
      return escaped ? (JSON.parse(`"${text}"`) as string) : text
    } catch {
      throw this.error('a string of valid UTF-8 and escapes')
    }
  }

  /** A non-negative integer. */
  count(): number {
    this.peek()
    let text = ''
    while (this.#peeked !== undefined && isDigit(this.#peeked) && text.length <= 16) {
      text += String.fromCharCode(this.#peeked)
      this.#peeked = this.#cursor.remaining > 0 ? this.#cursor.u8('JSON number') : undefined
    }
    if (this.#peeked !== undefined && isSpace(this.#peeked)) this.#peeked = undefined
    const value = Number(text)
    if (text === '' || !Number.isSafeInteger(value)) throw this.error('an integer from 0 to 2^53 - 1')
    return value
  }

  counts(): number[] {
    const values: number[] = []
    this.expect('[')
    if (this.accept(']')) return values
    do {
      if (values.length === maxArrayLength) throw this.error(`at most ${maxArrayLength} numbers`, 'more')
      values.push(this.count())
    } while (this.accept(','))
    this.expect(']')
    return values
  }

  /** Yields the keys of an object; the caller reads each value before asking for the next key. */
  *keys(): Generator<string> {
    this.expect('{')
    const seen = new Set<string>()
    if (this.accept('}')) return
    do {
      const key = this.string()
      if (seen.has(key)) throw this.error('every name once', `"${key}" twice`)
      seen.add(key)
      this.expect(':')
      yield key
    } while (this.accept(','))
    this.expect('}')
  }

  error(expected: string, got?: string) {
    const next = this.#peeked === undefined ? 'the end of the header' : `"${String.fromCharCode(this.#peeked)}"`
    return this.#cursor.error('the JSON header', expected, got ?? next)
  }
}
