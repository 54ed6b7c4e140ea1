/**
 * Tokenized data on disk, kept for the next run: a folder per reading, named after a hash of everything that decides
 * its content. It is written beside its place and renamed, and verified before it is used again.
 */
import { createHash, randomUUID } from 'node:crypto'
import { lstat, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { HeddleError } from '../errors.js'
import { formatError } from '../formats/byte_source.js'
import type { RowFile } from './row_files.js'
import type { SkippedRow } from './rows.js'
import {
  FileTokens,
  MemoryTokens,
  type TokenChunk,
  TokenFileWriter,
  type TokenStore,
  verifyTokenFiles,
} from './token_store.js'

/** What is known about a reading, besides its sequences. */
export interface ReadingSummary {
  /** The first rows that could not be used. */
  readonly skipped: readonly SkippedRow[]
  readonly skippedCount: number
  readonly duplicates: number
  readonly description: string
}

const summaryFields = {
  skipped: z.array(z.strictObject({ file: z.string(), line: z.int(), reason: z.string() })).readonly(),
  skippedCount: z.int().nonnegative(),
  duplicates: z.int().nonnegative(),
  description: z.string(),
}
const recordSchema = z.strictObject({
  format: z.literal(1),
  sequences: z.int().nonnegative(),
  tokens: z.int().nonnegative(),
  sums: z.strictObject({ tokens: z.string(), ends: z.string(), record: z.string() }),
  summary: z.strictObject(summaryFields),
})
type ReadingRecord = z.infer<typeof recordSchema>
const recordName = 'reading.json'

const recordSum = ({ sequences, tokens, summary }: Pick<ReadingRecord, 'sequences' | 'tokens' | 'summary'>): string =>
  createHash('sha256')
    .update(JSON.stringify([sequences, tokens, Object.entries(summary).sort()]))
    .digest('hex')

/** The name of a reading: files by path, size and time of change, the tokenizer, and the options. */
export async function readingKey(files: readonly RowFile[], ...decisive: readonly unknown[]): Promise<string> {
  const identities = await Promise.all(
    files.map(async ({ path }) => {
      const { size, mtimeNs } = await stat(path, { bigint: true })
      return [resolve(path), `${size}`, `${mtimeNs}`]
    }),
  )
  return createHash('sha256')
    .update(JSON.stringify([identities, ...decisive]))
    .digest('hex')
    .slice(0, 32)
}

/** A kept reading, or undefined when there is none; a damaged one is removed. */
export async function openReading(
  cacheFolder: string,
  key: string,
): Promise<{ readonly store: FileTokens; readonly summary: ReadingSummary } | undefined> {
  const folder = join(cacheFolder, key)
  const text = await readFile(join(folder, recordName), 'utf8').catch(() => undefined)
  if (text === undefined) return undefined
  try {
    const record = recordSchema.parse(JSON.parse(text))
    if (record.sums.record !== recordSum(record)) throw formatError(folder, 'what was written', 'another record')
    await verifyTokenFiles(folder, record, record.sums)
    return { store: await FileTokens.open(folder, record), summary: record.summary }
  } catch {
    await rm(folder, { recursive: true, force: true })
    return undefined
  }
}

const unfinished = '.tmp'
const leftoverMilliseconds = 24 * 60 * 60 * 1000

/** What processes that were killed have left behind. */
async function removeLeftovers(cacheFolder: string): Promise<void> {
  const names = await readdir(cacheFolder).catch(() => [])
  for (const folder of names.filter((name) => name.endsWith(unfinished)).map((name) => join(cacheFolder, name))) {
    const found = await stat(folder).catch(() => undefined)
    if (found && Date.now() - found.mtimeMs > leftoverMilliseconds) await rm(folder, { recursive: true, force: true })
  }
}

/** A reading while it is written. */
export class ReadingWriter {
  readonly #cacheFolder: string
  readonly #folder: string
  readonly #writer: TokenFileWriter

  private constructor(cacheFolder: string, folder: string, writer: TokenFileWriter) {
    this.#cacheFolder = cacheFolder
    this.#folder = folder
    this.#writer = writer
  }

  /** @throws ERR_HEDDLE_IO when the folder cannot be used */
  static async create(cacheFolder: string): Promise<ReadingWriter> {
    await removeLeftovers(cacheFolder)
    const folder = join(cacheFolder, `${randomUUID()}${unfinished}`)
    return new ReadingWriter(cacheFolder, folder, await writing(folder, () => TokenFileWriter.create(folder)))
  }

  add(chunk: TokenChunk): Promise<void> {
    return writing(this.#folder, () => this.#writer.add(chunk))
  }

  /** Puts the reading in its place; without a key it stays readable until the store is closed, and nobody else finds it. */
  async finish(key: string | undefined, summary: ReadingSummary): Promise<FileTokens> {
    const { sequences, tokens } = this.#writer
    const sums = await writing(this.#folder, () => this.#writer.finish())
    const store = await FileTokens.open(this.#folder, { sequences, tokens })
    if (key === undefined) {
      await rm(this.#folder, { recursive: true, force: true })
      return store
    }
    const sizes = { sequences, tokens, summary }
    const record: ReadingRecord = { format: 1, ...sizes, sums: { ...sums, record: recordSum(sizes) } }
    const text = JSON.stringify(record)
    await writing(this.#folder, () => writeFile(join(this.#folder, recordName), text, { mode: 0o600, flush: true }))
    // Another run may have been faster: its reading is the same, and the files here stay readable.
    await rename(this.#folder, join(this.#cacheFolder, key)).catch(() => this.#remove())
    return store
  }

  /** Removes what was written. */
  async abandon(): Promise<void> {
    await this.#writer.close().catch(() => {})
    await this.#remove()
  }

  #remove(): Promise<void> {
    return rm(this.#folder, { recursive: true, force: true })
  }
}

/** Where readings are kept when the user has named no folder. */
const defaultFolder = (): string => join(tmpdir(), `heddle-data-${process.getuid?.() ?? 0}`)

/** That folder, if it is there and this user's alone. */
export async function existingCacheFolder(): Promise<string | undefined> {
  const folder = defaultFolder()
  const found = await lstat(folder).catch(() => undefined)
  const isOwn = found?.isDirectory() && found.uid === (process.getuid?.() ?? 0) && (found.mode & 0o077) === 0
  return isOwn ? folder : undefined
}

/**
 * That folder, made if it is not there.
 * @throws ERR_HEDDLE_IO when somebody else owns a folder of that name
 */
export async function defaultCacheFolder(): Promise<string> {
  const place = defaultFolder()
  await writing(place, () => mkdir(place, { recursive: true, mode: 0o700 }))
  const folder = await existingCacheFolder()
  if (folder !== undefined) return folder
  throw new HeddleError('ERR_HEDDLE_IO', {
    place,
    expected: "a folder of this user's that nobody else can read",
    got: 'another one',
    hint: 'Name a folder of your own with cacheFolder',
  })
}

/** Takes chunks into memory, and to disk once they are more than the limit. */
export class TokenSink {
  readonly #memoryLimit: number
  readonly #cacheFolder: () => Promise<string>
  readonly #memory = new MemoryTokens()
  #writer: ReadingWriter | undefined

  /** @param cacheFolder asked for when the disk is needed */
  constructor(memoryLimit: number, cacheFolder: () => Promise<string>) {
    this.#memoryLimit = memoryLimit
    this.#cacheFolder = cacheFolder
  }

  async add(chunk: TokenChunk): Promise<void> {
    if (this.#writer) return this.#writer.add(chunk)
    this.#memory.add(chunk)
    if (this.#memory.bytes <= this.#memoryLimit) return
    this.#writer = await ReadingWriter.create(await this.#cacheFolder())
    for (const each of this.#memory.take()) await this.#writer.add(each)
  }

  /** @param key asked for when there is something to keep */
  async finish(key: () => Promise<string | undefined>, summary: ReadingSummary): Promise<TokenStore> {
    return this.#writer ? this.#writer.finish(await key(), summary) : this.#memory
  }

  abandon(): Promise<void> {
    return this.#writer?.abandon() ?? Promise.resolve()
  }
}

async function writing<T>(place: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    const got = cause instanceof Error ? cause.message : String(cause)
    throw new HeddleError('ERR_HEDDLE_IO', { place, expected: 'a folder for tokenized data', got, cause })
  }
}
