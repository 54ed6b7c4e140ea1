/** Text to token ids and back, by the Hugging Face library. Blocking: it lives in the tokenizer's worker. */
import { createHash } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tokenizer as Library } from '@huggingface/tokenizers'
import { bucketLength } from '../data/collate.js'
import { HeddleError } from '../errors.js'
import { formatError } from '../formats/byte_source.js'
import { type ChatMessage, ChatTemplate, type RenderOptions } from './chat_template.js'
import { tokenBytesOf } from './token_bytes.js'
import type { Json, TokenizerFiles } from './tokenizer_files.js'

/** A conversation as token ids; `loss` is 1 at the tokens that the assistant wrote. */
export interface EncodedChat {
  readonly ids: Int32Array
  readonly loss: Uint8Array
}

/** Texts, or pairs of texts, as the rows of an encoder's input; all arrays are row-major `[rows, length]`. */
export interface EncodedBatch {
  readonly rows: number
  readonly length: number
  readonly ids: Int32Array
  /** 1 for tokens, 0 for padding. */
  readonly mask: Int32Array
  /** 1 for what the tokenizer counts to the second text, else 0. */
  readonly tokenTypes: Int32Array
}

/** How {@link Tokenizer.encodeBatch} lays texts out. */
export interface EncodeBatchOptions {
  /** Second texts, one for each of the texts. */
  readonly pairs?: readonly string[] | undefined
  /** Most tokens of a row, special tokens included. */
  readonly maxLength: number
}

/** What a tokenizer says about itself. */
export interface TokenizerInfo {
  readonly vocabSize: number
  /** Tokens at which generation stops; the tokenizer's own end-of-text token first. */
  readonly eosTokenIds: readonly number[]
  readonly bosTokenId: number | undefined
  readonly padTokenId: number | undefined
  readonly hasChatTemplate: boolean
  /** The Jinja source of the chat template. */
  readonly chatTemplate: string | undefined
}

const specialNames = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token']

/** Characters per call of the library, which keeps several objects per token. */
const pieceLength = 32_768

export class TextEncoding {
  readonly info: TokenizerInfo
  readonly files: TokenizerFiles
  readonly #library: Library
  readonly #template: ChatTemplate | undefined
  readonly #cleansUpSpaces: boolean
  readonly #frames = new Map<boolean, Frame>()
  #bytes: readonly (Uint8Array | undefined)[] | undefined
  /** The normalizer without the space that it puts before a text; undefined where it puts none. */
  readonly #inner: Normalize | null | undefined

  /** @throws ERR_HEDDLE_FORMAT when the library cannot make a tokenizer of the files */
  constructor(files: TokenizerFiles) {
    this.files = files
    this.#library = makeLibrary(files)
    this.#inner = innerNormalizer(files.tokenizer.normalizer)
    const special = specialTokens(files.config)
    this.#template =
      files.chatTemplate === undefined
        ? undefined
        : new ChatTemplate(files.chatTemplate, {
            place: files.place,
            variables: special,
            specialTokens: addedSpecialTokens(this.#library),
          })
    this.#cleansUpSpaces = files.config.clean_up_tokenization_spaces === true
    const idOf = (name: string) => this.#library.token_to_id(special[name] ?? '')
    this.info = {
      vocabSize: this.#library.model?.vocab.length ?? 0,
      eosTokenIds: [...new Set([idOf('eos_token') ?? [], files.eosTokenIds].flat())],
      bosTokenId: idOf('bos_token'),
      padTokenId: idOf('pad_token'),
      hasChatTemplate: this.#template !== undefined,
      chatTemplate: files.chatTemplate,
    }
  }

  /** @param goesOn the text is the rest of one whose beginning was encoded before */
  encode(text: string, addSpecialTokens: boolean, goesOn = false): Int32Array {
    const pieces = [...cut(text)].map((piece, index) => {
      const encode = (): number[] =>
        this.#library.encode(piece, { add_special_tokens: addSpecialTokens && index === 0 }).ids
      return goesOn || index > 0 ? this.#withoutPrefix(encode) : encode()
    })
    return Int32Array.from(pieces.length === 1 ? pieces[0]! : pieces.flat())
  }

  /** Encodes what does not begin a text: no space is put before its first word. */
  #withoutPrefix(encode: () => number[]): number[] {
    const library = this.#library as { normalizer: unknown }
    const { normalizer } = library
    if (this.#inner === undefined) return encode()
    let isFirst = true
    library.normalizer = (text: string): string => {
      const own = isFirst ? this.#inner : (normalizer as Normalize)
      isFirst = false
      return own ? own(text) : text
    }
    try {
      return encode()
    } finally {
      library.normalizer = normalizer
    }
  }

  decode(ids: readonly number[], skipSpecialTokens: boolean): string {
    if (ids.length === 0) return ''
    return this.#library.decode([...ids], {
      skip_special_tokens: skipSpecialTokens,
      clean_up_tokenization_spaces: this.#cleansUpSpaces,
    })
  }

  /** The bytes that each token stands for, by id; undefined for special tokens. */
  tokenBytes(): readonly (Uint8Array | undefined)[] {
    this.#bytes ??= tokenBytesOf(this.files.tokenizer)
    return this.#bytes
  }

  /** @throws ERR_HEDDLE_ARGUMENT without a chat template, or when it refuses the messages */
  applyChatTemplate(messages: readonly ChatMessage[], options: RenderOptions): string {
    return this.#chatTemplate().render(messages, options)
  }

  /** @throws ERR_HEDDLE_ARGUMENT without a chat template, or when the assistant's part cannot be told from the rest */
  encodeChat(messages: readonly ChatMessage[], tools?: readonly unknown[]): EncodedChat {
    const { text, assistant } = this.#chatTemplate().renderWithSpans(messages, tools)
    const ids = this.encode(text, false)
    const loss = new Uint8Array(ids.length)
    for (const { start, end } of assistant)
      loss.fill(1, this.#tokensBefore(text, start, ids), this.#tokensBefore(text, end, ids))
    return { ids, loss }
  }

  /**
   * Texts as rows of one length, the next of a few bucket lengths. A row that is too long loses tokens at the end of its
   * longer text, one by one, as transformers' `longest_first` does; special tokens stay.
   * @throws ERR_HEDDLE_ARGUMENT when there are not as many pairs as texts, or no room for special tokens
   */
  encodeBatch(texts: readonly string[], { pairs, maxLength }: EncodeBatchOptions): EncodedBatch {
    if (pairs && pairs.length !== texts.length) throw misuse('pairs', `${texts.length} texts`, `${pairs.length}`)
    const frame = this.#frame(pairs !== undefined)
    const room = maxLength - frame.special
    if (room < 1) throw misuse('maxLength', `more than ${frame.special}, the number of special tokens`, `${maxLength}`)
    const encoded = texts.map((text, row) => {
      const first = this.encode(text, false)
      const second = this.encode(pairs?.[row] ?? '', false)
      const [left, right] = truncated(first.length, second.length, room)
      return frame.around(first.subarray(0, left), second.subarray(0, right))
    })
    const longest = encoded.reduce((most, { ids }) => Math.max(most, ids.length), 1)
    const length = bucketLength(longest, maxLength)
    const size = texts.length * length
    const ids = new Int32Array(size).fill(this.info.padTokenId ?? this.info.eosTokenIds[0] ?? 0)
    const [mask, tokenTypes] = [new Int32Array(size), new Int32Array(size)]
    for (const [row, each] of encoded.entries()) {
      ids.set(each.ids, row * length)
      tokenTypes.set(each.types, row * length)
      mask.fill(1, row * length, row * length + each.ids.length)
    }
    return { rows: texts.length, length, ids, mask, tokenTypes }
  }

  /** What the tokenizer puts around one text or two, seen on an example. */
  #frame(isPair: boolean): Frame {
    const known = this.#frames.get(isPair)
    if (known) return known
    const [first, second] = ['a', isPair ? 'b' : ''].map((text) => [...this.encode(text, false)])
    const { ids, token_type_ids: types = [] } = this.#library.encode('a', {
      ...(isPair ? { text_pair: 'b' } : {}),
      return_token_type_ids: true,
    })
    const frame = new Frame({ ids, types }, first!, second!)
    this.#frames.set(isPair, frame)
    return frame
  }

  /** A hash of everything that decides which tokens a text becomes. */
  fingerprint(): string {
    const { tokenizer, config, chatTemplate, eosTokenIds } = this.files
    return createHash('sha256')
      .update(JSON.stringify([tokenizer, config, chatTemplate, eosTokenIds]))
      .digest('hex')
  }

  /** Writes the files of a Hugging Face tokenizer into an existing or new folder. */
  save(folder: string): void {
    const { tokenizer, config, chatTemplate } = this.files
    mkdirSync(folder, { recursive: true })
    const template = chatTemplate === undefined ? {} : { chat_template: chatTemplate }
    writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
    writeFileSync(join(folder, 'tokenizer_config.json'), `${JSON.stringify({ ...config, ...template }, null, 2)}\n`)
  }

  #chatTemplate(): ChatTemplate {
    if (this.#template) return this.#template
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: this.files.place,
      expected: 'a model with a chat template for messages',
      got: 'a tokenizer without one',
      hint: 'Use an instruction-tuned model, or give plain text',
    })
  }

  /** Tokens of `ids` that lie wholly before character `end`: a token across the border belongs to what follows. */
  #tokensBefore(text: string, end: number, ids: Int32Array): number {
    if (end >= text.length) return ids.length
    const prefix = this.encode(text.slice(0, end), false)
    const differs = prefix.findIndex((id, index) => id !== ids[index])
    return differs < 0 ? prefix.length : differs
  }
}

interface TypedTokens {
  readonly ids: readonly number[]
  readonly types: readonly number[]
}

/** Special tokens before, between and after one or two texts. */
class Frame {
  readonly special: number
  readonly #parts: readonly [TypedTokens, TypedTokens, TypedTokens]
  readonly #types: readonly [number, number]

  constructor(example: TypedTokens, first: readonly number[], second: readonly number[]) {
    const { ids, types } = example
    const firstAt = indexOfAll(ids, first, 0)
    const secondAt = second.length > 0 ? indexOfAll(ids, second, firstAt + first.length) : firstAt + first.length
    const part = (start: number, end?: number) => ({ ids: ids.slice(start, end), types: types.slice(start, end) })
    this.#parts = [part(0, firstAt), part(firstAt + first.length, secondAt), part(secondAt + second.length)]
    this.#types = [types[firstAt] ?? 0, types[secondAt] ?? 0]
    this.special = ids.length - first.length - second.length
  }

  around(first: Int32Array, second: Int32Array): TypedTokens {
    const [before, between, after] = this.#parts
    const typesOf = ({ ids, types }: TypedTokens): readonly number[] => ids.map((_, index) => types[index] ?? 0)
    const [left, right] = this.#types
    return {
      ids: [...before.ids, ...first, ...between.ids, ...second, ...after.ids],
      types: [
        ...typesOf(before),
        ...Array<number>(first.length).fill(left),
        ...typesOf(between),
        ...Array<number>(second.length).fill(right),
        ...typesOf(after),
      ],
    }
  }
}

function indexOfAll(ids: readonly number[], wanted: readonly number[], from: number): number {
  const at = ids.findIndex((_, start) => start >= from && wanted.every((id, index) => ids[start + index] === id))
  if (at < 0) throw misuse('tokenizer', 'special tokens around a text only', 'one that changes the text itself')
  return at
}

/** Tokens of two texts that fit: the longer one gives until both are equally long, then both do. */
function truncated(first: number, second: number, room: number): readonly [number, number] {
  if (first + second <= room) return [first, second]
  const short = Math.min(first, second, Math.floor(room / 2))
  return first > second ? [room - short, short] : [short, room - short]
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `encodeBatch: ${place}`, expected, got })

/**
 * Cuts a long text at a space between two letters, where every pre-tokenizer starts a new word, so that the pieces give
 * the tokens of the whole.
 */
export function* cut(text: string): Generator<string> {
  let start = 0
  while (text.length - start > pieceLength) {
    const border = /\p{L} (?=\p{L})/gu
    border.lastIndex = start + pieceLength
    const found = border.exec(text.slice(0, start + 2 * pieceLength))
    const end = found ? border.lastIndex - 1 : wholeCharacter(text, start + pieceLength)
    yield text.slice(start, end)
    start = end
  }
  yield text.slice(start)
}

/** Moves a cut out of a surrogate pair. */
const wholeCharacter = (text: string, end: number) => ((text.codePointAt(end - 1) ?? 0) > 0xffff ? end + 1 : end)

function makeLibrary(files: TokenizerFiles): Library {
  const pre = files.tokenizer.pre_tokenizer
  try {
    return new Library({ added_tokens: [], ...files.tokenizer, pre_tokenizer: asReference(pre) }, files.config)
  } catch (cause) {
    const got = cause instanceof Error ? cause.message : String(cause)
    throw formatError(files.place, 'a tokenizer that the Hugging Face JS library can make', got)
  }
}

type Normalize = (text: string) => string

/** What is left of a normalizer without `Prepend`; null for nothing, undefined where there is no `Prepend`. */
function innerNormalizer(normalizer: unknown): Normalize | null | undefined {
  const steps = ((normalizer as Json | null)?.normalizers as readonly Json[] | undefined) ?? [normalizer as Json | null]
  const others = steps.filter((step) => step?.type !== 'Prepend')
  if (others.length === steps.length) return undefined
  const model = { type: 'BPE', vocab: {}, merges: [] }
  const rest = { added_tokens: [], pre_tokenizer: null, post_processor: null, decoder: null }
  const library = new Library({ ...rest, model, normalizer: { type: 'Sequence', normalizers: others } }, {})
  return others.length === 0 ? null : (library.normalizer as unknown as Normalize)
}

/** The words of GPT-2's byte-level BPE. */
const gpt2Words = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/**
 * The same pre-tokenizer in terms that make the JS library agree with the reference: there "Digits" means every Unicode
 * number and `\s` is Unicode white space, here they are 0-9 and JavaScript's `\s`, unless written as a "Split".
 */
function asReference(pre: unknown): unknown {
  if (typeof pre !== 'object' || pre === null) return pre ?? null
  const step = pre as Json
  const split = (regex: string) => ({ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false })
  if (step.type === 'Sequence' && Array.isArray(step.pretokenizers))
    return { ...step, pretokenizers: step.pretokenizers.map(asReference) }
  if (step.type === 'Digits') return split(step.individual_digits ? '\\p{N}' : '\\p{N}+')
  if (step.type === 'ByteLevel' && !step.add_prefix_space && step.use_regex !== false)
    return { type: 'Sequence', pretokenizers: [split(gpt2Words), { ...step, use_regex: false }] }
  return step
}

function specialTokens(config: Json): Readonly<Record<string, string>> {
  return Object.fromEntries(
    specialNames.flatMap((name) => {
      const value = config[name]
      const content = typeof value === 'object' && value !== null ? (value as Json).content : value
      return typeof content === 'string' ? [[name, content]] : []
    }),
  )
}

const addedSpecialTokens = (library: Library): string[] =>
  [...library.get_added_tokens_decoder().values()].filter(({ special }) => special).map(({ content }) => content)
