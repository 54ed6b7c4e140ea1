/** The tokenizer in the metadata of a GGUF file, as the tokenizer.json that it was once made from. Runs in the worker. */
import { type ByteSource, formatError, openBlockingSource } from '../formats/byte_source.js'
import { type GgufArray, ggufValue, readGgufHeader, readGgufNumbers, readGgufStrings } from '../formats/gguf.js'
import { sentencePiece } from './gguf_sentencepiece.js'
import { type Gguf, type GgufVocabulary, templateOf, tokenKinds } from './gguf_vocabulary_parts.js'
import { wordPiece } from './gguf_wordpiece.js'
import type { Json, TokenizerFiles } from './tokenizer_files.js'

/** How a kind of byte-level BPE cuts text before merging, by its name in `tokenizer.ggml.pre`. */
interface PreTokenization {
  readonly steps: readonly Json[]
  readonly normalizer: Json | null
  /** A word that is in the vocabulary as a whole is not merged step by step. */
  readonly ignoreMerges: boolean
  /** Whether a text starts with the bos token where the file does not say. */
  readonly addsBos: boolean
}

const byteLevel = (useRegex: boolean): Json => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
})

const splitBy = (regex: string): Json => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior: 'Isolated',
  invert: false,
})

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
const afterWords = ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+'
const llama3Words = `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|${afterWords}`
const qwen2Words = `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|${afterWords}`

const gpt2: PreTokenization = { steps: [byteLevel(true)], normalizer: null, ignoreMerges: false, addsBos: false }
const smollm = { ...gpt2, steps: [{ type: 'Digits', individual_digits: true }, byteLevel(true)] }
const llama3 = { ...gpt2, steps: [splitBy(llama3Words), byteLevel(false)], ignoreMerges: true, addsBos: true }
const qwen2 = { ...gpt2, steps: [splitBy(qwen2Words), byteLevel(false)], normalizer: { type: 'NFC' } }

const preTokenizations: ReadonlyMap<string, PreTokenization> = new Map([
  ['default', gpt2],
  ['gpt-2', gpt2],
  ['smollm', smollm],
  ['starcoder', smollm],
  ['refact', smollm],
  ['llama-bpe', llama3],
  ['llama3', llama3],
  ['llama-v3', llama3],
  ['qwen2', qwen2],
])

/** The name in `tokenizer.ggml.pre` of how a tokenizer.json cuts text, if llama.cpp has one. */
export function preTokenizationName({ pre_tokenizer: pre, normalizer }: Json): string | undefined {
  const steps = (pre as Json | null)?.type === 'Sequence' ? ((pre as Json).pretokenizers as readonly Json[]) : [pre]
  const wanted = JSON.stringify([(normalizer as Json | null)?.type ?? null, ...steps.map(essence)])
  const found = [...preTokenizations].find(
    ([name, known]) =>
      name !== 'default' && JSON.stringify([known.normalizer?.type ?? null, ...known.steps.map(essence)]) === wanted,
  )
  return found?.[0]
}

/** What of a step changes where words end. */
function essence(step: unknown): unknown {
  const { type, add_prefix_space, use_regex, pattern, behavior, invert, individual_digits } = (step ?? {}) as Json
  if (type === 'ByteLevel') return { type, prefix: add_prefix_space === true, regex: use_regex !== false }
  return { type, pattern, behavior, invert, individual_digits }
}

/**
 * Reads the tokenizer of a GGUF file.
 * @throws ERR_HEDDLE_FORMAT for a damaged file or a kind of tokenizer that Heddle does not know
 */
export async function readGgufTokenizer(path: string): Promise<TokenizerFiles> {
  const source = openBlockingSource(path)
  try {
    const { metadata } = await readGgufHeader(source)
    return tokenizerFiles(source, { path, metadata })
  } finally {
    source.close()
  }
}

/** How a vocabulary becomes everything of tokenizer.json but the added tokens, by `tokenizer.ggml.model`. */
const models: ReadonlyMap<string, (vocabulary: GgufVocabulary) => Json> = new Map([
  ['gpt2', byteLevelBpe],
  ['llama', sentencePiece],
  ['bert', wordPiece],
])

function tokenizerFiles(source: ByteSource, gguf: Gguf): TokenizerFiles {
  const name = ggufValue(gguf, 'tokenizer.ggml.model', 'string')
  const model = models.get(name)
  if (!model)
    throw formatError(
      `${gguf.path}: tokenizer.ggml.model`,
      `one of ${[...models.keys()].join(', ')}`,
      `"${name}"`,
      'Load the model from its Hugging Face folder, which has a tokenizer.json',
    )
  const vocabulary = vocabularyOf(source, gguf)
  const { tokenId } = vocabulary
  const template = gguf.metadata.get('tokenizer.chat_template')
  return {
    place: gguf.path,
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: addedTokens(vocabulary),
      ...model(vocabulary),
    },
    config: configOf(vocabulary),
    ...(typeof template === 'string' ? { chatTemplate: template } : {}),
    eosTokenIds: ['eos', 'eot', 'eom'].flatMap((each) => tokenId(each) ?? []),
  }
}

function vocabularyOf(source: ByteSource, gguf: Gguf): GgufVocabulary {
  const tokens = readGgufStrings(source, arrayOf(gguf, 'tokenizer.ggml.tokens'))
  const types = readGgufNumbers(source, arrayOf(gguf, 'tokenizer.ggml.token_type'))
  if (types.length !== tokens.length)
    throw formatError(`${gguf.path}: tokenizer.ggml.token_type`, `${tokens.length} types`, `${types.length}`)
  return {
    gguf,
    tokens,
    types,
    tokenId: (name) => tokenId(gguf, tokens, name),
    numbers: (key) => readGgufNumbers(source, arrayOf(gguf, key)),
    strings: (key) => readGgufStrings(source, arrayOf(gguf, key)),
  }
}

/** The vocabulary of GPT-2 and of most models since. */
function byteLevelBpe(vocabulary: GgufVocabulary): Json {
  const { gguf, tokens, tokenId: idOf } = vocabulary
  const pre = preTokenizationOf(gguf)
  const begin = ggufValue(gguf, 'tokenizer.ggml.add_bos_token', 'boolean', pre.addsBos) ? idOf('bos') : undefined
  return {
    normalizer: pre.normalizer,
    pre_tokenizer: pre.steps.length === 1 ? pre.steps[0] : { type: 'Sequence', pretokenizers: pre.steps },
    post_processor: templateOf(tokens, { begin, end: undefined, repeats: true }) ?? byteLevel(true),
    decoder: byteLevel(true),
    model: bpeModel(vocabulary, pre.ignoreMerges),
  }
}

function preTokenizationOf(gguf: Gguf): PreTokenization {
  const name = ggufValue(gguf, 'tokenizer.ggml.pre', 'string', 'default')
  const known = preTokenizations.get(name)
  if (!known)
    throw formatError(
      `${gguf.path}: tokenizer.ggml.pre`,
      `one of ${[...preTokenizations.keys()].join(', ')}`,
      `"${name}"`,
      'Load the model from its Hugging Face folder, which has a tokenizer.json',
    )
  return known
}

function arrayOf(gguf: Gguf, key: string): GgufArray {
  const value = gguf.metadata.get(key)
  if (typeof value === 'object') return value
  throw formatError(`${gguf.path}: ${key}`, 'an array', value === undefined ? 'nothing' : typeof value)
}

function tokenId(gguf: Gguf, tokens: readonly string[], name: string): number | undefined {
  const key = `tokenizer.ggml.${name}_token_id`
  if (!gguf.metadata.has(key)) return undefined
  const id = ggufValue(gguf, key, 'number')
  if (tokens[id] === undefined) throw formatError(`${gguf.path}: ${key}`, `an id below ${tokens.length}`, `${id}`)
  return id
}

/** Tokens that are cut out of a text before anything else. */
function addedTokens({ tokens, types }: GgufVocabulary): Json[] {
  const { unknown, control, userDefined } = tokenKinds
  const added: readonly number[] = [unknown, control, userDefined]
  return types.flatMap((type, id) =>
    added.includes(type)
      ? [
          {
            id,
            content: tokens[id],
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: type !== userDefined,
          },
        ]
      : [],
  )
}

function bpeModel({ gguf, tokens, strings }: GgufVocabulary, ignoreMerges: boolean): Json {
  const merges = strings('tokenizer.ggml.merges')
  const damaged = merges.findIndex((merge) => merge.indexOf(' ', 1) <= 0)
  if (damaged >= 0)
    throw formatError(`${gguf.path}: tokenizer.ggml.merges`, 'two tokens with a space between', `"${merges[damaged]}"`)
  return {
    type: 'BPE',
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: ignoreMerges,
    vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
    merges,
  }
}

function configOf({ gguf, tokens, tokenId: idOf }: GgufVocabulary): Json {
  const names = {
    bos_token: 'bos',
    eos_token: 'eos',
    unk_token: 'unknown',
    pad_token: 'padding',
    cls_token: 'cls',
    sep_token: 'seperator',
    mask_token: 'mask',
  }
  const special = Object.entries(names).flatMap(([field, name]) => {
    const id = idOf(name)
    return id === undefined ? [] : [[field, tokens[id]] as const]
  })
  const architecture = ggufValue(gguf, 'general.architecture', 'string')
  const context = gguf.metadata.get(`${architecture}.context_length`)
  return {
    ...Object.fromEntries(special),
    clean_up_tokenization_spaces: false,
    ...(typeof context === 'number' ? { model_max_length: context } : {}),
    tokenizer_class: 'PreTrainedTokenizerFast',
  }
}
