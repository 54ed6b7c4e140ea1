/** Rows of the adapter pools, handed out in ranges. */

/** Consecutive rows of every pool. */
export interface RowRange {
  readonly first: number
  readonly rank: number
}

/** First-fit allocation of rows; neighbouring free ranges are joined. */
export class RowRanges {
  /** Sorted by first row, never touching. */
  #free: RowRange[]

  constructor(readonly rows: number) {
    this.#free = rows > 0 ? [{ first: 0, rank: rows }] : []
  }

  get usedRows(): number {
    return this.rows - this.#free.reduce((sum, { rank }) => sum + rank, 0)
  }

  /** `rank` > 0 consecutive rows, or undefined where no free range is long enough. */
  take(rank: number): RowRange | undefined {
    const at = this.#free.findIndex((range) => range.rank >= rank)
    if (at < 0) return undefined
    const { first, rank: length } = this.#free[at]!
    this.#free.splice(at, 1, ...(length > rank ? [{ first: first + rank, rank: length - rank }] : []))
    return { first, rank }
  }

  /** Gives back a range that `take` returned. */
  give(range: RowRange): void {
    const joined: { first: number; rank: number }[] = []
    for (const { first, rank } of [...this.#free, range].sort((x, y) => x.first - y.first)) {
      const last = joined.at(-1)
      if (last && last.first + last.rank === first) last.rank += rank
      else joined.push({ first, rank })
    }
    this.#free = joined
  }
}
