/** Rows of files and of iterables in blocks of bounded size. Reading files may block its thread: it belongs in a worker. */
import { HeddleError } from '../errors.js'
import { formatError, Pacer } from '../formats/byte_source.js'
import { DamagedFile, type ReadResult, type ReadRow, rowOf } from './readers/reader.js'
import { type RowFile, rowFiles } from './row_files.js'
import type { Row, RowBlock, SkippedRow } from './rows.js'

/** Options with every default filled in. */
export interface RowSettings {
  readonly columns?: readonly string[] | undefined
  readonly maxRows?: number | undefined
  readonly maxRowBytes: number
}

const [blockRows, blockBytes] = [1024, 1 << 18]

/**
 * The rows of files in order. Every file gives at least one block.
 * @throws ERR_HEDDLE_FORMAT when no row of a file can be used, ERR_HEDDLE_IO, ERR_HEDDLE_ARGUMENT
 */
export async function* fileBlocks(sources: readonly string[], settings: RowSettings): AsyncGenerator<RowBlock> {
  const files = await rowFiles(sources)
  const total = files.reduce((sum, { size }) => sum + size, 0)
  let [before, left] = [0, settings.maxRows ?? Number.POSITIVE_INFINITY]
  for (const file of files) {
    const { path, size } = file
    const progress = (share: number): number => (total === 0 ? 1 : Math.min(1, (before + share * size) / total))
    for await (const block of readFile(file, { ...settings, maxRows: left }, progress)) {
      left -= block.rows.length
      yield block
    }
    if (left <= 0) return
    before += size
    if (size > 0 || files.length > 1) continue
    throw formatError(path, 'at least one row', 'an empty file')
  }
}

async function* readFile(
  file: RowFile,
  { maxRowBytes, columns, maxRows = Number.POSITIVE_INFINITY }: RowSettings,
  progress: (share: number) => number,
): AsyncGenerator<RowBlock> {
  let share = 0
  const onShare = (value: number): void => {
    share = value
  }
  const builder = new BlockBuilder(file.path)
  try {
    for await (const result of readingToDamage(file.reader(file, { maxRowBytes, columns, onShare }))) {
      builder.add(result)
      if (builder.used >= maxRows) break
      if (builder.isFull) yield builder.take(progress(share))
    }
  } catch (cause) {
    throw cause instanceof HeddleError ? cause : readError(file.path, cause)
  }
  if (builder.used === 0 && builder.unusable > 0) throw nothingUsable(file.path, builder)
  yield builder.take(progress(1))
}

/** A file that breaks off is as good as what it gave before, and says where it broke off. */
async function* readingToDamage(rows: AsyncGenerator<ReadResult>): AsyncGenerator<ReadResult> {
  let line = 0
  try {
    for await (const result of rows) {
      line = result.row.line
      yield result
    }
  } catch (cause) {
    if (!(cause instanceof DamagedFile)) throw cause
    yield { row: { line: line + 1, reason: cause.message }, bytes: 0 }
  }
}

/** Rows that are given in code; `line` counts them from 1. */
export async function* iterableBlocks(
  rows: AsyncIterable<unknown> | Iterable<unknown>,
  { maxRows = Number.POSITIVE_INFINITY }: RowSettings,
): AsyncGenerator<RowBlock> {
  const builder = new BlockBuilder('rows')
  const pacer = new Pacer(16)
  let line = 0
  for await (const value of rows) {
    if (builder.used >= maxRows) break
    line += 1
    builder.add({ row: rowOf(line, value), bytes: 0 })
    if (builder.isFull) yield builder.take(0)
    if (pacer.due()) await pacer.turn()
  }
  if (builder.used === 0 && builder.unusable > 0) throw nothingUsable('rows', builder)
  yield builder.take(1)
}

const firstProblems = 3

class BlockBuilder {
  /** Usable and unusable rows so far, those of earlier blocks included. */
  used = 0
  unusable = 0
  /** The first reasons. */
  readonly problems: SkippedRow[] = []
  readonly #file: string
  #rows: Row[] = []
  #skipped: SkippedRow[] = []
  #bytes = 0

  constructor(file: string) {
    this.#file = file
  }

  get isFull(): boolean {
    return this.#rows.length + this.#skipped.length >= blockRows || this.#bytes >= blockBytes
  }

  add({ row, bytes }: { readonly row: ReadRow; readonly bytes: number }): void {
    this.#bytes += bytes
    if ('value' in row) {
      this.used += 1
      this.#rows.push(row)
      return
    }
    const skipped = { file: this.#file, ...row }
    this.unusable += 1
    if (this.problems.length < firstProblems) this.problems.push(skipped)
    this.#skipped.push(skipped)
  }

  take(progress: number): RowBlock {
    const block = { file: this.#file, rows: this.#rows, skipped: this.#skipped, progress }
    this.#rows = []
    this.#skipped = []
    this.#bytes = 0
    return block
  }
}

function nothingUsable(path: string, { unusable, problems }: BlockBuilder): HeddleError {
  const reasons = problems.map(({ line, reason }) => `line ${line}: ${reason}`).join('; ')
  return formatError(
    `${path}:${problems[0]!.line}`,
    'at least one usable row',
    `${unusable} unusable ${unusable === 1 ? 'one' : 'ones'} (${reasons}${unusable > problems.length ? '; …' : ''})`,
  )
}

const readError = (path: string, cause: unknown): HeddleError =>
  new HeddleError('ERR_HEDDLE_IO', {
    place: path,
    expected: 'a readable file',
    got: cause instanceof Error ? cause.message : String(cause),
    cause,
  })
