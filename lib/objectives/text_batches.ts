/** Texts as token ids for networks that see each text whole: cut at its end, but for the tokens that close every text. */
import { bucketLength } from '../data/collate.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'

/** Rows of texts, row-major [rows, length]. */
export interface TextBatch {
  readonly rows: number
  readonly length: number
  readonly ids: Int32Array
  /** 1 for a token, 0 for padding. */
  readonly mask: Int32Array
  readonly tokens: number
}

/** Token ids of a text, special ones included; what the tokenizer puts at the end stays there: [CLS] text [SEP]. */
export async function encodedText(tokenizer: Tokenizer, text: string, maxLength: number): Promise<Int32Array> {
  const ids = await tokenizer.encode(text)
  if (ids.length <= maxLength) return ids
  const tail = Math.max(0, (await tokenizer.encode('')).length - 1)
  return Int32Array.of(...ids.subarray(0, maxLength - tail), ...ids.subarray(ids.length - tail))
}

/** Texts as rows of a common length; an absent one is a row of padding. */
export function textBatch(texts: readonly (Int32Array | undefined)[], maxLength: number): TextBatch {
  const rows = texts.length
  const length = bucketLength(Math.max(1, ...texts.map((ids) => ids?.length ?? 0)), maxLength)
  const ids = new Int32Array(rows * length)
  const mask = new Int32Array(rows * length)
  let tokens = 0
  for (const [row, text] of texts.entries()) {
    if (!text) continue
    ids.set(text, row * length)
    mask.fill(1, row * length, row * length + text.length)
    tokens += text.length
  }
  return { rows, length, ids, mask, tokens }
}
