/** Adapters by name: loaded when first asked for, kept while there is room, evicted when idle. */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { HeddleError, throwIfAborted } from '../errors.js'
import { type RowRange, RowRanges } from './adapter_ranges.js'

/** An adapter that was read but has no rows yet. */
export interface ReadAdapter {
  /** Rows that it takes, more than 0. */
  readonly rank: number
  /** Fills its rows; a running step must not be disturbed. */
  write(range: RowRange): Promise<void>
  /** Frees what was read. */
  dispose(): void
}

/** See {@link AdapterStore}. */
export interface AdapterStoreOptions {
  /** Bytes of one row over all pools. */
  readonly rowBytes: number
  /** Most bytes of all rows. */
  readonly bytes: number
  read(folder: string): Promise<ReadAdapter>
  /** An adapter that nobody uses made room. */
  readonly onEvict?: (name: string) => void
}

/** The use of an adapter by one request: until it is released, the rows stay as they are. */
export interface Lease extends RowRange {
  readonly name: string
  /** Another number for every content that the name has had: prefixes are shared within one version only. */
  readonly version: number
  release(): void
}

interface Entry {
  readonly name: string
  readonly folder: string
  readonly version: number
  users: number
  /** Its name was taken away or given to another. */
  isRetired: boolean
  loading: Promise<RowRange> | undefined
  range: RowRange | undefined
  /** Its rows hold its factors. */
  isWritten: boolean
}

/** A request holds at most one lease and waits for rows without one, so that those who wait always get their turn. */
export class AdapterStore {
  readonly #entries = new Map<string, Entry>()
  /** In memory and unused, least recently used first. */
  readonly #idle = new Set<Entry>()
  readonly #ranges: RowRanges
  #versions = 0
  #placing: Promise<unknown> = Promise.resolve()
  #wake = (): void => {}

  constructor(readonly options: AdapterStoreOptions) {
    this.#ranges = new RowRanges(Math.floor(options.bytes / options.rowBytes))
  }

  get names(): readonly string[] {
    return [...this.#entries.keys()]
  }

  /** Names of the adapters that have rows. */
  get loaded(): readonly string[] {
    return [...this.#entries.values()].filter(({ isWritten }) => isWritten).map(({ name }) => name)
  }

  /** Whether the adapter of that name has rows. */
  has(name: string): boolean {
    return this.#entries.get(name)?.isWritten ?? false
  }

  /** Of the largest adapter that there can be room for. */
  get mostRank(): number {
    return this.#ranges.rows
  }

  get usedBytes(): number {
    return this.#ranges.usedRows * this.options.rowBytes
  }

  /** Gives a name to a folder; leases of what had the name before stay good. @throws ERR_HEDDLE_ARGUMENT on a bad name */
  add(name: string, folder: string): void {
    checkName(name)
    this.remove(name)
    this.#versions += 1
    const version = this.#versions
    const empty = { users: 0, isRetired: false, loading: undefined, range: undefined, isWritten: false }
    this.#entries.set(name, { name, folder, version, ...empty })
  }

  /** Takes a name away; the rows are free when the last lease is released. */
  remove(name: string): void {
    const entry = this.#entries.get(name)
    if (!entry) return
    this.#entries.delete(name)
    entry.isRetired = true
    this.#settle(entry)
  }

  /**
   * Waits until the adapter has rows. What fails is tried again by the next call.
   * @throws ERR_HEDDLE_ARGUMENT on an unknown name or an adapter larger than all the memory, ERR_HEDDLE_ABORTED, and what
   *   reading throws
   */
  async acquire(name: string, signal?: AbortSignal): Promise<Lease> {
    const entry = this.#entries.get(name)
    if (!entry) throw misuse(`one of ${this.names.join(', ') || 'no adapters'}`, name)
    throwIfAborted(signal, 'generate')
    this.#idle.delete(entry)
    entry.users += 1
    let isHeld = true
    const release = (): void => {
      if (!isHeld) return
      isHeld = false
      entry.users -= 1
      this.#settle(entry)
    }
    try {
      entry.loading ??= this.#load(entry)
      const range = await unlessAborted(entry.loading, signal)
      return { name, version: entry.version, ...range, release }
    } catch (error) {
      release()
      throw error
    }
  }

  async #load(entry: Entry): Promise<RowRange> {
    // A turn later, so that `loading` is set before a failure clears it.
    await Promise.resolve()
    let adapter: ReadAdapter | undefined
    try {
      adapter = await this.options.read(entry.folder)
      entry.range = await this.#place(entry.name, adapter.rank)
      await adapter.write(entry.range)
      entry.isWritten = true
      return entry.range
    } catch (error) {
      this.#unload(entry)
      throw error
    } finally {
      adapter?.dispose()
      this.#settle(entry)
    }
  }

  /** Rows for an adapter, one adapter after the other, so that a large one isn't overtaken for ever. */
  #place(name: string, rank: number): Promise<RowRange> {
    if (rank > this.mostRank) {
      const { bytes, rowBytes } = this.options
      throw misuse(`an adapter of at most ${bytes} bytes`, `${name} of ${rank * rowBytes}`, 'Raise memory.adapters.')
    }
    const placed = this.#placing.then(async () => {
      for (;;) {
        const range = this.#ranges.take(rank)
        if (range) return range
        const [oldest] = this.#idle
        if (oldest) this.#evict(oldest)
        else
          await new Promise<void>((resolve) => {
            this.#wake = resolve
          })
      }
    })
    this.#placing = placed
    return placed
  }

  /** After every change of who uses an entry. */
  #settle(entry: Entry): void {
    if (entry.users === 0 && entry.isWritten) {
      if (entry.isRetired) this.#unload(entry)
      else this.#idle.add(entry)
    }
    this.#wake()
  }

  #evict(entry: Entry): void {
    this.#unload(entry)
    this.options.onEvict?.(entry.name)
  }

  #unload(entry: Entry): void {
    if (entry.range) this.#ranges.give(entry.range)
    entry.range = undefined
    entry.isWritten = false
    entry.loading = undefined
    this.#idle.delete(entry)
    this.#wake()
  }
}

/** Folders with an adapter_config.json below `folder`, by name. @throws ERR_HEDDLE_IO */
export async function adaptersIn(folder: string | undefined): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  if (folder === undefined) return found
  for (const entry of await entriesOf(folder)) {
    if (!entry.isDirectory() || !isPlainName(entry.name)) continue
    const path = join(folder, entry.name)
    if ((await entriesOf(path)).some(({ name }) => name === 'adapter_config.json')) found.set(entry.name, path)
  }
  return found
}

/** @throws ERR_HEDDLE_IO when there is no adapter in the folder */
export async function expectAdapter(folder: string): Promise<void> {
  if ((await entriesOf(folder)).some(({ name }) => name === 'adapter_config.json')) return
  throw new HeddleError('ERR_HEDDLE_IO', { place: folder, expected: 'adapter_config.json', got: 'no such file' })
}

async function entriesOf(folder: string) {
  try {
    return await readdir(folder, { withFileTypes: true })
  } catch (cause) {
    const got = (cause as Error).message
    throw new HeddleError('ERR_HEDDLE_IO', { place: folder, expected: 'a folder that can be read', got, cause })
  }
}

/** Fine-tuned models are named ft:base:suffix:id. */
const isPlainName = (name: string): boolean => /^[\w-][\w.:-]{0,127}$/.test(name)

/** A name is one plain part of a path. @throws ERR_HEDDLE_ARGUMENT */
export function checkName(name: string): void {
  if (!isPlainName(name)) throw misuse('a plain file name', name)
}

const unlessAborted = async <T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> => {
  if (!signal) return await work
  let stop = (): void => {}
  const aborted = new Promise<void>((resolve) => {
    stop = resolve
    signal.addEventListener('abort', stop, { once: true })
  })
  try {
    const result = await Promise.race([work, aborted])
    throwIfAborted(signal, 'generate')
    return result as T
  } finally {
    signal.removeEventListener('abort', stop)
  }
}

const misuse = (expected: string, got: string, hint?: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'adapter', expected, got, ...(hint ? { hint } : {}) })
