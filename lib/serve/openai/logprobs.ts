/** Log-probabilities of tokens as chats and completions report them. */
import { StringDecoder } from 'node:string_decoder'
import type { GeneratedToken } from '../../model.js'
import type { Tokenizer } from '../../tokenize/tokenizer.js'

/** A token as clients see it. */
interface Spelled {
  readonly token: string
  /** Null for special tokens, which are no text. */
  readonly bytes: readonly number[] | null
}

/** OpenAI's own floor, for what is next to impossible: JSON knows no infinity. */
const least = -9999
const finite = (logProbability: number): number => Math.max(least, logProbability)

/** `logprobs.content` of a chat. */
export async function chatLogprobs(tokenizer: Tokenizer, tokens: readonly GeneratedToken[], top: number) {
  const spell = await spelling(tokenizer, tokens)
  return tokens.map((each) => ({
    ...spell(each.token),
    logprob: finite(each.logProbability!),
    top_logprobs: each.top!.slice(0, top).map(({ token, logProbability }) => ({
      ...spell(token),
      logprob: finite(logProbability),
    })),
  }))
}

/** `logprobs` of a completion. @param offset characters before the first token */
export async function completionLogprobs(
  tokenizer: Tokenizer,
  tokens: readonly GeneratedToken[],
  { top, offset }: { readonly top: number; readonly offset: number },
) {
  const spell = await spelling(tokenizer, tokens)
  const names = tokens.map(({ token }) => completionName(spell(token)))
  const decoder = new StringDecoder()
  let at = offset
  const offsets = tokens.map(({ token }) => {
    const start = at
    at += characters(decoder.write(Buffer.from(spell(token).bytes ?? [])))
    return start
  })
  return {
    tokens: names,
    token_logprobs: tokens.map(({ logProbability }) => finite(logProbability!)),
    top_logprobs:
      top === 0
        ? null
        : tokens.map((each) =>
            Object.fromEntries(
              each
                .top!.slice(0, top)
                .map(({ token, logProbability }) => [completionName(spell(token)), finite(logProbability)]),
            ),
          ),
    text_offset: offsets,
  }
}

/** Unicode characters, as Python counts them. */
export const characters = (text: string): number => [...text].length

/** The spelling of all tokens that these tell of. */
async function spelling(tokenizer: Tokenizer, tokens: readonly GeneratedToken[]): Promise<(id: number) => Spelled> {
  const ids = [...new Set(tokens.flatMap(({ token, top = [] }) => [token, ...top.map((each) => each.token)]))]
  const bytes = await tokenizer.tokenBytes(ids)
  const spelled = await Promise.all(
    ids.map(async (id, index) => {
      const own = bytes[index]
      if (own === undefined) return [id, { token: await tokenizer.decode([id]), bytes: null }] as const
      return [id, { token: Buffer.from(own).toString(), bytes: [...own] }] as const
    }),
  )
  const byId = new Map<number, Spelled>(spelled)
  return (id) => byId.get(id)!
}

/** Completions spell a token that is no whole character by its bytes, so that names stay apart. */
const completionName = ({ token, bytes }: Spelled): string =>
  bytes !== null && token.includes('\ufffd')
    ? `bytes:${bytes.map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`
    : token
