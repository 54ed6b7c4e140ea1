/**
 * WordPiece vocabularies of GGUF files (`tokenizer.ggml.model` = "bert") as the tokenizer.json of Hugging Face's BERT.
 * llama.cpp marks the pieces that begin a word, BERT those that do not. Runs in the worker.
 */
import { type GgufVocabulary, templateOf, tokenKinds } from './gguf_vocabulary_parts.js'
import type { Json } from './tokenizer_files.js'

const wordStart = '\u2581'

/** Everything of tokenizer.json but the added tokens. */
export function wordPiece({ tokens, types, tokenId }: GgufVocabulary): Json {
  const isPiece = (id: number): boolean => types[id] !== tokenKinds.control && types[id] !== tokenKinds.unknown
  const spelled = tokens.map((token, id) => {
    if (!isPiece(id)) return token
    return token.startsWith(wordStart) ? token.slice(wordStart.length) : `##${token}`
  })
  // A vocabulary in which nothing is written large was made from text in small letters.
  const lowercase = !spelled.some((token, id) => isPiece(id) && /\p{Lu}/u.test(token))
  const unknown = tokenId('unknown')
  return {
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: templateOf(tokens, {
      begin: tokenId('cls') ?? tokenId('bos'),
      // llama.cpp's spelling.
      end: tokenId('seperator') ?? tokenId('eos'),
      repeats: false,
    }),
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: unknown === undefined ? '[UNK]' : tokens[unknown],
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(spelled.map((token, id) => [token, id])),
    },
  }
}
