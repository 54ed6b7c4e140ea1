/** What the main thread and a tokenizer's worker say to each other. */
import type { EncodedChunk, EncodeOptions } from '../data/encode.js'
import type { RowBlock } from '../data/rows.js'
import { HeddleError, type HeddleErrorCode } from '../errors.js'
import type { GgufBlock } from '../formats/gguf_writer.js'
import type { ChatMessage, RenderOptions } from './chat_template.js'
import type { ConstraintRequest } from './grammar/constraints.js'
import type { EncodeBatchOptions, EncodedBatch, EncodedChat, TokenizerInfo } from './text_encoder.js'

/** Where a tokenizer is read from. */
export interface TokenizerSource {
  /** A Hugging Face model folder, or a GGUF file. */
  readonly kind: 'folder' | 'gguf'
  readonly path: string
}

/** What can be asked, with its answer. */
export interface Operations {
  load: { ask: { readonly source: TokenizerSource }; answer: TokenizerInfo }
  encode: { ask: { readonly text: string; readonly addSpecialTokens: boolean }; answer: Int32Array }
  /** Answers one by one: a text that cannot be decoded fails alone. */
  decode: { ask: readonly DecodeRequest[]; answer: (string | PlainError)[] }
  /** Answers by token; undefined for special tokens. */
  tokenBytes: { ask: { readonly ids: readonly number[] }; answer: (Uint8Array | undefined)[] }
  render: { ask: { readonly messages: readonly ChatMessage[]; readonly options: RenderOptions }; answer: string }
  encodeChat: { ask: { readonly messages: readonly ChatMessage[] }; answer: EncodedChat }
  encodeBatch: {
    ask: { readonly texts: readonly string[]; readonly options: EncodeBatchOptions }
    answer: EncodedBatch
  }
  fingerprint: { ask: null; answer: string }
  /** Starts a text that must have a form; answers with its number. */
  constrain: { ask: ConstraintRequest; answer: number }
  constraintMask: { ask: { readonly id: number; readonly remaining: number }; answer: Uint32Array }
  /** Answers whether the text is complete. */
  constraintAdvance: { ask: { readonly id: number; readonly token: number }; answer: boolean }
  constraintClose: { ask: { readonly id: number }; answer: null }
  save: { ask: { readonly folder: string }; answer: null }
  ggufVocabulary: { ask: { readonly size: number }; answer: GgufBlock }
  /** Answers in parts, then ends. */
  encodeRows: { ask: EncodeRows; answer: EncodedChunk }
}

/** Tokens to make a text of. */
export interface DecodeRequest {
  readonly ids: readonly number[]
  readonly skipSpecialTokens: boolean
}

/** Rows of one reading, block after block; without a block, its end. */
export interface EncodeRows {
  /** Names the reading. */
  readonly reading: number
  readonly options: EncodeOptions
  readonly block: RowBlock | undefined
}

export type OperationName = keyof Operations

export type Request = {
  readonly [Name in OperationName]: { readonly id: number; readonly name: Name; readonly ask: Operations[Name]['ask'] }
}[OperationName]

/** Ends the request `cancel` early; it answers with nothing more. */
export interface Cancel {
  readonly cancel: number
}

export type Reply =
  | { readonly id: number; readonly part: unknown }
  | { readonly id: number; readonly done: unknown }
  | { readonly id: number; readonly error: PlainError }

/** A HeddleError as data: structured clone keeps neither class nor fields. */
export interface PlainError {
  readonly code: HeddleErrorCode
  readonly place: string
  readonly expected: string
  readonly got: string
  readonly hint: string | undefined
}

export function toPlainError(error: unknown): PlainError {
  if (error instanceof HeddleError) {
    const { code, place, expected, got, hint } = error
    return { code, place, expected, got, hint }
  }
  const isSystem = error instanceof Error && 'syscall' in error
  return {
    code: isSystem ? 'ERR_HEDDLE_IO' : 'ERR_HEDDLE_INTERNAL',
    place: 'tokenizer',
    expected: 'no failure',
    got: error instanceof Error ? error.message : String(error),
    hint: undefined,
  }
}

export function fromPlainError({ code, place, expected, got, hint }: PlainError): HeddleError {
  return new HeddleError(code, { place, expected, got, ...(hint === undefined ? {} : { hint }) })
}
