/** Text as the engine makes it, in pieces for clients: each with the tokens that it came from. */
import type { Engine } from '../../engine/engine.js'
import type { EngineRequestOptions } from '../../engine/options.js'
import type { FinishReason, GeneratedToken } from '../../model.js'
import type { TextFilter } from './tools.js'

/** Some text that became certain, never none but at the end. */
export interface TextPiece {
  readonly text: string
  /** Those of the text; an end token, and tokens of a stop string, are none of it. */
  readonly tokens: readonly GeneratedToken[]
  /** Set at the last piece; `filter` when the filter stopped the text. */
  readonly end?: FinishReason | 'filter'
}

/** Counts every token that was made, end tokens and those of stop strings included. */
export interface TokenCount {
  completion: number
}

/** What {@link textPieces} needs besides the engine. */
export interface TextRequest {
  readonly prompt: Int32Array
  readonly options: EngineRequestOptions
  readonly count: TokenCount
  /** Ends the text early. */
  readonly filter?: TextFilter | undefined
}

/** Makes one text. @throws as `Engine.generateTokens` */
export async function* textPieces(
  engine: Engine,
  { prompt, options, count, filter }: TextRequest,
): AsyncGenerator<TextPiece, void, void> {
  const ends = new Set(engine.model.tokenizer.eosTokenIds)
  let tokens: GeneratedToken[] = []
  for await (const token of engine.generateTokens(prompt, options)) {
    count.completion += 1
    if (!ends.has(token.token)) tokens.push(token)
    let text = filter ? filter.push(token.text) : token.text
    if (token.finishReason) text += filter?.flush() ?? ''
    const end = filter?.stopped ? 'filter' : token.finishReason
    if (end === undefined && text === '') continue
    // Where there is no text at the end, it was held back for a stop string that came.
    const shown = text === '' && end !== 'length' ? [] : tokens
    yield end === undefined ? { text, tokens: shown } : { text, tokens: shown, end }
    if (end !== undefined) return
    tokens = []
  }
}

/** What several texts give, as it comes; all end when one fails. */
export async function* together<T>(texts: readonly AsyncGenerator<T, void, void>[]): AsyncGenerator<[number, T]> {
  const next = (index: number) => {
    const result = texts[index]!.next().then((result) => ({ index, result }))
    // Whoever reads may stop at any time, and then nobody waits for it.
    result.catch(() => {})
    return result
  }
  const waiting = new Map(texts.map((_, index) => [index, next(index)]))
  try {
    while (waiting.size > 0) {
      const { index, result } = await Promise.race(waiting.values())
      if (result.done) waiting.delete(index)
      else {
        waiting.set(index, next(index))
        yield [index, result.value]
      }
    }
  } finally {
    for (const text of texts) text.return().catch(() => {})
  }
}
