/** What the page asks of its server beside OpenAI's routes. Types alone: the browser's code reads this file, too. */

/** Answer of `page/models`. */
export interface PageModels {
  readonly base: BaseCard
  readonly adapters: readonly AdapterCard[]
}

/** The model that is served. */
export interface BaseCard {
  readonly name: string
  /** Numbers in all its weights. */
  readonly parameters: number
  readonly precision: string
  /** Most tokens of a prompt and its text together. */
  readonly maxTokens: number
  /** Most tokens that a request may ask for. */
  readonly newTokens: number
  /** Whether there is a template by which it can be chatted with. */
  readonly isChat: boolean
}

/** An adapter that can be asked for. */
export interface AdapterCard {
  readonly name: string
  /** In memory now. */
  readonly isLoaded: boolean
  /** Null where its folder could not be read. */
  readonly about: AdapterFacts | null
}

/** What an adapter's folder says. */
export interface AdapterFacts {
  /** PEFT's name of the method. */
  readonly method: string
  /** Null for methods without one. */
  readonly rank: number | null
  /** Of its tensors' file. */
  readonly bytes: number
}

/** Answer of `page/load`. */
export interface PageLoad {
  /** Seconds from one sample to the next. */
  readonly interval: number
  readonly limits: LoadLimits
  /** Oldest first. */
  readonly samples: readonly LoadSample[]
}

/** What the numbers of a sample can be at most. */
export interface LoadLimits {
  readonly texts: number
  readonly cacheBytes: number
  readonly adapterBytes: number
}

/** What a server did in an interval, and what it held at its end. */
export interface LoadSample {
  /** Seconds since 1970. */
  readonly at: number
  /** Drawn, per second. */
  readonly newTokens: number
  /** Read, per second. */
  readonly promptTokens: number
  readonly running: number
  readonly waiting: number
  readonly cacheBytes: number
  readonly adapterBytes: number
  /** Memory of the whole process. */
  readonly residentBytes: number
}
