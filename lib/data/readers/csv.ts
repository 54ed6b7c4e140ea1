/**
 * Tables with a header line, comma- or tab-separated, quoted as RFC 4180 says; every value is a string. A quote inside
 * an unquoted value, or after a closing quote, stands for itself.
 */
import { stat } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type CsvError, type Info, type Parser, parse } from 'csv-parse'
import { formatError } from '../../formats/byte_source.js'
import {
  type DataFile,
  fileBytes,
  type Reader,
  type ReaderOptions,
  type ReadResult,
  type ReadRow,
  tooLong,
} from './reader.js'

export const readCsv: Reader = (file, options) => readTable(file, ',', options)
export const readTsv: Reader = (file, options) => readTable(file, '\t', options)

interface Line {
  readonly record: readonly string[]
  readonly info: Info
}

/** Bytes without the end of a row after which reading stops, so that a quote that is never closed takes no memory. */
const guardBytes = (maxRowBytes: number): number => Math.max(4 * maxRowBytes, 1 << 20)

async function* readTable(file: DataFile, delimiter: string, options: ReaderOptions): AsyncGenerator<ReadResult> {
  const { size } = await stat(file.path)
  const skipped: ReadRow[] = []
  const parser = parse({
    bom: true,
    delimiter,
    info: true,
    relax_column_count: true,
    relax_quotes: true,
    skip_empty_lines: true,
    skip_records_with_error: true,
    on_skip(error) {
      if (error) skipped.push({ line: Number(error.lines), reason: reasonOf(error) })
      return undefined
    },
  })
  const bytes = guarded(fileBytes(file, size, options.onShare), parser, guardBytes(options.maxRowBytes))
  const feeding = pipeline(Readable.from(bytes), parser)
  // The parser's iterator throws the same.
  feeding.catch(() => {})
  let header: readonly string[] | undefined
  for await (const { record, info } of parser as AsyncIterable<Line>) {
    for (const row of skipped.splice(0)) yield { row, bytes: 0 }
    if (header) yield checkedRow(header, record, { line: startOf(record, info), maxRowBytes: options.maxRowBytes })
    else header = checkedHeader(record, file.path)
  }
  for (const row of skipped) yield { row, bytes: 0 }
}

/** Ends early when the parser takes more and more without finding the end of a row. */
async function* guarded(chunks: AsyncGenerator<Buffer>, { info }: Parser, limit: number): AsyncGenerator<Buffer> {
  let [records, bytes] = [0, 0]
  for await (const chunk of chunks) {
    if (info.records !== records) [records, bytes] = [info.records, 0]
    if (bytes > limit) return
    bytes += chunk.length
    yield chunk
  }
}

interface Place {
  readonly line: number
  readonly maxRowBytes: number
}

function checkedRow(header: readonly string[], record: readonly string[], { line, maxRowBytes }: Place): ReadResult {
  const bytes = record.reduce((sum, value) => sum + value.length, 0)
  if (bytes > maxRowBytes) return { row: tooLong(line, maxRowBytes), bytes: 0 }
  if (record.length === header.length)
    return { row: { line, value: Object.fromEntries(header.map((name, index) => [name, record[index]])) }, bytes }
  const reason = `expected ${header.length} columns as in the header, got ${record.length}`
  return { row: { line, reason }, bytes: 0 }
}

function checkedHeader(names: readonly string[], path: string): readonly string[] {
  const again = names.find((name, index) => names.indexOf(name) !== index)
  if (again !== undefined) throw formatError(`${path}:1`, 'a header with distinct names', `"${again}" twice`)
  return names
}

/** The parser counts up to the end of a record, which may span lines. */
const startOf = (record: readonly string[], { lines }: Info): number =>
  lines - record.reduce((count, value) => count + value.split('\n').length - 1, 0)

const reasonOf = ({ code, message }: CsvError): string =>
  code === 'CSV_QUOTE_NOT_CLOSED' ? 'a quote that is never closed; what follows was not read' : message
