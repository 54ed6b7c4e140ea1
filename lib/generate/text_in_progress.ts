/** One text while it is made: what it feeds to the next step, what it does with a drawn token, and when it ends. */
import type { Constraint } from '../tokenize/constraint.js'
import type { Tokenizer, TokenStream } from '../tokenize/tokenizer.js'
import type { GenerateSettings } from './options.js'
import type { Drawn, Row } from './session.js'
import { StopFilter } from './stop_filter.js'

/** Why a text ended: at an end token, a stop string or the end of its format; or for want of tokens. */
export type FinishReason = 'stop' | 'length'

/** A token that was made. */
export interface GeneratedToken extends Drawn {
  /** Which of the texts that are made together it belongs to. */
  readonly index: number
  /** The text that became certain with it; empty while a character or a stop string may be incomplete. */
  readonly text: string
  /** Set at the last token of the text. */
  readonly finishReason?: FinishReason
}

/** What a text needs besides its settings. */
export interface TextParts {
  readonly index: number
  readonly stream: number
  readonly prompt: Int32Array
  /** Tokens at the start of the prompt that the cache holds already. */
  readonly cached: number
  /** New tokens that there is room for. */
  readonly limit: number
  /** Size of the model's vocabulary, the tokenizer's may be smaller. */
  readonly vocabularySize: number
  readonly constraint: Constraint | undefined
}

export class TextInProgress {
  readonly #parts: TextParts
  readonly #settings: GenerateSettings
  readonly #ends: ReadonlySet<number>
  readonly #decoder: TokenStream
  readonly #filter: StopFilter
  readonly #tokens: number[]
  #fed: Int32Array
  /** Tokens of the text that {@link TextInProgress.tell} has seen. */
  #told = 0
  #wantsMore = true
  #finished = false

  constructor(parts: TextParts, tokenizer: Tokenizer, settings: GenerateSettings) {
    this.#parts = parts
    this.#settings = settings
    this.#ends = new Set(tokenizer.eosTokenIds)
    this.#decoder = tokenizer.decodeStream()
    this.#filter = new StopFilter(settings.stop)
    this.#tokens = [...parts.prompt]
    this.#fed = parts.prompt.subarray(parts.cached)
  }

  get isFinished(): boolean {
    return this.#finished
  }

  /** The next draw depends on what was said of the last token. */
  get isConstrained(): boolean {
    return this.#parts.constraint !== undefined
  }

  /** Tokens made so far. */
  get count(): number {
    return this.#tokens.length - this.#parts.prompt.length
  }

  /** The prompt and what was made so far. */
  get tokens(): readonly number[] {
    return this.#tokens
  }

  /** What the next step gets. */
  async row(): Promise<Row> {
    const { stream, prompt } = this.#parts
    const settings = { ...this.#settings, stream }
    if (this.#finished) return { tokens: new Int32Array(), settings }
    const history = this.#penalises ? { tokens: this.#tokens, promptLength: prompt.length } : undefined
    return { tokens: this.#fed, settings, mask: await this.#mask(), history }
  }

  /** Takes the token that was drawn. */
  take(drawn: Drawn): Promise<GeneratedToken> {
    this.accept(drawn)
    return this.tell(drawn)
  }

  /** False once an end token was accepted, or as many tokens as there may be: nothing is to be drawn any more. */
  get wantsMore(): boolean {
    return this.#wantsMore
  }

  /** Makes the token that was drawn a part of the text, so that the next one can be drawn. */
  accept({ token }: Drawn): void {
    const isEnd = this.#ends.has(token)
    if (!isEnd) {
      this.#tokens.push(token)
      this.#fed = Int32Array.of(token)
    }
    this.#wantsMore = !isEnd && this.count < this.#parts.limit
  }

  /** What there is to say of a token that was accepted; to be called for one after the other. */
  async tell(drawn: Drawn): Promise<GeneratedToken> {
    const { index, limit, constraint } = this.#parts
    const isEnd = this.#ends.has(drawn.token)
    if (!isEnd) {
      this.#told += 1
      await constraint?.advance(drawn.token)
    }
    let text = isEnd ? '' : this.#filter.push(await this.#decoder.push(drawn.token))
    const stops = isEnd || this.#filter.stopped || (constraint?.isComplete ?? false)
    this.#finished = stops || this.#told >= limit
    if (!this.#finished) return { index, text, ...drawn }
    text += this.#filter.push(await this.#decoder.flush()) + this.#filter.flush()
    // What was held back may have completed a stop string.
    return { index, text, ...drawn, finishReason: stops || this.#filter.stopped ? 'stop' : 'length' }
  }

  get #penalises(): boolean {
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = this.#settings
    return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0
  }

  async #mask(): Promise<Uint32Array | undefined> {
    const { constraint, limit, vocabularySize } = this.#parts
    if (constraint) return constraint.mask(limit - this.count)
    if (this.count >= this.#settings.minTokens) return undefined
    const mask = new Uint32Array(Math.ceil(vocabularySize / 32)).fill(2 ** 32 - 1)
    for (const end of this.#ends) mask[end >> 5]! &= ~(1 << (end & 31))
    return mask
  }
}
