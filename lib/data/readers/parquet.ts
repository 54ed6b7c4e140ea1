/** Parquet files, one row group in memory at a time and only the columns that are wanted. */
import { type FileMetaData, parquetMetadataAsync, parquetReadObjects, parquetSchema } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import { HeddleError } from '../../errors.js'
import { formatError, openBlockingSource } from '../../formats/byte_source.js'
import type { DataFile, ReaderOptions, ReadResult, ReadRow } from './reader.js'

/** What the chosen columns of a row group may hold; beyond it is no file that was written to be read by others. */
const maxGroupBytes = 2 ** 30

/** Rows are counted from 1. Blocks the thread while a row group is decoded. */
export async function* readParquet(
  { path, isCompressed }: DataFile,
  options: ReaderOptions,
): AsyncGenerator<ReadResult> {
  if (isCompressed) throw formatError(path, 'a Parquet file, which has compression inside', 'a gzip-compressed one')
  const source = openBlockingSource(path)
  try {
    const file = {
      byteLength: source.size,
      slice: (start: number, end = source.size) => source.read(start, end - start),
    }
    const metadata = await decoding(path, 'its metadata', () => parquetMetadataAsync(file))
    const columns = wantedColumns(metadata, options.columns)
    let rowStart = 0
    for (const [index, group] of metadata.row_groups.entries()) {
      const rowEnd = rowStart + Number(group.num_rows)
      const place = `row group ${index + 1}`
      checkGroup(`${path}: ${place}`, group, columns)
      const rows = await decoding(path, place, () =>
        parquetReadObjects({ file, metadata, compressors, rowStart, rowEnd, ...(columns ? { columns } : {}) }),
      )
      for (const [offset, value] of rows.entries()) yield checkedRow(rowStart + offset + 1, value, options.maxRowBytes)
      rowStart = rowEnd
      options.onShare(rowEnd / Math.max(1, Number(metadata.num_rows)))
    }
  } finally {
    source.close()
  }
}

/** Undefined for all of them: also where none of the wanted ones is there, so that the user sees what is. */
function wantedColumns(metadata: FileMetaData, wanted: readonly string[] | undefined): string[] | undefined {
  const names = parquetSchema(metadata).children.map(({ element }) => element.name)
  const found = wanted && names.filter((name) => wanted.includes(name))
  return found?.length ? found : undefined
}

function checkGroup(place: string, group: FileMetaData['row_groups'][number], columns: string[] | undefined): void {
  const bytes = group.columns.reduce((sum, { meta_data: data }) => {
    const isWanted = data && (!columns || columns.includes(data.path_in_schema[0]!))
    return isWanted ? sum + Number(data.total_uncompressed_size) : sum
  }, 0)
  if (bytes > maxGroupBytes)
    throw formatError(place, `at most ${maxGroupBytes} bytes`, `${bytes}`, 'Write it again with smaller row groups')
}

function checkedRow(line: number, given: Record<string, unknown>, maxRowBytes: number): ReadResult {
  const value = plain(given) as Record<string, unknown>
  const bytes = weight(value)
  const row: ReadRow =
    bytes > maxRowBytes ? { line, reason: `a row of more than ${maxRowBytes} bytes` } : { line, value }
  return { row, bytes }
}

/** Integers of 64 bits as the numbers that JSON would have. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value)
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value) || value instanceof Date) return value
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, plain(each)]))
}

function weight(value: unknown): number {
  if (typeof value === 'string') return value.length
  if (ArrayBuffer.isView(value)) return value.byteLength
  if (typeof value !== 'object' || value === null) return 8
  return Object.values(value).reduce((sum: number, each) => sum + weight(each), 0)
}

/** The library's failures say what broke, but not where. */
async function decoding<T>(path: string, place: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    if (cause instanceof HeddleError) throw cause
    throw formatError(
      path,
      `a Parquet file with a readable ${place}`,
      cause instanceof Error ? cause.message : `${cause}`,
    )
  }
}
