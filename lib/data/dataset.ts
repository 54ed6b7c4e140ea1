/** Tokenized training data in memory (5 bytes a token), and its batches in an order that depends only on the seed. */
import { HeddleError } from '../errors.js'
import { Pacer } from '../formats/byte_source.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'
import { type Batch, collate, type Sequence } from './collate.js'
import type { SkippedRow } from './examples.js'
import { permutation } from './shuffle.js'

export type { Batch, SkippedRow }

/** Options of {@link Dataset.open}. */
export interface DatasetOptions {
  /** Most tokens that the model sees at once; longer conversations are cut, texts go on in the next window. */
  readonly maxLength: number
  /** Share of the sequences that is set aside, 0 (default) to 0.5. */
  readonly evaluationFraction?: number
  /** Decides which sequences are set aside. Default 0. */
  readonly seed?: number
  readonly signal?: AbortSignal | undefined
  /** Called with the share of the file that has been tokenized. */
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

/** Sequences to train or evaluate on. */
export class Dataset {
  /** Rows of the file that could not be used. */
  readonly skipped: readonly SkippedRow[]
  /** What was set aside, if anything. */
  readonly evaluation: Dataset | undefined
  readonly maxLength: number
  readonly #sequences: readonly Sequence[]
  readonly #padId: number

  private constructor(sequences: readonly Sequence[], like: DatasetParts) {
    this.#sequences = sequences
    this.skipped = like.skipped
    this.evaluation = like.evaluation
    this.maxLength = like.maxLength
    this.#padId = like.padId
  }

  /**
   * Reads and tokenizes a data file (`.jsonl` rows of messages, prompt and completion, or text; `.txt`; `.md`) in the tokenizer's worker.
   * @throws ERR_HEDDLE_FORMAT when no row of it can be used; else bad rows are listed in `skipped`
   * @throws ERR_HEDDLE_IO, ERR_HEDDLE_ARGUMENT, ERR_HEDDLE_ABORTED
   */
  static async open(path: string, tokenizer: Tokenizer, options: DatasetOptions): Promise<Dataset> {
    const { maxLength, evaluationFraction = 0, seed = 0, signal, onProgress } = options
    checkRange('maxLength', maxLength, { least: 1, most: 2 ** 24, integer: true })
    checkRange('evaluationFraction', evaluationFraction, { least: 0, most: 0.5 })
    const sequences: Sequence[] = []
    const skipped: SkippedRow[] = []
    await tokenizer.encodeFile({
      path,
      maxLength,
      signal,
      onChunk({ ids, loss, lengths, skipped: rows, progress }) {
        let start = 0
        for (const length of lengths) {
          sequences.push({ ids: ids.subarray(start, start + length), loss: loss.subarray(start, start + length) })
          start += length
        }
        skipped.push(...rows)
        onProgress?.(progress)
      },
    })
    if (sequences.length === 0) throw nothingToLearn(path, skipped)
    const parts = { skipped, maxLength, padId: tokenizer.padTokenId ?? tokenizer.eosTokenIds[0] ?? 0 }
    return Dataset.#split(sequences, { ...parts, evaluation: undefined }, { fraction: evaluationFraction, seed })
  }

  /** Number of sequences. */
  get size(): number {
    return this.#sequences.length
  }

  /** Number of tokens of all sequences. */
  get tokens(): number {
    return this.#sequences.reduce((sum, { ids }) => sum + ids.length, 0)
  }

  /** Number of batches of an epoch. */
  batchCount(batchSize: number): number {
    return Math.ceil(this.size / batchSize)
  }

  /** The batches of one epoch; the last one is filled up with rows of padding. */
  async *batches(options: BatchOptions): AsyncGenerator<Batch> {
    const { batchSize, shuffle = true, seed = 0, epoch = 0, start = 0 } = options
    checkRange('batchSize', batchSize, { least: 1, most: 2 ** 16, integer: true })
    const order = shuffle ? await permutation(this.size, seed, epoch) : undefined
    const at = (position: number) => this.#sequences[order ? order[position]! : position]
    for (let index = start; index < this.batchCount(batchSize); index++) {
      const rows = Array.from({ length: batchSize }, (_, row) => at(index * batchSize + row))
      yield collate(rows, { maxLength: this.maxLength, padId: this.#padId })
    }
  }

  static async #split(
    sequences: readonly Sequence[],
    parts: DatasetParts,
    { fraction, seed }: { readonly fraction: number; readonly seed: number },
  ): Promise<Dataset> {
    const count = fraction === 0 ? 0 : Math.min(sequences.length - 1, Math.ceil(sequences.length * fraction))
    if (count === 0) return new Dataset(sequences, parts)
    const chosen = new Set((await permutation(sequences.length, seed, splitStream)).subarray(0, count))
    const pacer = new Pacer()
    const kept: Sequence[] = []
    const setAside: Sequence[] = []
    for (const [index, sequence] of sequences.entries()) {
      const part = chosen.has(index) ? setAside : kept
      part.push(sequence)
      if (pacer.due()) await pacer.turn()
    }
    return new Dataset(kept, { ...parts, evaluation: new Dataset(setAside, parts) })
  }
}

interface DatasetParts {
  readonly skipped: readonly SkippedRow[]
  readonly evaluation: Dataset | undefined
  readonly maxLength: number
  readonly padId: number
}

/** An epoch number that no training reaches, for the order that decides what is set aside. */
const splitStream = 0xffffffff

function nothingToLearn(path: string, skipped: readonly SkippedRow[]): HeddleError {
  const [first] = skipped
  return new HeddleError('ERR_HEDDLE_FORMAT', {
    place: first ? `${path}:${first.line}` : path,
    expected: 'at least one example',
    got: first ? `${skipped.length} unusable rows, the first because: ${first.reason}` : 'an empty file',
  })
}

interface Range {
  readonly least: number
  readonly most: number
  readonly integer?: boolean
}

function checkRange(place: string, value: number, { least, most, integer = false }: Range): void {
  if (value >= least && value <= most && (!integer || Number.isInteger(value))) return
  const expected = `${integer ? 'an integer' : 'a number'} from ${least} to ${most}`
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got: `${value}` })
}
