/** Which tokens a grammar allows next: all tokens are walked in lexical order, shared beginnings only once. */
import type { Automaton, State } from './automaton.js'

/** A vocabulary in lexical order of its tokens' bytes. */
export class TokenTable {
  /** Token ids, in order. */
  readonly ids: readonly number[]
  readonly #bytes: readonly Uint8Array[]
  /** How many bytes each token shares with the one before it. */
  readonly #shared: Uint16Array

  constructor(tokens: readonly (Uint8Array | undefined)[]) {
    const filled = [...tokens.entries()].filter((entry): entry is [number, Uint8Array] => (entry[1]?.length ?? 0) > 0)
    filled.sort(([, a], [, b]) => Buffer.compare(a, b))
    this.ids = filled.map(([id]) => id)
    this.#bytes = filled.map(([, bytes]) => bytes)
    this.#shared = Uint16Array.from(this.#bytes, (bytes, index) => sharedLength(bytes, this.#bytes[index - 1]))
  }

  /** Calls `allow` with every token that may follow `from`, and the state that it leads to. */
  walk(automaton: Automaton, from: State, allow: (id: number, after: State) => void): void {
    const states: State[] = [from]
    let alive = 0
    for (const [index, bytes] of this.#bytes.entries()) {
      const shared = this.#shared[index]!
      // It begins with what the grammar has refused in an earlier token.
      if (shared > alive) continue
      alive = shared
      while (alive < bytes.length) {
        const next = automaton.step(states[alive]!, bytes[alive]!)
        if (!next) break
        alive += 1
        states[alive] = next
      }
      if (alive === bytes.length) allow(this.ids[index]!, states[alive]!)
    }
  }
}

function sharedLength(a: Uint8Array, b: Uint8Array | undefined): number {
  const most = Math.min(a.length, b?.length ?? 0, 0xffff)
  for (let at = 0; at < most; at += 1) if (a[at] !== b![at]) return at
  return most
}

/** Masks for one model's vocabulary, kept per state. */
export class TokenMasks {
  readonly #kept = new WeakMap<State, { readonly mask: Uint32Array; readonly furthest: number }>()

  constructor(
    readonly automaton: Automaton,
    readonly table: TokenTable,
    readonly ends: readonly number[],
    /** Size of the model's vocabulary. */
    readonly vocabularySize: number,
  ) {}

  /** One bit per token that keeps the text within the grammar and lets it end within `remaining` tokens, this one included. */
  mask(state: State, remaining: number): Uint32Array {
    let kept = this.#kept.get(state)
    if (!kept) {
      kept = this.#walked(state, Number.POSITIVE_INFINITY)
      this.#kept.set(state, kept)
    }
    // Any byte can be a token of its own, so bytes to the end bound the tokens to it.
    return kept.furthest < remaining ? kept.mask : this.#walked(state, remaining - 1).mask
  }

  #walked(state: State, mostBytes: number): { mask: Uint32Array; furthest: number } {
    const mask = new Uint32Array(Math.ceil(this.vocabularySize / 32))
    let furthest = 0
    this.table.walk(this.automaton, state, (id, { leastBytes }) => {
      if (leastBytes > mostBytes || id >= this.vocabularySize) return
      furthest = Math.max(furthest, leastBytes)
      mask[id >> 5]! |= 1 << (id & 31)
    })
    if (state.accepts) for (const end of this.ends) mask[end >> 5]! |= 1 << (end & 31)
    return { mask, furthest }
  }
}
