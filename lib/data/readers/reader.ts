/** What every reader of a data format gives, and how the bytes of a file come to it. */
import { createReadStream } from 'node:fs'
import type { Readable } from 'node:stream'
import { createGunzip } from 'node:zlib'
import type { Row } from '../rows.js'

/** A row, or why there is none at this line. */
export type ReadRow = Row | { readonly line: number; readonly reason: string }

/** One row with what reading it took. */
export interface ReadResult {
  readonly row: ReadRow
  /** Rough size of the row in memory. */
  readonly bytes: number
}

/** A file of a known format. */
export interface DataFile {
  readonly path: string
  readonly isCompressed: boolean
}

export interface ReaderOptions {
  /** A row above this is skipped. */
  readonly maxRowBytes: number
  /** The columns that are wanted, where a format can leave others unread. */
  readonly columns: readonly string[] | undefined
  /** Called with the share of the file that has been read. */
  onShare(share: number): void
}

/** Reads a file row by row; everything that is wrong with a row comes out as a reason. */
export type Reader = (file: DataFile, options: ReaderOptions) => AsyncGenerator<ReadResult>

/** A file that breaks off or cannot be unpacked: what was read before is good. */
export class DamagedFile extends Error {}

/** The file's bytes, unpacked; `size` is that of the file itself. */
export async function* fileBytes(
  { path, isCompressed }: DataFile,
  size: number,
  onShare: (share: number) => void,
): AsyncGenerator<Buffer> {
  const file = createReadStream(path)
  const bytes: Readable = isCompressed ? unpacked(file) : file
  try {
    for await (const chunk of bytes) {
      yield chunk as Buffer
      onShare(Math.min(1, file.bytesRead / Math.max(1, size)))
    }
  } catch (cause) {
    if (isCompressed && isZlibError(cause)) throw new DamagedFile(`the compressed file is damaged: ${cause.message}`)
    throw cause
  } finally {
    file.destroy()
    bytes.destroy()
  }
}

/** `pipe` hands no failure on. */
function unpacked(file: Readable): Readable {
  const gunzip = createGunzip()
  file.on('error', (error) => gunzip.destroy(error))
  return file.pipe(gunzip)
}

const isZlibError = (cause: unknown): cause is Error =>
  cause instanceof Error && 'code' in cause && String(cause.code).startsWith('Z_')

/** Why a value that was read is no row. */
export function rowOf(line: number, value: unknown): ReadRow {
  if (typeof value === 'object' && value !== null && !Array.isArray(value))
    return { line, value: value as Record<string, unknown> }
  return { line, reason: `expected an object, got ${Array.isArray(value) ? 'an array' : JSON.stringify(value)}` }
}

/** A row of JSON text, or why it is none. */
export function parsedRow(line: number, text: string): ReadRow {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    return { line, reason: `not JSON: ${cause instanceof Error ? cause.message : cause}` }
  }
  return rowOf(line, value)
}

export const tooLong = (line: number, limit: number): ReadRow => ({
  line,
  reason: `a row of more than ${limit} bytes`,
})
