/** One request: its text, what of it the caller has not read yet, and how it ends. */
import type { GenerateSettings } from '../generate/options.js'
import { type GeneratedToken, TextInProgress } from '../generate/text_in_progress.js'
import { tokenLimit } from '../generate/text_options.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Constraint } from '../tokenize/constraint.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'
import type { Lease } from './adapter_store.js'
import type { Feed, Task } from './scheduler.js'
import type { StepDraw, StepPart } from './step.js'
import type { TextPages } from './text_pages.js'

/** Tokens that are made before the caller reads the first of them. */
export const mostUnread = 32

/** What a request is made of. */
export interface RequestParts {
  readonly arrival: number
  /** The adapter, which the request holds until it ends. */
  readonly adapter: Lease | undefined
  /** Stands for the weights that the text's keys and values are computed with. */
  readonly root: string
  readonly prompt: Int32Array
  readonly settings: GenerateSettings
  readonly constraint: Constraint | undefined
  readonly bias: Float32Array | undefined
  readonly pages: TextPages
  /** When the request was made, by `performance.now()`. */
  readonly started: number
}

export class EngineRequest implements Task {
  readonly parts: RequestParts
  readonly text: TextInProgress
  computed = 0
  /** Called when the caller has read so much that the text may go on. */
  onRead = (): void => {}
  /** Called once, when the request has ended. */
  onEnd = (): void => {}
  /** Tokens that were handed out. */
  newTokens = 0
  readonly #unread: GeneratedToken[] = []
  #read = 0
  #error: unknown
  #isEnded = false
  #isFull = false
  #wake = (): void => {}
  /** Positions that were computed, or found in the cache, at some time. */
  #reached = 0
  #cachedTokens = 0

  constructor(parts: RequestParts, network: CausalLm, tokenizer: Tokenizer) {
    const { prompt, settings, constraint } = parts
    const { vocabularySize } = network
    const limit = tokenLimit(settings, network, prompt.length)
    this.parts = parts
    this.text = new TextInProgress(
      { index: 0, stream: 0, prompt, cached: 0, limit, vocabularySize, constraint },
      tokenizer,
      settings,
    )
  }

  get arrival(): number {
    return this.parts.arrival
  }

  get group(): string {
    return this.parts.adapter?.name ?? ''
  }

  get root(): string {
    return this.parts.root
  }

  get tokens(): readonly number[] {
    return this.text.tokens
  }

  get pages(): TextPages {
    return this.parts.pages
  }

  get isEnded(): boolean {
    return this.#isEnded
  }

  /** The caller has enough to read. */
  get isFull(): boolean {
    return this.#isFull
  }

  /** Tokens of the prompt that were in the cache when it was read first. */
  get cachedTokens(): number {
    return this.#cachedTokens
  }

  /** How the next token is to be drawn. */
  async draw(): Promise<StepDraw> {
    const { settings, mask, history } = await this.text.row()
    return { settings, mask, history, bias: this.parts.bias, top: this.parts.settings.logProbabilities ?? 0 }
  }

  /** What a feed takes of the text. */
  part({ start, count }: Feed, draw: StepDraw | undefined): StepPart {
    const { adapter, prompt, pages } = this.parts
    // Tokens of the prompt turn as the prompt's length says, each later one as it did when it was the last.
    const lengthAt = (position: number): number => Math.max(prompt.length, position + 1)
    return { tokens: this.tokens, start, count, pages, adapter, lengthAt, draw }
  }

  /** Takes note of what a feed computes. @returns how many of its tokens are the prompt's */
  fed({ start, count }: Feed): number {
    const { length } = this.parts.prompt
    this.#cachedTokens += Math.max(0, Math.min(start, length) - this.#reached)
    this.#reached = Math.max(this.#reached, start + count)
    return Math.max(0, Math.min(start + count, length) - start)
  }

  /** Hands a token to the caller. */
  push(token: GeneratedToken): void {
    this.newTokens += 1
    this.#unread.push(token)
    this.#isFull = this.#unread.length - this.#read >= mostUnread
    this.#wake()
  }

  /** There will be no more tokens; with an error, the caller gets it behind those that there are. */
  end(error?: unknown): void {
    this.#isEnded = true
    this.#error = error
    this.#wake()
  }

  /** There will be no more tokens, and those that the caller has not read are dropped. */
  abort(error: unknown): void {
    this.#read = this.#unread.length
    this.end(error)
  }

  /** The next token, when there is one; undefined behind the last. @throws what the request ended with */
  async next(): Promise<GeneratedToken | undefined> {
    while (this.#read === this.#unread.length) {
      if (this.#error !== undefined) throw this.#error
      if (this.#isEnded) return undefined
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    const token = this.#unread[this.#read]
    this.#read += 1
    if (this.#read === this.#unread.length || this.#read === mostUnread) {
      this.#unread.splice(0, this.#read)
      this.#read = 0
    }
    if (this.#isFull && this.#unread.length - this.#read <= mostUnread / 2) {
      this.#isFull = false
      this.onRead()
    }
    return token
  }
}
