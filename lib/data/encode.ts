/** Examples to token sequences: what is learned from each, packing of running text. Runs in the tokenizer's worker. */
import { HeddleError } from '../errors.js'
import { cut, type TextEncoding } from '../tokenize/text_encoder.js'
import { dataFileSize, type Example, readExamples, type SkippedRow } from './examples.js'

/** Sequences laid end to end; sequence i has `lengths[i]` ids, of which it learns to predict those with `loss` 1. */
export interface EncodedChunk {
  readonly ids: Int32Array
  readonly loss: Uint8Array
  readonly lengths: Int32Array
  readonly skipped: readonly SkippedRow[]
  /** Share of the file that has been read. */
  readonly progress: number
}

/** Which file to encode, and how. */
export interface EncodeFileOptions {
  readonly path: string
  /** Most tokens that the model sees at once; a sequence has one more, the last one's target. */
  readonly maxLength: number
}

const chunkTokens = 1 << 16

/**
 * Reads and tokenizes a data file, chunk by chunk. Conversations learn the assistant's turns, completions learn the
 * completion, and running text learns every token: texts are joined with an end-of-text token between and cut into
 * windows of `maxLength`.
 */
export async function* encodeFile(
  encoding: TextEncoding,
  { path, maxLength }: EncodeFileOptions,
): AsyncGenerator<EncodedChunk> {
  const size = await dataFileSize(path)
  const chunk = new ChunkBuilder()
  const window = new WindowPacker(maxLength, (ids) => chunk.add(ids, new Uint8Array(ids.length).fill(1)))
  let rowStart = 0
  for await (const { line, content, bytesRead } of readExamples(path)) {
    if ('reason' in content) chunk.skip(line, content.reason)
    else if ('text' in content)
      for (const { ids, share } of documentPieces(encoding, content.text)) {
        window.push(ids)
        if (chunk.isFull) yield chunk.take((rowStart + share * (bytesRead - rowStart)) / size)
      }
    else addSequence(chunk, encoding, content, { line, maxLength })
    if (chunk.isFull) yield chunk.take(Math.min(1, bytesRead / size))
    rowStart = bytesRead
  }
  window.flush()
  yield chunk.take(1)
}

interface RowPlace {
  readonly line: number
  readonly maxLength: number
}

function addSequence(
  chunk: ChunkBuilder,
  encoding: TextEncoding,
  example: Exclude<Example, { readonly text: string }>,
  { line, maxLength }: RowPlace,
): void {
  try {
    const encoded = 'messages' in example ? encoding.encodeChat(example.messages) : encodeCompletion(encoding, example)
    // The first token is no target, and nothing is learned after the last one that is.
    const end = Math.min(encoded.loss.lastIndexOf(1) + 1, maxLength + 1)
    if (encoded.loss.subarray(1, end).includes(1))
      chunk.add(encoded.ids.subarray(0, end), encoded.loss.subarray(0, end))
    else chunk.skip(line, `nothing to learn within the first ${maxLength} tokens`)
  } catch (error) {
    if (!(error instanceof HeddleError)) throw error
    chunk.skip(line, error.message)
  }
}

/** Encoded apart, since generation sees the prompt alone. */
function encodeCompletion(
  encoding: TextEncoding,
  { prompt, completion }: { readonly prompt: string; readonly completion: string },
): { readonly ids: Int32Array; readonly loss: Uint8Array } {
  const before = encoding.encode(prompt, true)
  const after = [...encoding.encode(completion, false), ...encoding.info.eosTokenIds.slice(0, 1)]
  const ids = Int32Array.from([...before, ...after])
  return { ids, loss: new Uint8Array(ids.length).fill(1, before.length) }
}

interface DocumentPiece {
  readonly ids: Int32Array
  /** Share of the text up to the end of this piece. */
  readonly share: number
}

function* documentPieces(encoding: TextEncoding, text: string): Generator<DocumentPiece> {
  if (text === '') return
  let done = 0
  for (const piece of cut(text)) {
    const ids = encoding.encode(piece, done === 0)
    done += piece.length
    yield { ids, share: done / text.length }
  }
  yield { ids: Int32Array.from(encoding.info.eosTokenIds.slice(0, 1)), share: 1 }
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
}

class ChunkBuilder {
  #ids: Int32Array[] = []
  #loss: Uint8Array[] = []
  #skipped: SkippedRow[] = []
  #tokens = 0

  get isFull(): boolean {
    return this.#tokens >= chunkTokens
  }

  add(ids: Int32Array, loss: Uint8Array): void {
    this.#ids.push(ids)
    this.#loss.push(loss)
    this.#tokens += ids.length
  }

  skip(line: number, reason: string): void {
    this.#skipped.push({ line, reason })
  }

  take(progress: number): EncodedChunk {
    const ids = new Int32Array(this.#tokens)
    const loss = new Uint8Array(this.#tokens)
    let offset = 0
    for (const [index, sequence] of this.#ids.entries()) {
      ids.set(sequence, offset)
      loss.set(this.#loss[index]!, offset)
      offset += sequence.length
    }
    const lengths = Int32Array.from(this.#ids, (sequence) => sequence.length)
    const chunk = { ids, loss, lengths, skipped: this.#skipped, progress }
    this.#ids = []
    this.#loss = []
    this.#skipped = []
    this.#tokens = 0
    return chunk
  }
}
