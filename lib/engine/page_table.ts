/**
 * Pages of keys and values: who uses each of them, and what the full ones hold, so that texts that begin alike share
 * them (Kwon et al. 2023, arXiv 2309.06180). A page is known by its tokens and the page before it; one that nobody uses
 * stays known until its place is needed, the least recently used first. The numbers themselves lie in paged_cache.ts.
 */

/** What a full page holds: so many tokens behind the page, or the root, that `parent` names. */
export const pageKey = (parent: string, tokens: ArrayLike<number>, start: number, end: number): string => {
  let key = parent
  for (let i = start; i < end; i += 1) key += `:${tokens[i]}`
  return key
}

export class PageTable {
  readonly #free: number[]
  /** Known pages that nobody uses, least recently used first. */
  readonly #idle = new Set<number>()
  readonly #users: Int32Array
  readonly #known = new Map<string, number>()
  /** By page: the key that it is known by, and the number that names its contents. */
  readonly #keys: (string | undefined)[]
  readonly #names: Float64Array
  #nextName = 0

  constructor(
    readonly pages: number,
    /** Tokens of a page. */
    readonly pageTokens: number,
  ) {
    this.#free = Array.from({ length: pages }, (_, i) => pages - 1 - i)
    this.#users = new Int32Array(pages)
    this.#keys = new Array<string | undefined>(pages).fill(undefined)
    this.#names = new Float64Array(pages)
  }

  /** Pages that can be taken. */
  get available(): number {
    return this.#free.length + this.#idle.size
  }

  /** Pages in use. */
  get used(): number {
    return this.pages - this.available
  }

  /** The page that is known by a key. */
  find(key: string): number | undefined {
    return this.#known.get(key)
  }

  /** What the pages behind a known one name as their parent. */
  nameOf(page: number): string {
    return `${this.#names[page]}`
  }

  /** Takes part in the use of a known page. */
  share(page: number): void {
    this.#idle.delete(page)
    this.#users[page]! += 1
  }

  /** A page for new contents, or undefined when all are in use. */
  take(): number | undefined {
    let page = this.#free.pop()
    if (page === undefined) {
      const [oldest] = this.#idle
      if (oldest === undefined) return undefined
      this.#idle.delete(oldest)
      this.#forget(oldest)
      page = oldest
    }
    this.#users[page] = 1
    return page
  }

  /** Ends one use of a page. */
  release(page: number): void {
    this.#users[page]! -= 1
    if (this.#users[page]! > 0) return
    if (this.#keys[page] === undefined) this.#free.push(page)
    else this.#idle.add(page)
  }

  /** Makes a full page known. Where another one with the same contents is, that one stays. @returns the contents' name */
  know(page: number, key: string): string {
    const known = this.#known.get(key)
    if (known !== undefined) return this.nameOf(known)
    this.#known.set(key, page)
    this.#keys[page] = key
    this.#names[page] = this.#nextName
    this.#nextName += 1
    return this.nameOf(page)
  }

  /** Forgets what the pages hold: the weights have changed. */
  clear(): void {
    for (const page of this.#known.values()) this.#keys[page] = undefined
    this.#known.clear()
    this.#free.push(...this.#idle)
    this.#idle.clear()
  }

  #forget(page: number): void {
    this.#known.delete(this.#keys[page]!)
    this.#keys[page] = undefined
  }
}
