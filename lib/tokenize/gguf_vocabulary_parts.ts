/** What all kinds of tokenizers in GGUF files are read from, and the parts that they share. Runs in the worker. */
import type { GgufMetadata } from '../formats/gguf.js'
import type { Json } from './tokenizer_files.js'

/** The metadata of a file, as far as a tokenizer needs it. */
export interface Gguf {
  readonly path: string
  readonly metadata: GgufMetadata
}

/** The tokens of a file. */
export interface GgufVocabulary {
  readonly gguf: Gguf
  readonly tokens: readonly string[]
  /** One of {@link tokenKinds} for each token. */
  readonly types: readonly number[]
  /** The token that `tokenizer.ggml.<name>_token_id` names. @throws ERR_HEDDLE_FORMAT when there is no such token */
  tokenId(name: string): number | undefined
  /** An array of numbers. @throws ERR_HEDDLE_FORMAT when it is missing */
  numbers(key: string): ArrayLike<number>
  /** An array of strings. @throws ERR_HEDDLE_FORMAT when it is missing */
  strings(key: string): readonly string[]
}

/** Values of `tokenizer.ggml.token_type`. */
export const tokenKinds = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const

/** Which tokens stand around every text. */
interface Around {
  readonly begin: number | undefined
  readonly end: number | undefined
  /** The second text of a pair begins with the token, too. */
  readonly repeats: boolean
}

/** The post-processor that puts tokens around texts, the second ones being of type 1; null without any. */
export function templateOf(tokens: readonly string[], { begin, end, repeats }: Around): Json | null {
  const ids = [begin, end].filter((id) => id !== undefined)
  if (ids.length === 0) return null
  const special = (id: number | undefined, type: number): Json[] =>
    id === undefined ? [] : [{ SpecialToken: { id: tokens[id], type_id: type } }]
  const around = (text: 'A' | 'B', type: number, first = begin): Json[] => [
    ...special(first, type),
    { Sequence: { id: text, type_id: type } },
    ...special(end, type),
  ]
  return {
    type: 'TemplateProcessing',
    single: around('A', 0),
    pair: [...around('A', 0), ...around('B', 1, repeats ? begin : undefined)],
    special_tokens: Object.fromEntries(
      ids.map((id) => [tokens[id]!, { id: tokens[id], ids: [id], tokens: [tokens[id]] }]),
    ),
  }
}
