/** What an engine tells those who watch it. */
import type { FinishReason } from '../generate/text_in_progress.js'

/** How a request ended. */
export type RequestEnd = FinishReason | 'aborted' | 'failed'

/** Each is called as it happens, on the event loop; none may throw. */
export interface EngineListener {
  /** A step has run. */
  readonly onStep?: (step: EngineStep) => void
  /** A request's first token was drawn, so long after it was made. */
  readonly onFirstToken?: (first: { readonly adapter: string | undefined; readonly seconds: number }) => void
  /** A request has ended. */
  readonly onEnd?: (end: EndedRequest) => void
  /** An adapter was wanted; `isLoaded` when it was in memory. */
  readonly onAdapter?: (wanted: { readonly name: string; readonly isLoaded: boolean }) => void
  /** An adapter that nobody uses made room. */
  readonly onEvict?: (evicted: { readonly name: string }) => void
}

/** One run of the network. */
export interface EngineStep {
  /** Texts that took part. */
  readonly texts: number
  /** Tokens of prompts that were taken. */
  readonly promptTokens: number
  /** Tokens that were drawn. */
  readonly newTokens: number
  readonly seconds: number
}

/** See {@link EngineListener.onEnd}. */
export interface EndedRequest {
  readonly adapter: string | undefined
  readonly reason: RequestEnd
  readonly promptTokens: number
  /** Tokens of the prompt whose keys and values were there already. */
  readonly cachedTokens: number
  readonly newTokens: number
  readonly seconds: number
}

/** What an engine holds at the moment. */
export interface EngineState {
  /** Takes no more requests. */
  readonly isClosed: boolean
  /** Texts being made. */
  readonly running: number
  /** Requests without a place. */
  readonly waiting: number
  readonly maxBatch: number
  /** Most tokens of a prompt and its text together: what the model can read and the cache has room for. */
  readonly maxTokens: number
  readonly cache: { readonly usedBytes: number; readonly bytes: number }
  readonly adapters: {
    readonly usedBytes: number
    readonly bytes: number
    /** Names of those in memory. */
    readonly loaded: readonly string[]
    /** Rank of the largest adapter that there can be room for. */
    readonly mostRank: number
  }
}
