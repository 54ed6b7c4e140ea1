/** Text to token ids and back, and chat templates, in a worker thread: the event loop only sends and receives. */
import type { EncodedChunk, EncodeOptions } from '../data/encode.js'
import type { RowBlock } from '../data/rows.js'
import type { GgufBlock } from '../formats/gguf_writer.js'
import type { ChatMessage, RenderOptions } from './chat_template.js'
import { Constraint } from './constraint.js'
import { Gathered } from './gathered.js'
import type { ConstraintRequest } from './grammar/constraints.js'
import type { DecodeRequest, TokenizerSource } from './protocol.js'
import type { EncodeBatchOptions, EncodedBatch, EncodedChat, TokenizerInfo } from './text_encoder.js'
import { WorkerClient } from './worker_client.js'

export type {
  ChatMessage,
  EncodeBatchOptions,
  EncodedBatch,
  EncodedChat,
  RenderOptions,
  TokenizerInfo,
  TokenizerSource,
}

/** A tokenizer of a checkpoint. An open one keeps a worker thread, but no process, alive; `close()` ends it. */
export class Tokenizer {
  readonly info: TokenizerInfo
  readonly #client: WorkerClient
  readonly #decoding: Gathered<DecodeRequest, string>
  #readings = 0

  private constructor(client: WorkerClient, info: TokenizerInfo) {
    this.#client = client
    this.#decoding = new Gathered((asked) => client.call('decode', asked))
    this.info = info
  }

  /**
   * Loads the tokenizer of a model folder (tokenizer.json) or of a GGUF file's metadata.
   * @throws ERR_HEDDLE_IO when there is none, ERR_HEDDLE_FORMAT when it is damaged or of an unknown kind
   */
  static async load(source: TokenizerSource): Promise<Tokenizer> {
    const client = new WorkerClient()
    try {
      return new Tokenizer(client, await client.call('load', { source }))
    } catch (error) {
      await client.close()
      throw error
    }
  }

  /** Number of ids, added tokens included. */
  get vocabSize(): number {
    return this.info.vocabSize
  }

  /** Tokens at which generation stops; the tokenizer's own end-of-text token first. */
  get eosTokenIds(): readonly number[] {
    return this.info.eosTokenIds
  }

  get bosTokenId(): number | undefined {
    return this.info.bosTokenId
  }

  get padTokenId(): number | undefined {
    return this.info.padTokenId
  }

  get hasChatTemplate(): boolean {
    return this.info.hasChatTemplate
  }

  /** The text's token ids; with `addSpecialTokens` (default) also those that the tokenizer puts around every text. */
  encode(text: string, { addSpecialTokens = true }: { readonly addSpecialTokens?: boolean } = {}): Promise<Int32Array> {
    return this.#client.call('encode', { text, addSpecialTokens })
  }

  /** The text of token ids; bytes that are no whole character come out as U+FFFD. */
  decode(
    ids: ArrayLike<number>,
    { skipSpecialTokens = false }: { readonly skipSpecialTokens?: boolean } = {},
  ): Promise<string> {
    return this.#decoding.ask({ ids: Array.from(ids), skipSpecialTokens })
  }

  /**
   * The bytes that each token stands for, which need not be whole characters; undefined for special tokens, which are no
   * text.
   */
  tokenBytes(ids: ArrayLike<number>): Promise<(Uint8Array | undefined)[]> {
    return this.#client.call('tokenBytes', { ids: Array.from(ids) })
  }

  /**
   * The conversation as the text that the model was tuned on.
   * @throws ERR_HEDDLE_ARGUMENT without a chat template, or when it refuses the messages
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: RenderOptions = {}): Promise<string> {
    return this.#client.call('render', { messages, options })
  }

  /**
   * The conversation as token ids with a mask of what the assistant wrote, its end-of-turn tokens included.
   * @throws ERR_HEDDLE_ARGUMENT as {@link applyChatTemplate}, and when the template rewrites earlier turns
   */
  encodeChat(messages: readonly ChatMessage[]): Promise<EncodedChat> {
    return this.#client.call('encodeChat', { messages })
  }

  /**
   * Texts, or pairs of them, as rows of one length (the next of a few bucket lengths), with special tokens. A row that
   * is too long loses tokens at the end of its longer text, as transformers' `longest_first` does.
   * @throws ERR_HEDDLE_ARGUMENT when there are not as many pairs as texts, or no room for special tokens
   */
  encodeBatch(texts: readonly string[], options: EncodeBatchOptions): Promise<EncodedBatch> {
    return this.#client.call('encodeBatch', { texts, options })
  }

  /**
   * Tokenizes the rows of a reading, block by block; `onChunk` gets the sequences in order.
   * @throws ERR_HEDDLE_ARGUMENT when the named columns make no example, ERR_HEDDLE_ABORTED
   */
  async encodeRows(
    blocks: AsyncIterable<RowBlock>,
    options: EncodeOptions & {
      onChunk(chunk: EncodedChunk): void | Promise<void>
      onProgress?(share: number): void
      readonly signal?: AbortSignal | undefined
    },
  ): Promise<void> {
    const { onChunk, onProgress, signal, ...rest } = options
    const reading = this.#readings++
    const encode = async (block: RowBlock | undefined): Promise<void> => {
      const chunks: EncodedChunk[] = []
      const onPart = (chunk: EncodedChunk): void => void chunks.push(chunk)
      await this.#client.stream('encodeRows', { reading, options: rest, block }, { onPart, signal })
      for (const chunk of chunks) await onChunk(chunk)
    }
    try {
      for await (const block of blocks) {
        await encode(block)
        onProgress?.(block.progress)
      }
      await encode(undefined)
    } catch (error) {
      // The worker forgets the reading.
      await this.#client.stream('encodeRows', { reading, options: rest, block: undefined }, { onPart: () => {} })
      throw error
    }
  }

  /** A hash of everything that decides which tokens a text becomes. */
  fingerprint(): Promise<string> {
    return this.#client.call('fingerprint', null)
  }

  /** Text from a stream of tokens, piece by piece. */
  decodeStream({ skipSpecialTokens = true }: { readonly skipSpecialTokens?: boolean } = {}): TokenStream {
    return new TokenStream((ids) => this.decode(ids, { skipSpecialTokens }))
  }

  /**
   * Starts a text that must have a form, for constrained generation.
   * @internal
   * @throws ERR_HEDDLE_ARGUMENT when no text of at most `maxTokens` tokens has it
   */
  async constrain(request: ConstraintRequest): Promise<Constraint> {
    return new Constraint(this.#client, await this.#client.call('constrain', request))
  }

  /** Writes tokenizer.json and tokenizer_config.json (with the chat template) into a folder. @throws ERR_HEDDLE_IO */
  async save(folder: string): Promise<void> {
    await this.#client.call('save', { folder })
  }

  /**
   * The tokenizer as metadata of a GGUF file for a model of `size` ids.
   * @internal
   * @throws ERR_HEDDLE_FORMAT for a tokenizer that llama.cpp has no name for
   */
  ggufVocabulary(size: number): Promise<GgufBlock> {
    return this.#client.call('ggufVocabulary', { size })
  }

  /** Ends the worker. */
  close(): Promise<void> {
    return this.#client.close()
  }
}

const incomplete = '\ufffd'
const longestCharacter = 4

/** Turns tokens into text as they come; holds back bytes of a character until it is whole. */
export class TokenStream {
  readonly #decode: (ids: readonly number[]) => Promise<string>
  /** Tokens whose text is out, kept because some decoders treat the first token of a text in their own way. */
  #context: readonly number[] = []
  #held: number[] = []

  /** Made by {@link Tokenizer.decodeStream}. */
  constructor(decode: (ids: readonly number[]) => Promise<string>) {
    this.#decode = decode
  }

  /** The text that one more token completes; often a word, sometimes nothing. */
  async push(token: number): Promise<string> {
    this.#held.push(token)
    const text = await this.#heldText()
    // More held tokens than a character has bytes: the model wrote bytes that are no character.
    if (text === '' || (text.endsWith(incomplete) && this.#held.length < longestCharacter)) return ''
    this.#release()
    return text
  }

  /** What is still held back, at the end. */
  async flush(): Promise<string> {
    const text = await this.#heldText()
    this.#release()
    return text
  }

  async #heldText(): Promise<string> {
    if (this.#held.length === 0) return ''
    const [before, all] = await Promise.all([
      this.#decode(this.#context),
      this.#decode([...this.#context, ...this.#held]),
    ])
    return all.slice(before.length)
  }

  #release(): void {
    if (this.#held.length > 0) this.#context = this.#held
    this.#held = []
  }
}
