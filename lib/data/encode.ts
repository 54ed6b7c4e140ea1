/** Rows to token sequences: what is learned from each, and windows of running text. Runs in the tokenizer's worker. */
import { createHash } from 'node:crypto'
import { HeddleError } from '../errors.js'
import { cut, type TextEncoding } from '../tokenize/text_encoder.js'
import type { Row, RowBlock, SkippedRow } from './rows.js'
import { type ColumnNames, ExampleReader, type LanguageExample } from './shapes.js'

/** How rows become sequences. */
export interface EncodeOptions {
  /** Most tokens that the model sees at once; a sequence has one more, the last one's target. */
  readonly maxLength: number
  /** Texts are sequences of their own instead of being joined to full windows. */
  readonly packing: boolean
  readonly columns?: ColumnNames | undefined
  /** Leaves out what is the same as an earlier example. */
  readonly deduplicate: boolean
}

/** Sequences laid end to end. */
export interface EncodedChunk {
  /** Token ids; one that is no target, so that nothing is learned from it, is stored as its complement `~id`. */
  readonly tokens: Int32Array
  readonly lengths: Int32Array
  readonly skipped: readonly SkippedRow[]
  /** Examples that were left out as the same as an earlier one. */
  readonly duplicates: number
  /** What the rows are so far. */
  readonly description: string
}

const chunkTokens = 1 << 16

/**
 * Conversations learn the assistant's turns, completions learn the completion, and running text learns every token:
 * texts end with an end-of-text token and are cut into windows of `maxLength`, each starting with the last token of the
 * one before.
 */
export class RowEncoder {
  readonly #encoding: TextEncoding
  readonly #options: EncodeOptions
  readonly #examples: ExampleReader<'language'>
  readonly #seen: Set<string> | undefined
  readonly #window: WindowPacker
  #chunk = new ChunkBuilder()
  #isInsideText = false

  /** @throws ERR_HEDDLE_ARGUMENT when the named columns make no example */
  constructor(encoding: TextEncoding, options: EncodeOptions) {
    this.#encoding = encoding
    this.#options = options
    this.#examples = new ExampleReader('language', options.columns)
    this.#seen = options.deduplicate ? new Set() : undefined
    this.#window = new WindowPacker(options.maxLength, (tokens) => this.#chunk.add(tokens))
  }

  /** The sequences of a block's rows, but for a text that is not complete. */
  *encode({ file, rows, skipped }: RowBlock): Generator<EncodedChunk> {
    for (const row of skipped) this.#chunk.skip(row)
    for (const row of rows) {
      for (const _ of this.#encodeRow(file, row)) if (this.#chunk.isFull) yield this.#take()
      if (this.#chunk.isFull) yield this.#take()
    }
    yield this.#take()
  }

  /** What is left at the end of the last block. */
  finish(): EncodedChunk {
    this.#window.flush()
    return this.#take()
  }

  #take(): EncodedChunk {
    return this.#chunk.take(this.#examples.description)
  }

  /** Stops after every piece of a long text. */
  *#encodeRow(file: string, row: Row): Generator<undefined> {
    const example = this.#examples.read(file, row)
    if (typeof example === 'string') this.#chunk.skip({ file, line: row.line, reason: example })
    else if ('text' in example) yield* this.#encodeText(example.text, row.goesOn === true)
    else if (!this.#isDuplicate(example)) this.#addSequence(example, { file, line: row.line })
  }

  *#encodeText(text: string, goesOn: boolean): Generator<undefined> {
    const isWhole = !goesOn && !this.#isInsideText
    if (text === '' || (isWhole && this.#isDuplicate({ text }))) return
    for (const piece of cut(text)) {
      this.#window.push(this.#encoding.encode(piece, !this.#isInsideText, this.#isInsideText))
      this.#isInsideText = true
      yield
    }
    if (goesOn) return
    this.#isInsideText = false
    this.#window.push(Int32Array.from(this.#encoding.info.eosTokenIds.slice(0, 1)))
    if (this.#options.packing) this.#window.end()
  }

  #isDuplicate(example: LanguageExample): boolean {
    if (!this.#seen) return false
    const digest = createHash('sha256').update(JSON.stringify(example)).digest('base64').slice(0, 24)
    if (!this.#seen.has(digest)) {
      this.#seen.add(digest)
      return false
    }
    this.#chunk.duplicates += 1
    return true
  }

  #addSequence(example: Exclude<LanguageExample, { readonly text: string }>, place: Omit<SkippedRow, 'reason'>): void {
    const { maxLength } = this.#options
    try {
      const { ids, loss } = encodeExample(this.#encoding, example)
      // The first token is no target, and nothing is learned after the last one that is.
      const end = Math.min(loss.lastIndexOf(1) + 1, maxLength + 1)
      if (loss.subarray(1, end).includes(1)) this.#chunk.add(ids.subarray(0, end).map((id, i) => (loss[i] ? id : ~id)))
      else this.#chunk.skip({ ...place, reason: `nothing to learn within the first ${maxLength} tokens` })
    } catch (error) {
      if (!(error instanceof HeddleError)) throw error
      this.#chunk.skip({ ...place, reason: error.message })
    }
  }
}

interface Encoded {
  readonly ids: Int32Array
  readonly loss: Uint8Array
}

function encodeExample(encoding: TextEncoding, example: Exclude<LanguageExample, { readonly text: string }>): Encoded {
  if ('messages' in example) return encoding.encodeChat(example.messages, example.tools)
  if ('prompt' in example) return encodeCompletion(encoding, example)
  const { question, answer, system } = example
  if (!encoding.info.hasChatTemplate)
    return encodeCompletion(encoding, { prompt: instructionText(question, system), completion: answer })
  const opening = system ? [{ role: 'system', content: system }] : []
  const turns = [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ]
  return encoding.encodeChat([...opening, ...turns])
}

/** The prompt of Stanford Alpaca (Taori et al. 2023), for models without a chat template. */
const instructionText = (
  question: string,
  system = 'Below is an instruction that describes a task. Write a response that appropriately completes the request.',
): string => `${system}\n\n### Instruction:\n${question}\n\n### Response:\n`

/** Encoded apart, since generation sees the prompt alone. */
function encodeCompletion(
  encoding: TextEncoding,
  { prompt, completion }: { readonly prompt: string; readonly completion: string },
): Encoded {
  const before = encoding.encode(prompt, true)
  const after = [...encoding.encode(completion, false), ...encoding.info.eosTokenIds.slice(0, 1)]
  const ids = Int32Array.from([...before, ...after])
  return { ids, loss: new Uint8Array(ids.length).fill(1, before.length) }
}

/** Cuts a stream of tokens into windows that share one token, the last target of one being the first input of the next. */
class WindowPacker {
  readonly #window: Int32Array
  readonly #emit: (ids: Int32Array) => void
  #filled = 0

  constructor(maxLength: number, emit: (ids: Int32Array) => void) {
    this.#window = new Int32Array(maxLength + 1)
    this.#emit = emit
  }

  push(ids: Int32Array): void {
    for (let start = 0; start < ids.length; ) {
      const count = Math.min(ids.length - start, this.#window.length - this.#filled)
      this.#window.set(ids.subarray(start, start + count), this.#filled)
      this.#filled += count
      start += count
      if (this.#filled === this.#window.length) this.flush()
    }
  }

  flush(): void {
    if (this.#filled < 2) return
    this.#emit(this.#window.slice(0, this.#filled))
    this.#window[0] = this.#window[this.#filled - 1]!
    this.#filled = 1
  }

  /** What follows has nothing to do with what was before. */
  end(): void {
    this.flush()
    this.#filled = 0
  }
}

class ChunkBuilder {
  duplicates = 0
  #sequences: Int32Array[] = []
  #skipped: SkippedRow[] = []
  #tokens = 0

  get isFull(): boolean {
    return this.#tokens >= chunkTokens
  }

  add(tokens: Int32Array): void {
    this.#sequences.push(tokens)
    this.#tokens += tokens.length
  }

  skip(row: SkippedRow): void {
    this.#skipped.push(row)
  }

  take(description: string): EncodedChunk {
    const tokens = new Int32Array(this.#tokens)
    let offset = 0
    for (const sequence of this.#sequences) {
      tokens.set(sequence, offset)
      offset += sequence.length
    }
    const lengths = Int32Array.from(this.#sequences, ({ length }) => length)
    const chunk = { tokens, lengths, skipped: this.#skipped, duplicates: this.duplicates, description }
    this.#sequences = []
    this.#skipped = []
    this.#tokens = 0
    this.duplicates = 0
    return chunk
  }
}
