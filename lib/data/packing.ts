/**
 * Several sequences in one row, each seeing itself only: best-fit decreasing (Johnson 1974; for training, Ding et al.
 * 2024, arXiv 2404.10830), which leaves almost no padding.
 */
import { Pacer } from '../formats/byte_source.js'

/** Which sequences share a row. */
export interface Packing {
  readonly rows: number
  /** The positions (in the order that was packed) of a row's sequences. */
  row(index: number): Uint32Array
}

/**
 * Packs sequences of at most `capacity` tokens. Of equal lengths the order decides, so that it depends on the seed
 * which sequences meet.
 * @param lengths tokens by position in the order
 */
export async function pack(lengths: Uint32Array, capacity: number): Promise<Packing> {
  const pacer = new Pacer(1024)
  const rowOf = new Uint32Array(lengths.length)
  const space = new RowsBySpace(capacity, lengths.length)
  let rows = 0
  for (const position of await byLength(lengths, capacity, pacer)) {
    const length = lengths[position]!
    const { row = rows++, left = capacity } = space.take(length)
    rowOf[position] = row
    space.put(row, left - length)
    if (pacer.due()) await pacer.turn()
  }
  return grouped(rowOf, rows, pacer)
}

/** Positions by falling length; those of one length in their own order (a counting sort). */
async function byLength(lengths: Uint32Array, capacity: number, pacer: Pacer): Promise<Uint32Array> {
  const starts = new Uint32Array(capacity + 2)
  for (const length of lengths) starts[capacity - length + 1]! += 1
  for (let index = 1; index < starts.length; index++) starts[index]! += starts[index - 1]!
  const sorted = new Uint32Array(lengths.length)
  for (let position = 0; position < lengths.length; position++) {
    sorted[starts[capacity - lengths[position]!]!++] = position
    if (pacer.due()) await pacer.turn()
  }
  return sorted
}

/** Positions by row. */
async function grouped(rowOf: Uint32Array, rows: number, pacer: Pacer): Promise<Packing> {
  const starts = new Uint32Array(rows + 1)
  for (const row of rowOf) starts[row + 1]! += 1
  for (let row = 0; row < rows; row++) starts[row + 1]! += starts[row]!
  const next = starts.slice()
  const positions = new Uint32Array(rowOf.length)
  for (let position = 0; position < rowOf.length; position++) {
    positions[next[rowOf[position]!]!++] = position
    if (pacer.due()) await pacer.turn()
  }
  return { rows, row: (index) => positions.subarray(starts[index], starts[index + 1]) }
}

const none = 0xffffffff

/** Rows that are not full, found by the least space that is enough: a stack per space, and a bit for each that has one. */
class RowsBySpace {
  readonly #heads: Uint32Array
  readonly #below: Uint32Array
  /** Bits of the spaces that have a row; bits of the words that have a bit; and so on, up to one word. */
  readonly #levels: Uint32Array[] = []

  constructor(capacity: number, rows: number) {
    this.#heads = new Uint32Array(capacity + 1).fill(none)
    this.#below = new Uint32Array(rows)
    for (let bits = capacity + 1; bits > 1 || this.#levels.length === 0; bits = Math.ceil(bits / 32))
      this.#levels.push(new Uint32Array(Math.ceil(bits / 32)))
  }

  put(row: number, space: number): void {
    if (space === 0) return
    this.#below[row] = this.#heads[space]!
    this.#heads[space] = row
    for (let [level, bit] = [0, space]; level < this.#levels.length; level++, bit >>>= 5)
      this.#levels[level]![bit >>> 5]! |= 1 << (bit & 31)
  }

  /** Takes out the row with the least space for `length` tokens. */
  take(length: number): { readonly row?: number; readonly left?: number } {
    const space = this.#firstFrom(length)
    if (space === undefined) return {}
    const row = this.#heads[space]!
    this.#heads[space] = this.#below[row]!
    if (this.#heads[space] === none) this.#clear(space)
    return { row, left: space }
  }

  #clear(space: number): void {
    for (let [level, bit] = [0, space]; level < this.#levels.length; level++, bit >>>= 5) {
      const words = this.#levels[level]!
      words[bit >>> 5]! &= ~(1 << (bit & 31))
      if (words[bit >>> 5] !== 0) return
    }
  }

  /** Up through the levels until a set bit lies ahead, then down to it. */
  #firstFrom(start: number): number | undefined {
    let bit = start
    for (let level = 0; level < this.#levels.length; level++) {
      const word = this.#levels[level]![bit >>> 5] ?? 0
      const ahead = word & (-1 << (bit & 31))
      if (ahead !== 0) return this.#down(level, (bit & ~31) + lowestBit(ahead))
      bit = (bit >>> 5) + 1
    }
    return undefined
  }

  #down(level: number, found: number): number {
    let bit = found
    for (let below = level - 1; below >= 0; below--) bit = bit * 32 + lowestBit(this.#levels[below]![bit]!)
    return bit
  }
}

const lowestBit = (word: number): number => 31 - Math.clz32(word & -word)
