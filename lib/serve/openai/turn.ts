/**
 * The assistant's turn: text, and calls of tools. Between calls the model writes as it likes; once it begins a call, it is
 * held to the form of one, so that names and arguments are always right.
 */
import type { Engine } from '../../engine/engine.js'
import type { EngineRequestOptions } from '../../engine/options.js'
import { HeddleError } from '../../errors.js'
import type { FinishReason, GeneratedToken } from '../../model.js'
import { invalidRequest } from './error.js'
import { newId } from './route.js'
import { type TextPiece, type TokenCount, textPieces } from './text.js'
import type { ToolUse } from './tools.js'

/** A call as clients see it. */
export interface ToolCall {
  readonly id: string
  readonly type: 'function'
  readonly function: { readonly name: string; readonly arguments: string }
}

/** What comes next in a turn. */
export type TurnPiece =
  | { readonly kind: 'text'; readonly text: string; readonly tokens: readonly GeneratedToken[] }
  | { readonly kind: 'call'; readonly call: ToolCall }
  | { readonly kind: 'end'; readonly reason: FinishReason | 'tool_calls' }

/** What a turn is made from. */
export interface TurnRequest {
  /** The conversation, with the opening of the turn. */
  readonly text: string
  readonly tokens: Int32Array
  readonly maxTokens: number
  readonly options: EngineRequestOptions
  readonly count: TokenCount
  readonly use: ToolUse | undefined
}

/** Makes one turn. @throws as `Engine.generateTokens` */
export async function* turn(engine: Engine, request: TurnRequest): AsyncGenerator<TurnPiece, void, void> {
  const { use, count, maxTokens, options, tokens: prompt } = request
  if (use) return yield* new ToolTurn(engine, request, use).pieces()
  for await (const { text, tokens, end } of textPieces(engine, { prompt, options: { ...options, maxTokens }, count })) {
    if (text !== '') yield { kind: 'text', text, tokens }
    if (end !== undefined) yield { kind: 'end', reason: end as FinishReason }
  }
}

class ToolTurn {
  readonly #engine: Engine
  readonly #request: TurnRequest
  readonly #use: ToolUse
  /** Made by this turn alone: others of the request may share the client's count. */
  readonly #made: TokenCount = { completion: 0 }
  #written = ''
  #calls = 0

  constructor(engine: Engine, request: TurnRequest, use: ToolUse) {
    this.#engine = engine
    this.#request = request
    this.#use = use
  }

  async *pieces(): AsyncGenerator<TurnPiece, void, void> {
    const { isForced, areSeveral, format } = this.#use
    if (isForced) {
      const call = await this.#callIfRoom()
      if (!call) throw invalidRequest('There is no room for a call: ask for more tokens.', 'max_completion_tokens')
      yield { kind: 'call', call }
      return yield { kind: 'end', reason: 'tool_calls' }
    }
    for (;;) {
      const end = yield* this.#text()
      if (end !== 'filter') return yield { kind: 'end', reason: this.#calls > 0 && end === 'stop' ? 'tool_calls' : end }
      const call = await this.#callIfRoom()
      if (call) yield { kind: 'call', call }
      if (!call || this.#left <= 0) return yield { kind: 'end', reason: 'length' }
      if (!areSeveral || !format.repeats) return yield { kind: 'end', reason: 'tool_calls' }
    }
  }

  async #callIfRoom(): Promise<ToolCall | undefined> {
    if (this.#left <= 0) return undefined
    try {
      return await this.#call()
    } catch (error) {
      if (isWithoutRoom(error)) return undefined
      throw error
    }
  }

  /** Until the text ends or a call begins. */
  async *#text(): AsyncGenerator<TurnPiece, NonNullable<TextPiece['end']>, void> {
    let end: TextPiece['end']
    for await (const piece of this.#pieces({ filter: this.#use.format.filter() })) {
      end = piece.end
      this.#written += piece.text
      // Between calls there is nothing but space.
      if (piece.text !== '' && (this.#calls === 0 || piece.text.trim() !== ''))
        yield { kind: 'text', text: piece.text, tokens: piece.tokens }
    }
    return end!
  }

  async #call(): Promise<ToolCall> {
    const { schema, format } = this.#use
    this.#written += format.opening
    let json = ''
    const responseFormat = { type: 'json_schema', schema } as const
    for await (const { text } of this.#pieces({ responseFormat, stop: [] })) json += text
    this.#written += json + format.closing
    this.#calls += 1
    const { name, [format.key]: values } = JSON.parse(json) as Record<string, unknown> & { readonly name: string }
    return { id: newId('call', '_'), type: 'function', function: { name, arguments: JSON.stringify(values) } }
  }

  async *#pieces({
    filter,
    ...own
  }: EngineRequestOptions & {
    readonly filter?: ReturnType<ToolUse['format']['filter']>
  }): AsyncGenerator<TextPiece, void, void> {
    const before = this.#made.completion
    const options = { ...this.#request.options, ...own, maxTokens: this.#left }
    try {
      yield* textPieces(this.#engine, { prompt: await this.#prompt(), options, count: this.#made, filter })
    } finally {
      this.#request.count.completion += this.#made.completion - before
    }
  }

  get #left(): number {
    return this.#request.maxTokens - this.#made.completion
  }

  /** The conversation with what this turn has written so far. */
  async #prompt(): Promise<Int32Array> {
    const { text, tokens } = this.#request
    if (this.#written === '') return tokens
    return this.#engine.model.tokenizer.encode(text + this.#written, { addSpecialTokens: false })
  }
}

/** The shortest call, or what was written before it, is longer than what is left. */
const isWithoutRoom = (error: unknown): boolean =>
  error instanceof HeddleError && error.code === 'ERR_HEDDLE_ARGUMENT' && /\.(responseFormat|prompt)$/.test(error.place)
