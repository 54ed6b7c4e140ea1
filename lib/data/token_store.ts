/** Token sequences by number, in memory or on disk: memory when they are few, and never more than a few chunks else. */
import { createHash } from 'node:crypto'
import { close, createReadStream, open, read } from 'node:fs'
import { type FileHandle, mkdir, open as openHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { formatError } from '../formats/byte_source.js'

/** Sequences end to end, as {@link EncodedChunk} holds them. */
export interface TokenChunk {
  readonly tokens: Int32Array
  readonly lengths: Int32Array
}

/** Sequences by number. */
export interface TokenStore {
  readonly sequences: number
  readonly tokens: number
  /** The tokens of a sequence. */
  read(index: number): Promise<Int32Array> | Int32Array
  /** The lengths of all sequences in order, block by block. */
  lengths(): AsyncGenerator<Int32Array>
  /** Frees what the store holds; afterwards nothing can be read. */
  close(): void
}

/** Sequences in memory: 4 bytes a token and 4 a sequence. */
export class MemoryTokens implements TokenStore {
  sequences = 0
  tokens = 0
  readonly #chunks: { readonly chunk: TokenChunk; readonly first: number; readonly starts: Int32Array }[] = []

  get bytes(): number {
    return 4 * (this.tokens + 2 * this.sequences)
  }

  add(chunk: TokenChunk): void {
    const starts = new Int32Array(chunk.lengths.length)
    for (let index = 1; index < starts.length; index++) starts[index] = starts[index - 1]! + chunk.lengths[index - 1]!
    if (starts.length > 0) this.#chunks.push({ chunk, first: this.sequences, starts })
    this.sequences += starts.length
    this.tokens += chunk.tokens.length
  }

  read(index: number): Int32Array {
    let [low, high] = [0, this.#chunks.length - 1]
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (this.#chunks[middle]!.first <= index) low = middle
      else high = middle - 1
    }
    const { chunk, first, starts } = this.#chunks[low]!
    const start = starts[index - first]!
    return chunk.tokens.subarray(start, start + chunk.lengths[index - first]!)
  }

  /** The chunks, which are given up one by one. */
  *take(): Generator<TokenChunk> {
    for (let next = this.#chunks.shift(); next; next = this.#chunks.shift()) yield next.chunk
  }

  async *lengths(): AsyncGenerator<Int32Array> {
    for (const { chunk } of this.#chunks) yield chunk.lengths
  }

  close(): void {
    this.#chunks.length = 0
  }
}

const tokensName = 'tokens.i32'
const endsName = 'ends.f64'

/** What the two files hold. */
export interface TokenFileSizes {
  readonly sequences: number
  readonly tokens: number
}

/** Hashes of the two files. */
export interface TokenFileSums {
  readonly tokens: string
  readonly ends: string
}

/** Writes sequences into a folder: all tokens end to end, and where each sequence ends. */
export class TokenFileWriter {
  sequences = 0
  tokens = 0
  readonly #files: { readonly tokens: FileHandle; readonly ends: FileHandle }
  readonly #sums = { tokens: createHash('sha256'), ends: createHash('sha256') }

  private constructor(tokens: FileHandle, ends: FileHandle) {
    this.#files = { tokens, ends }
  }

  /** Makes the folder, readable by its owner alone. */
  static async create(folder: string): Promise<TokenFileWriter> {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const [tokens, ends] = [
      await openHandle(join(folder, tokensName), 'wx', 0o600),
      await openHandle(join(folder, endsName), 'wx', 0o600),
    ]
    return new TokenFileWriter(tokens, ends)
  }

  async add({ tokens, lengths }: TokenChunk): Promise<void> {
    let end = this.tokens
    const ends = Float64Array.from(lengths, (length) => {
      end += length
      return end
    })
    await this.#append('tokens', bytesOf(tokens))
    await this.#append('ends', bytesOf(ends))
    this.tokens = end
    this.sequences += lengths.length
  }

  /** The hashes, once everything has reached the disk. */
  async finish(): Promise<TokenFileSums> {
    await Promise.all(Object.values(this.#files).map((file) => file.sync()))
    await this.close()
    return { tokens: this.#sums.tokens.digest('hex'), ends: this.#sums.ends.digest('hex') }
  }

  async close(): Promise<void> {
    await Promise.all(Object.values(this.#files).map((file) => file.close()))
  }

  async #append(name: keyof TokenFileSums, bytes: Uint8Array): Promise<void> {
    this.#sums[name].update(bytes)
    await this.#files[name].writeFile(bytes)
  }
}

const openFile = promisify(open)
const readAt = promisify(read)

interface Descriptors {
  readonly tokens: number
  readonly ends: number
}

/** Closes the files of a store that was dropped without `close()`. */
const dropped = new FinalizationRegistry<Descriptors>(closeAll)

function closeAll(descriptors: Descriptors): void {
  for (const descriptor of Object.values(descriptors)) close(descriptor, () => {})
}

const endBytes = Float64Array.BYTES_PER_ELEMENT
const tokenBytes = Int32Array.BYTES_PER_ELEMENT
const endsPerRead = 1 << 14

/** Sequences that stay on disk; a read touches only the sequence that is asked for. */
export class FileTokens implements TokenStore {
  readonly sequences: number
  readonly tokens: number
  readonly #folder: string
  readonly #files: Descriptors

  private constructor(folder: string, files: Descriptors, sizes: TokenFileSizes) {
    this.#folder = folder
    this.#files = files
    this.sequences = sizes.sequences
    this.tokens = sizes.tokens
    dropped.register(this, files, this)
  }

  static async open(folder: string, sizes: TokenFileSizes): Promise<FileTokens> {
    const tokens = await openFile(join(folder, tokensName), 'r')
    const ends = await openFile(join(folder, endsName), 'r')
    return new FileTokens(folder, { tokens, ends }, sizes)
  }

  async read(index: number): Promise<Int32Array> {
    const [start, end] = index === 0 ? [0, ...(await this.#ends(0, 1))] : await this.#ends(index - 1, 2)
    const tokens = new Int32Array(end! - start!)
    await this.#read('tokens', tokens, start! * tokenBytes)
    return tokens
  }

  async *lengths(): AsyncGenerator<Int32Array> {
    let before = 0
    for (let first = 0; first < this.sequences; first += endsPerRead) {
      const ends = await this.#ends(first, Math.min(endsPerRead, this.sequences - first))
      yield Int32Array.from(ends, (end, index) => end - (ends[index - 1] ?? before))
      before = ends.at(-1)!
    }
  }

  close(): void {
    dropped.unregister(this)
    closeAll(this.#files)
  }

  async #ends(first: number, count: number): Promise<Float64Array> {
    const ends = new Float64Array(count)
    await this.#read('ends', ends, first * endBytes)
    return ends
  }

  async #read(name: keyof Descriptors, into: Int32Array | Float64Array, position: number): Promise<void> {
    for (let done = 0; done < into.byteLength; ) {
      const length = into.byteLength - done
      const { bytesRead } = await readAt(this.#files[name], bytesOf(into), done, length, position + done)
      if (bytesRead === 0) throw formatError(this.#folder, 'a whole cache of tokens', `${name} that end too early`)
      done += bytesRead
    }
  }
}

/**
 * Reads the files of a folder from beginning to end, chunk by chunk, and compares their hashes.
 * @throws ERR_HEDDLE_FORMAT when they are not what was written
 */
export async function verifyTokenFiles(folder: string, sizes: TokenFileSizes, sums: TokenFileSums): Promise<void> {
  const bytes = { tokens: sizes.tokens * tokenBytes, ends: sizes.sequences * endBytes }
  for (const [name, file] of [['tokens', tokensName] as const, ['ends', endsName] as const]) {
    const sum = createHash('sha256')
    let size = 0
    for await (const chunk of createReadStream(join(folder, file), { highWaterMark: 1 << 20 })) {
      sum.update(chunk as Buffer)
      size += (chunk as Buffer).length
    }
    if (size !== bytes[name] || sum.digest('hex') !== sums[name])
      throw formatError(join(folder, file), 'what was written', 'other bytes')
  }
}

const bytesOf = (array: Int32Array | Float64Array): Uint8Array =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
