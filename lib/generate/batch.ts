/** Many prompts at once, each text as it would be alone. */
import type { FinishReason, GeneratedToken } from './text_in_progress.js'

/** A finished text. */
export interface GeneratedText {
  readonly text: string
  /** Its tokens, an end token included. */
  readonly tokens: readonly Omit<GeneratedToken, 'index' | 'finishReason'>[]
  readonly finishReason: FinishReason
}

/** Puts the tokens of several texts together, by the texts' index. */
export async function collectTexts(stream: AsyncIterable<GeneratedToken>, count: number): Promise<GeneratedText[]> {
  const tokens: GeneratedToken[][] = Array.from({ length: count }, () => [])
  for await (const token of stream) tokens[token.index]!.push(token)
  return tokens.map((list) => ({
    text: list.map(({ text }) => text).join(''),
    tokens: list.map(({ index: _, finishReason: __, ...token }) => token),
    finishReason: list.at(-1)!.finishReason!,
  }))
}

/** The text that the model finds likeliest, per token. */
export function bestOf(texts: readonly GeneratedText[]): GeneratedText {
  const score = ({ tokens }: GeneratedText): number =>
    tokens.reduce((sum, { logProbability }) => sum + (logProbability ?? 0), 0) / tokens.length
  return texts.reduce((best, text) => (score(text) > score(best) ? text : best))
}
