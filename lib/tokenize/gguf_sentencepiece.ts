/**
 * SentencePiece vocabularies of GGUF files (`tokenizer.ggml.model` = "llama": Llama 1 and 2, Mistral, Gemma, Phi-3) as
 * the tokenizer.json of Hugging Face: a BPE whose merges are those that the pieces' scores imply. Runs in the worker.
 */
import { formatError } from '../formats/byte_source.js'
import { ggufValue } from '../formats/gguf.js'
import { type GgufVocabulary, templateOf, tokenKinds } from './gguf_vocabulary_parts.js'
import type { Json } from './tokenizer_files.js'

/** Stands for a space. */
const space = '\u2581'

/** Everything of tokenizer.json but the added tokens. @throws ERR_HEDDLE_FORMAT when scores are missing */
export function sentencePiece(vocabulary: GgufVocabulary): Json {
  const { gguf, tokens, types, tokenId } = vocabulary
  const isGemma = ggufValue(gguf, 'general.architecture', 'string', '').startsWith('gemma')
  const hasPrefix = ggufValue(gguf, 'tokenizer.ggml.add_space_prefix', 'boolean', !isGemma)
  const pieces = isGemma ? tokens.map(respelled) : tokens
  // Gemma's scores do not follow the order in which its pieces were merged; that of the vocabulary does.
  const ranks = isGemma ? Float64Array.from(pieces, (_, id) => -id) : scoresOf(vocabulary)
  const replaced = { type: 'Replace', pattern: { String: ' ' }, content: space }
  const unknown = tokenId('unknown')
  const begin = ggufValue(gguf, 'tokenizer.ggml.add_bos_token', 'boolean', true) ? tokenId('bos') : undefined
  const end = ggufValue(gguf, 'tokenizer.ggml.add_eos_token', 'boolean', false) ? tokenId('eos') : undefined
  return {
    normalizer: hasPrefix
      ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: space }, replaced] }
      : replaced,
    pre_tokenizer: null,
    post_processor: templateOf(tokens, { begin, end, repeats: true }),
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: space }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(hasPrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: unknown === undefined ? null : tokens[unknown],
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: types.includes(tokenKinds.byte),
      ignore_merges: false,
      vocab: Object.fromEntries(pieces.map((token, id) => [token, id])),
      merges: impliedMerges(gguf.path, pieces, types, ranks),
    },
  }
}

/** Gemma's files spell pieces of several spaces with spaces. */
const respelled = (token: string): string => (/^ {2,}$/.test(token) ? space.repeat(token.length) : token)

function scoresOf({ gguf, tokens, numbers }: GgufVocabulary): ArrayLike<number> {
  const scores = numbers('tokenizer.ggml.scores')
  if (scores.length === tokens.length) return scores
  throw formatError(`${gguf.path}: tokenizer.ggml.scores`, `${tokens.length} scores`, `${scores.length}`)
}

/** Far beyond any real piece; bounds the work that a hostile file can cause. */
const longestPiece = 1024

interface Merge {
  readonly pair: readonly [string, string]
  readonly rank: number
  /** Characters of the left part. */
  readonly left: number
}

/**
 * Every way to put a piece together from two others, those of the highest score first: what SentencePiece does when it
 * joins, again and again, the two neighbours whose union has the highest score.
 * @throws ERR_HEDDLE_FORMAT on a piece of absurd length
 */
function impliedMerges(
  path: string,
  tokens: readonly string[],
  types: readonly number[],
  ranks: ArrayLike<number>,
): (readonly [string, string])[] {
  const joinable: readonly number[] = [tokenKinds.normal, tokenKinds.userDefined]
  const pieces = new Set(tokens.filter((_, id) => joinable.includes(types[id]!)))
  const merges: Merge[] = []
  for (const [id, token] of tokens.entries()) {
    if (!pieces.has(token)) continue
    const characters = [...token]
    if (characters.length > longestPiece)
      throw formatError(
        `${path}: tokenizer.ggml.tokens`,
        `pieces of at most ${longestPiece} characters`,
        `${characters.length}`,
      )
    for (let left = 1, at = 0; left < characters.length; left += 1) {
      at += characters[left - 1]!.length
      const pair = [token.slice(0, at), token.slice(at)] as const
      if (pieces.has(pair[0]) && pieces.has(pair[1])) merges.push({ pair, rank: ranks[id]!, left })
    }
  }
  return merges.sort((a, b) => b.rank - a.rank || b.left - a.left).map(({ pair }) => pair)
}
