/** The pages of one text. */
import { type PageTable, pageKey } from './page_table.js'

export class TextPages {
  readonly #table: PageTable
  readonly #pages: number[] = []
  /** By page, from the first on: what its contents are named, as far as they are known. */
  readonly #names: string[] = []

  constructor(table: PageTable) {
    this.#table = table
  }

  /** In the order of the text. */
  get pages(): readonly number[] {
    return this.#pages
  }

  /** Where the keys and values of a position lie. */
  slot(position: number): number {
    const { pageTokens } = this.#table
    return this.#pages[Math.floor(position / pageTokens)]! * pageTokens + (position % pageTokens)
  }

  /** Whether there are pages for the first `length` tokens, and `spare` ones beside. */
  hasRoom(length: number, spare = 0): boolean {
    return this.#missing(length) + spare <= this.#table.available
  }

  /** Takes the pages that the first `length` tokens need. @returns false, with nothing taken, when there are too few */
  reserve(length: number): boolean {
    if (!this.hasRoom(length)) return false
    for (let missing = this.#missing(length); missing > 0; missing -= 1) this.#pages.push(this.#table.take()!)
    return true
  }

  /**
   * By what the page at `position` will be known, where it begins there, ends before `most`, and all pages before it are
   * known: texts with the same key are about to compute the same.
   */
  nextKey(root: string, tokens: ArrayLike<number>, position: number, most: number): string | undefined {
    const { pageTokens } = this.#table
    const index = position / pageTokens
    if (index !== this.#names.length || position + pageTokens > most) return undefined
    return pageKey(this.#names[index - 1] ?? root, tokens, position, position + pageTokens)
  }

  /** Goes on with pages that are known already. @returns the position behind them, at most `most` */
  adopt(root: string, tokens: ArrayLike<number>, position: number, most: number): number {
    const { pageTokens } = this.#table
    for (let at = position; ; at += pageTokens) {
      const key = this.nextKey(root, tokens, at, most)
      const page = key === undefined ? undefined : this.#table.find(key)
      if (page === undefined) return at
      this.#table.share(page)
      const index = this.#names.length
      if (index < this.#pages.length) this.#table.release(this.#pages[index]!)
      this.#pages[index] = page
      this.#names.push(this.#table.nameOf(page))
    }
  }

  /** Makes the full pages among the first `length` tokens, all computed, known. */
  commit(root: string, tokens: ArrayLike<number>, length: number): void {
    const { pageTokens } = this.#table
    while ((this.#names.length + 1) * pageTokens <= length) {
      const index = this.#names.length
      const start = index * pageTokens
      const key = pageKey(this.#names[index - 1] ?? root, tokens, start, start + pageTokens)
      this.#names.push(this.#table.know(this.#pages[index]!, key))
    }
  }

  /** Gives all pages back, the last first: ends of texts are of less use to others than beginnings. */
  release(): void {
    for (const page of this.#pages.reverse()) this.#table.release(page)
    this.#pages.length = 0
    this.#names.length = 0
  }

  #missing(length: number): number {
    return Math.max(0, Math.ceil(length / this.#table.pageTokens) - this.#pages.length)
  }
}
