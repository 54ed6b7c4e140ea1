/** Passes text through until a stop string appears; holds back an end that may be the beginning of one. */
export class StopFilter {
  readonly #stops: readonly string[]
  #held = ''
  #stopped = false

  constructor(stops: readonly string[]) {
    this.#stops = stops
  }

  /** True once a stop string was seen; everything after it is dropped. */
  get stopped(): boolean {
    return this.#stopped
  }

  /** The text that is safe to show now. */
  push(text: string): string {
    if (this.#stopped) return ''
    const all = this.#held + text
    const cut = Math.min(...this.#stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0))
    if (Number.isFinite(cut)) {
      this.#stopped = true
      this.#held = ''
      return all.slice(0, cut)
    }
    const keep = Math.max(0, ...this.#stops.map((stop) => overlap(all, stop)))
    this.#held = all.slice(all.length - keep)
    return all.slice(0, all.length - keep)
  }

  /** What is held back, when no more text comes. */
  flush(): string {
    const rest = this.#held
    this.#held = ''
    return rest
  }
}

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length -= 1)
    if (text.endsWith(stop.slice(0, length))) return length
  return 0
}
