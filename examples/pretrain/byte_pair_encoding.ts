/** Trains a byte-level BPE vocabulary (Sennrich et al. 2016, arXiv 1508.07909; GPT-2's byte alphabet) on a text. */

/** GPT-2's split of text into words, which merges never cross. */
const words = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu

export interface Vocabulary {
  readonly tokens: readonly string[]
  readonly merges: readonly (readonly [string, string])[]
}

interface Word {
  symbols: string[]
  readonly count: number
}

/** Learns merges until there are `size` tokens, most frequent pair first, ties by the pair's own order. */
export function trainBytePairs(text: string, size: number): Vocabulary {
  const alphabet = byteAlphabet()
  const counts = new Map<string, number>()
  for (const [word] of text.matchAll(words)) counts.set(word, (counts.get(word) ?? 0) + 1)
  const list = [...counts].map(([word, count]): Word => ({ symbols: toSymbols(word, alphabet), count }))
  const pairs = new PairIndex(list)
  const tokens = [...alphabet]
  const merges: [string, string][] = []
  while (tokens.length < size) {
    const best = pairs.mostFrequent()
    if (!best) break
    merges.push(best)
    tokens.push(best[0] + best[1])
    pairs.merge(best)
  }
  return { tokens, merges }
}

/** A tokenizer.json that Hugging Face's libraries read. */
export function tokenizerJson({ tokens, merges }: Vocabulary, endOfText: string): unknown {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  const special = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [{ id: 0, content: endOfText, ...special }],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries([endOfText, ...tokens].map((token, id) => [token, id])),
      merges,
    },
  }
}

/** Counts of neighbouring symbols, kept up to date while words change. */
class PairIndex {
  readonly #counts = new Map<string, number>()
  readonly #holders = new Map<string, Set<Word>>()

  constructor(list: readonly Word[]) {
    for (const word of list) this.#addWord(word, 1)
  }

  mostFrequent(): [string, string] | undefined {
    let best = ''
    let most = 1
    for (const [pair, count] of this.#counts)
      if (count > most || (count === most && best !== '' && pair < best)) {
        best = pair
        most = count
      }
    return best === '' ? undefined : (best.split(' ') as [string, string])
  }

  merge([left, right]: readonly [string, string]): void {
    for (const word of this.#holders.get(`${left} ${right}`) ?? []) {
      this.#addWord(word, -1)
      word.symbols = joined(word.symbols, left, right)
      this.#addWord(word, 1)
    }
  }

  #addWord(word: Word, sign: 1 | -1): void {
    for (let i = 0; i + 1 < word.symbols.length; i += 1) {
      const pair = `${word.symbols[i]} ${word.symbols[i + 1]}`
      const count = (this.#counts.get(pair) ?? 0) + sign * word.count
      if (count > 0) this.#counts.set(pair, count)
      else this.#counts.delete(pair)
      if (sign > 0) this.#holders.set(pair, (this.#holders.get(pair) ?? new Set()).add(word))
    }
  }
}

function joined(symbols: readonly string[], left: string, right: string): string[] {
  const result: string[] = []
  for (let i = 0; i < symbols.length; i += 1) {
    const isPair = symbols[i] === left && symbols[i + 1] === right
    result.push(isPair ? left + right : symbols[i]!)
    if (isPair) i += 1
  }
  return result
}

/** GPT-2's printable character for each byte: bytes that print stand for themselves, others from U+0100 on. */
function byteAlphabet(): string[] {
  const isPrintable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isPrintable(byte) ? byte : next++))
}

const utf8 = new TextEncoder()

const toSymbols = (word: string, alphabet: readonly string[]): string[] =>
  Array.from(utf8.encode(word), (byte) => alphabet[byte]!)
