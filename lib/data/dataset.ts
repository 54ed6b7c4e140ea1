/** Tokenized training data, in memory or on disk, and its batches in an order that depends only on the seed. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { Pacer } from '../formats/byte_source.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'
import { type Batch, collate, type Sequence } from './collate.js'
import { type Packing, pack } from './packing.js'
import { rowFiles } from './row_files.js'
import { openRows, pathsOf, type RowSource, type SkippedRow } from './rows.js'
import { type ColumnNames, knownColumns } from './shapes.js'
import { naturalOrder, type Order, shuffledOrder } from './shuffle.js'
import {
  defaultCacheFolder,
  existingCacheFolder,
  openReading,
  type ReadingSummary,
  readingKey,
  TokenSink,
} from './token_cache.js'
import type { TokenStore } from './token_store.js'

export type { Batch, SkippedRow }

/** Options of {@link Dataset.open}. */
export interface DatasetOptions {
  /** Most tokens that the model sees at once; longer conversations are cut, texts go on in the next window. */
  readonly maxLength: number
  /**
   * Lays several sequences into one row, where each sees only itself, so that little is padding; texts are then
   * sequences of their own instead of being joined. Default false.
   */
  readonly packing?: boolean
  /** Share of the sequences that is set aside, 0 (default) to 0.5. */
  readonly evaluationFraction?: number
  /** Decides which sequences are set aside, and which are packed together. Default 0. */
  readonly seed?: number
  /** Parts of an example by the columns that hold them, such as `{ prompt: 'q', completion: 'a' }`. Default: by name. */
  readonly columns?: ColumnNames | undefined
  /** Rows to read at most. Default: all. */
  readonly maxRows?: number | undefined
  /** Longest row in bytes; a longer one is skipped. Default 16 MiB. */
  readonly maxRowBytes?: number
  /** Leaves out examples that are the same as an earlier one; takes about 100 bytes of memory for each. Default false. */
  readonly deduplicate?: boolean
  /** Bytes of tokens up to which they are held in memory; beyond it they are on disk. Default 256 MiB. */
  readonly memoryLimit?: number
  /** Where tokens on disk are kept for the next run. Default: a folder of this user's in the system's temporary one. */
  readonly cacheFolder?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Called with the share of the data that has been tokenized. */
  onProgress?(share: number): void
}

/** Which batches to give, in which order. */
export interface BatchOptions {
  readonly batchSize: number
  /** Default true. */
  readonly shuffle?: boolean
  /** The order is a function of seed and epoch. Defaults 0. */
  readonly seed?: number
  readonly epoch?: number
  /** Index of the first batch to give, for resuming. Default 0. */
  readonly start?: number
}

const number = (least: number, most: number) => {
  const error = `a number from ${least} to ${most}`
  return z.number({ error }).min(least, { error }).max(most, { error })
}
const integer = (least: number, most: number) => {
  const error = `an integer from ${least} to ${most}`
  return z.int({ error }).min(least, { error }).max(most, { error })
}

const openSchema = z.strictObject({
  maxLength: integer(1, 2 ** 24),
  packing: z.boolean().default(false),
  evaluationFraction: number(0, 0.5).default(0),
  seed: integer(0, 2 ** 32 - 1).default(0),
  columns: z.record(z.string(), z.string()).optional(),
  maxRows: integer(1, 2 ** 53 - 1).optional(),
  maxRowBytes: integer(1, 2 ** 28).default(2 ** 24),
  deduplicate: z.boolean().default(false),
  memoryLimit: number(0, 2 ** 40).default(2 ** 28),
  cacheFolder: z.string().min(1).optional(),
  signal: z.custom<AbortSignal>((value) => value instanceof AbortSignal, { error: 'an AbortSignal' }).optional(),
  onProgress: z
    .custom<(share: number) => void>((value) => typeof value === 'function', { error: 'a function' })
    .optional(),
})
type OpenSettings = z.output<typeof openSchema>

const batchSchema = z.strictObject({
  batchSize: integer(1, 2 ** 16),
  shuffle: z.boolean().default(true),
  seed: integer(0, 2 ** 32 - 1).default(0),
  epoch: integer(0, 2 ** 32 - 2).default(0),
  start: integer(0, 2 ** 53 - 1).default(0),
})

/** Sequences to train or evaluate on. */
export class Dataset {
  /** The first thousand rows that could not be used. */
  readonly skipped: readonly SkippedRow[]
  /** Number of all rows that could not be used. */
  readonly skippedCount: number
  /** What was set aside, if anything. */
  readonly evaluation: Dataset | undefined
  readonly maxLength: number
  /** Number of tokens of all sequences. */
  readonly tokens: number
  readonly #part: Part
  readonly #padId: number
  readonly #summary: ReadingSummary

  private constructor(part: Part, like: DatasetParts) {
    this.#part = part
    this.tokens = part.tokens
    this.skipped = like.summary.skipped
    this.skippedCount = like.summary.skippedCount
    this.evaluation = like.evaluation
    this.maxLength = like.maxLength
    this.#padId = like.padId
    this.#summary = like.summary
  }

  /**
   * Reads and tokenizes data, off the event loop's thread: conversations (OpenAI messages, ShareGPT), instructions
   * (Alpaca, question and answer), prompts with completions, or texts, from any {@link RowSource}. Tokens beyond
   * `memoryLimit` are kept on disk, and found there by the next run on the same files, tokenizer and options.
   * @throws ERR_HEDDLE_FORMAT when no row can be used; else bad rows are listed in `skipped`
   * @throws ERR_HEDDLE_IO, ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED
   */
  static async open(source: RowSource, tokenizer: Tokenizer, options: DatasetOptions): Promise<Dataset> {
    const settings = parseConfig('Dataset.open', openSchema, options)
    const { store, summary } = await openStore(source, tokenizer, settings)
    const { maxLength, evaluationFraction, seed, packing } = settings
    try {
      if (store.sequences === 0) throw nothingToLearn(pathsOf(source)?.join(', ') ?? 'rows', summary)
      const { rest, aside } = await splitParts(store, evaluationFraction, seed)
      const like = { summary, maxLength, padId: tokenizer.padTokenId ?? tokenizer.eosTokenIds[0] ?? 0 }
      const finished = (part: Part): Promise<Part> | Part => (packing ? packed(part, maxLength) : part)
      const evaluation = aside && new Dataset(await finished(aside), { ...like, evaluation: undefined })
      return new Dataset(await finished(rest), { ...like, evaluation })
    } catch (error) {
      store.close()
      throw error
    }
  }

  /** What the rows are, such as `support.jsonl: OpenAI messages (messages); 16 sequences, 1,024 tokens`. */
  get description(): string {
    return describe(this.#summary, this.#part, this.evaluation)
  }

  /** Number of rows of all batches: of sequences, or with packing of what they were packed into. */
  get size(): number {
    return this.#part.packing?.rows ?? this.sequences
  }

  /** Number of sequences. */
  get sequences(): number {
    return this.#part.order.count
  }

  /** Number of batches of an epoch. */
  batchCount(batchSize: number): number {
    return Math.ceil(this.size / batchSize)
  }

  /** The batches of one epoch, from any of them on at no cost; the last one is filled up with rows of padding. */
  async *batches(options: BatchOptions): AsyncGenerator<Batch> {
    const { batchSize, shuffle, seed, epoch, start } = parseConfig('Dataset.batches', batchSchema, options)
    const order = shuffle ? shuffledOrder(this.size, seed, epoch) : naturalOrder(this.size)
    for (let index = start; index < this.batchCount(batchSize); index++) {
      const rows = Array.from({ length: batchSize }, (_, row) => index * batchSize + row)
      const sequences = rows.map((position) => (position < this.size ? this.#row(order.at(position)) : []))
      yield collate(await Promise.all(sequences), { maxLength: this.maxLength, padId: this.#padId })
    }
  }

  /** Frees memory and files of this dataset and of what was set aside from it. */
  close(): void {
    this.#part.store.close()
  }

  #row(index: number): Promise<Sequence[]> {
    const { store, order, packing } = this.#part
    const positions = packing ? [...packing.row(index)] : [index]
    return Promise.all(positions.map(async (position) => sequenceOf(await store.read(order.at(position)))))
  }
}

/** The sequence of stored tokens, of which a complement `~id` is none that is learned. */
const sequenceOf = (tokens: Int32Array): Sequence => ({
  ids: tokens.map((token) => (token < 0 ? ~token : token)),
  loss: Uint8Array.from(tokens, (token) => (token < 0 ? 0 : 1)),
})

interface DatasetParts {
  readonly summary: ReadingSummary
  readonly evaluation: Dataset | undefined
  readonly maxLength: number
  readonly padId: number
}

/** Some of a store's sequences, in an order of their own. */
interface Part {
  readonly store: TokenStore
  /** The store's number of each of the part's sequences. */
  readonly order: Pick<Order, 'count' | 'at'>
  /** The part's own position of a sequence of the store, or undefined for one of another part. */
  positionOf(sequence: number): number | undefined
  readonly tokens: number
  readonly packing?: Packing
}

const skippedKept = 1000
/** Changes when the same rows would become other sequences. */
const encodingVersion = 1

/** Finds what an earlier run has kept, or reads and tokenizes. */
async function openStore(
  source: RowSource,
  tokenizer: Tokenizer,
  settings: OpenSettings,
): Promise<{ readonly store: TokenStore; readonly summary: ReadingSummary }> {
  const { maxLength, packing, columns, deduplicate, maxRows, maxRowBytes, memoryLimit, signal } = settings
  const encoding = { maxLength, packing, columns, deduplicate }
  const limits = { maxRows, maxRowBytes }
  const paths = pathsOf(source)
  const key = async (): Promise<string | undefined> =>
    paths && readingKey(await rowFiles(paths), encodingVersion, await tokenizer.fingerprint(), encoding, limits)
  const cacheFolder = settings.cacheFolder ?? (await existingCacheFolder())
  const name = cacheFolder === undefined ? undefined : await key()
  const kept = cacheFolder !== undefined && name !== undefined ? await openReading(cacheFolder, name) : undefined
  if (kept) return kept
  // A folder that the user has named is meant to be used.
  const sink = new TokenSink(
    settings.cacheFolder && paths ? 0 : memoryLimit,
    async () => cacheFolder ?? defaultCacheFolder(),
  )
  const skipped: SkippedRow[] = []
  let [skippedCount, duplicates, description] = [0, 0, '']
  try {
    await tokenizer.encodeRows(
      openRows(source, { columns: knownColumns('language', columns), maxRows, maxRowBytes, signal }),
      {
        ...encoding,
        signal,
        ...(settings.onProgress ? { onProgress: settings.onProgress } : {}),
        async onChunk(chunk) {
          skipped.push(...chunk.skipped.slice(0, skippedKept - skipped.length))
          skippedCount += chunk.skipped.length
          duplicates += chunk.duplicates
          description = chunk.description
          await sink.add(chunk)
        },
      },
    )
    const summary = { skipped, skippedCount, duplicates, description }
    return { store: await sink.finish(key, summary), summary }
  } catch (error) {
    await sink.abandon()
    throw error
  }
}

/** An epoch number that no training reaches, for the order that decides what is set aside. */
const splitStream = 0xffffffff

/** The first sequences of a seeded order are set aside, at least one stays. */
async function splitParts(
  store: TokenStore,
  fraction: number,
  seed: number,
): Promise<{ readonly rest: Part; readonly aside: Part | undefined }> {
  const { sequences, tokens } = store
  const count = fraction === 0 ? 0 : Math.min(sequences - 1, Math.ceil(sequences * fraction))
  if (count === 0)
    return { rest: { store, order: naturalOrder(sequences), positionOf: (index) => index, tokens }, aside: undefined }
  const order = shuffledOrder(sequences, seed, splitStream)
  const asideTokens = await sumLengths(store, (index) => order.positionOf(index) < count)
  const between = (from: number, to: number, size: number): Part => ({
    store,
    order: { count: to - from, at: (position) => order.at(from + position) },
    positionOf(sequence) {
      const position = order.positionOf(sequence)
      return position >= from && position < to ? position - from : undefined
    },
    tokens: size,
  })
  return { aside: between(0, count, asideTokens), rest: between(count, sequences, tokens - asideTokens) }
}

async function sumLengths(store: TokenStore, counts: (index: number) => boolean): Promise<number> {
  let sum = 0
  await forEachLength(store, (length, index) => {
    if (counts(index)) sum += length
  })
  return sum
}

/** Packs the part's sequences; which of the same length meet is a matter of its order. */
async function packed(part: Part, maxLength: number): Promise<Part> {
  const inputs = new Uint32Array(part.order.count)
  await forEachLength(part.store, (length, index) => {
    const position = part.positionOf(index)
    if (position !== undefined) inputs[position] = length - 1
  })
  return { ...part, packing: await pack(inputs, maxLength) }
}

async function forEachLength(store: TokenStore, visit: (length: number, index: number) => void): Promise<void> {
  const pacer = new Pacer(1024)
  let index = 0
  for await (const lengths of store.lengths())
    for (const length of lengths) {
      visit(length, index++)
      if (pacer.due()) await pacer.turn()
    }
}

const count = (value: number): string => value.toLocaleString('en-US')
const plural = (value: number, one: string): string => `${count(value)} ${one}${value === 1 ? '' : 's'}`

function describe(summary: ReadingSummary, part: Part, evaluation: Dataset | undefined): string {
  const { sequences = 0, tokens = 0 } = evaluation ?? {}
  const parts = [plural(part.order.count + sequences, 'sequence'), plural(part.tokens + tokens, 'token')]
  if (part.packing) parts.push(`packed into ${plural(part.packing.rows, 'row')}`)
  if (evaluation) parts.push(`${count(sequences)} held out`)
  if (summary.duplicates > 0) parts.push(`${plural(summary.duplicates, 'duplicate')} left out`)
  if (summary.skippedCount > 0) parts.push(`${plural(summary.skippedCount, 'row')} skipped`)
  return `${summary.description}; ${parts.join(', ')}`
}

function nothingToLearn(place: string, { skipped, skippedCount }: ReadingSummary): HeddleError {
  const [first] = skipped
  const reasons = skipped.slice(0, 3).map(({ line, reason }) => `line ${line}: ${reason}`)
  return new HeddleError('ERR_HEDDLE_FORMAT', {
    place: first ? `${first.file}:${first.line}` : place,
    expected: 'at least one example',
    got: first ? `${plural(skippedCount, 'unusable row')} (${reasons.join('; ')})` : 'no text',
  })
}
