/** Rows of data files of every kind, read in a worker thread so that neither parsing nor unpacking holds the event loop. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError, throwIfAborted } from '../errors.js'
import { fromPlainError, type PlainError } from '../tokenize/protocol.js'
import { iterableBlocks, type RowSettings } from './row_blocks.js'

/** One row of a data file. */
export interface Row {
  /** Line of the file, or number of the row where a format has no lines; from 1. */
  readonly line: number
  readonly value: Readonly<Record<string, unknown>>
  /** True for a piece of a long text that goes on in the next row. */
  readonly goesOn?: boolean
}

/** A row that could not be used. */
export interface SkippedRow {
  readonly file: string
  readonly line: number
  readonly reason: string
}

/** Rows of one file, at most 1024 or, but for its last row, 256 kB. */
export interface RowBlock {
  readonly file: string
  readonly rows: readonly Row[]
  /** What could not be used among these rows. */
  readonly skipped: readonly SkippedRow[]
  /** Share of the source's bytes that has been read, 0 to 1. */
  readonly progress: number
}

/**
 * A data file, a folder or a glob of them, a list of these, or the rows themselves. Files end in `.jsonl`, `.ndjson`,
 * `.json`, `.csv`, `.tsv`, `.parquet`, `.txt` or `.md`; all but Parquet may be compressed (`.jsonl.gz`).
 */
export type RowSource =
  | string
  | readonly string[]
  | AsyncIterable<Readonly<Record<string, unknown>>>
  | Iterable<Readonly<Record<string, unknown>>>

/** Options of {@link openRows}. */
export interface RowOptions {
  /** Columns that are wanted: Parquet leaves the others unread. Default: all. */
  readonly columns?: readonly string[] | undefined
  /** Rows to read at most. Default: all. */
  readonly maxRows?: number | undefined
  /** Longest row in bytes; a longer one is skipped. Default 16 MiB. */
  readonly maxRowBytes?: number
  readonly signal?: AbortSignal | undefined
}

const integer = (most: number) =>
  z
    .int({ error: `an integer from 1 to ${most}` })
    .min(1)
    .max(most)

const schema = z.strictObject({
  columns: z.array(z.string()).readonly().optional(),
  maxRows: integer(2 ** 53 - 1).optional(),
  maxRowBytes: integer(2 ** 28).default(2 ** 24),
  signal: z.custom<AbortSignal>((value) => value instanceof AbortSignal, { error: 'an AbortSignal' }).optional(),
})

/**
 * Reads rows block by block; memory holds a few blocks, never the file. Rows that cannot be read are reported in the
 * blocks' `skipped`, by file and line.
 * @throws ERR_HEDDLE_FORMAT when no row of a file can be read, naming the first problems
 * @throws ERR_HEDDLE_IO when a file is missing or unreadable, ERR_HEDDLE_ARGUMENT for a file of another kind
 * @throws ERR_HEDDLE_ABORTED once the signal is set
 */
export async function* openRows(source: RowSource, options: RowOptions = {}): AsyncGenerator<RowBlock> {
  const { signal, ...settings } = parseConfig('openRows', schema, options)
  const paths = pathsOf(source)
  const blocks = paths ? workerBlocks(paths, settings) : iterableBlocks(source as Iterable<unknown>, settings)
  throwIfAborted(signal, 'openRows')
  for await (const block of blocks) {
    throwIfAborted(signal, 'openRows')
    yield block
  }
}

/** The paths that a source names, if it is not the rows themselves. */
export function pathsOf(source: RowSource): readonly string[] | undefined {
  if (typeof source === 'string') return [source]
  if (Array.isArray(source) && source.length > 0 && source.every((each) => typeof each === 'string')) return source
  return undefined
}

/** What the worker is started with, and what it answers to each request for a block. */
export interface RowsWorkerData {
  readonly paths: readonly string[]
  readonly settings: RowSettings
}
export type RowsWorkerReply = { readonly block: RowBlock | undefined } | { readonly error: PlainError }

async function* workerBlocks(paths: readonly string[], settings: RowSettings): AsyncGenerator<RowBlock> {
  const workerData: RowsWorkerData = { paths, settings }
  const worker = new Worker(new URL('./rows_worker.js', import.meta.url), { workerData })
  try {
    for (;;) {
      const reply = await ask(worker)
      if ('error' in reply) throw fromPlainError(reply.error)
      if (!reply.block) return
      yield reply.block
    }
  } finally {
    await worker.terminate()
  }
}

/** The worker keeps the process alive only while it is asked. */
async function ask(worker: Worker): Promise<RowsWorkerReply> {
  worker.ref()
  worker.postMessage('next')
  try {
    const [reply] = (await once(worker, 'message')) as [RowsWorkerReply]
    return reply
  } catch (cause) {
    const isMemory = cause instanceof Error && 'code' in cause && cause.code === 'ERR_WORKER_OUT_OF_MEMORY'
    throw new HeddleError(isMemory ? 'ERR_HEDDLE_OOM' : 'ERR_HEDDLE_INTERNAL', {
      place: 'openRows',
      expected: 'a running worker',
      got: cause instanceof Error ? cause.message : String(cause),
      cause,
    })
  } finally {
    worker.unref()
  }
}
