/** JSON files: one object per line, or one array of objects; never more of them in memory than one row. */
import { stat } from 'node:fs/promises'
import { type DataFile, fileBytes, parsedRow, type ReaderOptions, type ReadResult, tooLong } from './reader.js'

const lineFeed = 0x0a
const quote = 0x22
const backslash = 0x5c
const comma = 0x2c
const [openBracket, closeBracket] = [0x5b, 0x5d]
const [openBrace, closeBrace] = [0x7b, 0x7d]
const isSpace = (byte: number): boolean => byte === 0x20 || (byte >= 0x09 && byte <= 0x0d)
const byteOrderMark = Buffer.of(0xef, 0xbb, 0xbf)

/** JSONL and NDJSON; a file whose first character is `[` is read as one array. */
export async function* readJson(file: DataFile, options: ReaderOptions): AsyncGenerator<ReadResult> {
  const { size } = await stat(file.path)
  const chunks = withoutMark(fileBytes(file, size, options.onShare))
  const first = await firstText(chunks)
  if (!first) return
  const rest = joined(first, chunks)
  yield* first[first.findIndex((byte) => !isSpace(byte))] === openBracket
    ? arrayRows(rest, options.maxRowBytes)
    : lineRows(rest, options.maxRowBytes)
}

async function* withoutMark(chunks: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  let isFirst = true
  for await (const chunk of chunks) {
    yield isFirst && chunk.subarray(0, 3).equals(byteOrderMark) ? chunk.subarray(3) : chunk
    isFirst = false
  }
}

/** The chunk that holds the first byte that is no white space, with the line feeds of those before it. */
async function firstText(chunks: AsyncGenerator<Buffer>): Promise<Buffer | undefined> {
  let blank = 0
  for (let next = await chunks.next(); !next.done; next = await chunks.next()) {
    if (next.value.some((byte) => !isSpace(byte)))
      return blank === 0 ? next.value : Buffer.concat([Buffer.alloc(blank, lineFeed), next.value])
    blank += countLines(next.value)
  }
  return undefined
}

async function* joined(first: Buffer, rest: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  yield first
  yield* rest
}

/** The lines that are not blank. */
async function* lineRows(chunks: AsyncIterable<Buffer>, maxRowBytes: number): AsyncGenerator<ReadResult> {
  const held = new HeldBytes(maxRowBytes)
  let line = 1
  for await (const chunk of chunks) {
    let start = 0
    for (let end = chunk.indexOf(lineFeed); end >= 0; end = chunk.indexOf(lineFeed, start)) {
      held.push(chunk.subarray(start, end))
      const found = takeRow(held, line)
      if (found) yield found
      line += 1
      start = end + 1
    }
    held.push(chunk.subarray(start))
  }
  const last = takeRow(held, line)
  if (last) yield last
}

function takeRow(held: HeldBytes, line: number): ReadResult | undefined {
  const { text, bytes, limit } = held.take()
  if (text === undefined) return { row: tooLong(line, limit), bytes: 0 }
  const trimmed = text.trim()
  return trimmed === '' ? undefined : { row: parsedRow(line, trimmed), bytes }
}

/** The elements of an array, told apart by brackets and quotes alone; `JSON.parse` judges them. */
async function* arrayRows(chunks: AsyncIterable<Buffer>, maxRowBytes: number): AsyncGenerator<ReadResult> {
  const held = new HeldBytes(maxRowBytes)
  let [depth, inString, isEscaped, isEmpty, isOpen] = [0, false, false, true, true]
  let [line, rowLine] = [1, 1]
  for await (const chunk of chunks) {
    let start = 0
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at]!
      if (byte === lineFeed) line += 1
      if (inString) {
        if (isEscaped) isEscaped = false
        else if (byte === backslash) isEscaped = true
        else if (byte === quote) inString = false
        continue
      }
      if (isSpace(byte)) continue
      const endsElement = depth === 1 && (byte === comma || byte === closeBracket)
      if (endsElement) {
        held.push(chunk.subarray(start, at))
        const found = takeRow(held, rowLine)
        if (found) yield found
        start = at + 1
        isEmpty = true
      } else if (depth === 0) {
        if (!isOpen) {
          yield { row: { line, reason: 'the array has ended before; what follows was not read' }, bytes: 0 }
          return
        }
        isOpen = false
        start = at + 1
      } else if (isEmpty) {
        rowLine = line
        isEmpty = false
      }
      if (byte === quote) inString = true
      else if (byte === openBracket || byte === openBrace) depth += 1
      else if (byte === closeBracket || byte === closeBrace) depth -= 1
    }
    if (depth > 0) held.push(chunk.subarray(start))
  }
  if (depth === 0) return
  held.take()
  yield { row: { line: rowLine, reason: 'the file ends inside the array' }, bytes: 0 }
}

/** Bytes of a row as they come; what exceeds the limit is counted and dropped. */
class HeldBytes {
  readonly #limit: number
  #parts: Buffer[] = []
  #bytes = 0

  constructor(limit: number) {
    this.#limit = limit
  }

  push(part: Buffer): void {
    this.#bytes += part.length
    if (part.length > 0 && this.#bytes <= this.#limit) this.#parts.push(part)
  }

  /** The text, unless it was too long. */
  take(): { readonly text: string | undefined; readonly bytes: number; readonly limit: number } {
    const isTooLong = this.#bytes > this.#limit
    const text = isTooLong ? undefined : Buffer.concat(this.#parts).toString('utf8')
    const result = { text, bytes: this.#bytes, limit: this.#limit }
    this.#parts = []
    this.#bytes = 0
    return result
  }
}

function countLines(bytes: Buffer): number {
  let count = 0
  for (const byte of bytes) if (byte === lineFeed) count += 1
  return count
}
