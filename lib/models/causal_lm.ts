/** What every decoder language model offers to training and generation, whatever its architecture. */
import type { CachedAttentionOptions } from '../graph/ops/attention.js'
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward, Site } from '../nn/site.js'
import type { ContiguousCache } from './contiguous_cache.js'

/** What a layer has made of a call's tokens. */
export interface FreshHeads {
  /** `[b, t, h, d]` */
  readonly q: Sym
  /** `[b, t, hk, d]` */
  readonly k: Sym
  /** `[b, t, hk, d]` */
  readonly v: Sym
  /** Position of each text's first token, `i32 [b]`. */
  readonly position: Sym
}

/** Keys and values of earlier tokens, wherever they lie: a seam with an implementation for each way of keeping them. */
export interface KeyValueCache {
  /** Most tokens of a text. */
  readonly capacity: number
  /** Keeps a layer's keys and values and mixes those that each query sees → `[b, t, h, d]`. */
  attend(layer: number, fresh: FreshHeads, options: CachedAttentionOptions): Sym
}

/** What each token leaves in a cache: keys and values of so many layers, `[heads, size]` each. */
export interface KeyValueShape {
  readonly layers: number
  readonly heads: number
  readonly size: number
}

/** How the keys of a text depend on its length, in networks whose rotation does. */
export interface LengthDependence {
  /** Texts of the same regime are rotated alike; cached keys of another one are of no use to a text. */
  regime(length: number): number
  /** Whether a text that grows into another regime has its keys made anew; else they stay, as in transformers. */
  readonly renewsKeys: boolean
}

/** Inputs of one forward pass. */
export interface DecoderInputs {
  /** Token ids `i32 [b, t]`. */
  readonly ids: Sym
  /** `i32 [b, t]`; tokens see only tokens of their own segment. Training form. */
  readonly segments?: Sym | undefined
  /**
   * `i32 [b, t]`: place of each token in its own text; default 0, 1, 2, … along the row. Networks with learned
   * positions need it where a row holds several texts; rotary ones see only differences. Training form.
   */
  readonly positions?: Sym | undefined
  /** First position of this call's tokens, `i32 [b]`. Cached form; needs `cache`. */
  readonly position?: Sym | undefined
  readonly cache?: KeyValueCache | undefined
  /**
   * Tokens of each text up to the last one that is known, `i32 [b]`, for networks with a {@link LengthDependence}.
   * Default: in the training form the longest text of each row, in the cached one all that this call brings.
   */
  readonly lengths?: Sym | undefined
}

/** A decoder language model of any architecture. */
export interface CausalLm extends Network {
  readonly vocabularySize: number
  /** Absent where keys depend on places alone. */
  readonly lengthDependence?: LengthDependence | undefined
  /** Final hidden states `[b·t, hidden]`, normalised, ready for {@link logits}. */
  hidden(inputs: DecoderInputs, forward: Forward): Promise<Sym>
  /** The output projection `[vocabulary, hidden]`. */
  readonly outputSite: Site
  /** Scores of the next token `[n, vocabulary]` from hidden states `[n, hidden]`. */
  logits(hidden: Sym, forward: Forward): Sym
  /** Logits are the output projection and nothing more: no bias, no cap. Losses may then fuse it. */
  readonly hasPlainLogits: boolean
  readonly keyValues: KeyValueShape
  /** An empty cache for `batch` texts of at most `capacity` tokens; default `f32`. */
  createCache(batch: number, capacity: number, dtype?: 'f32' | 'bf16'): Promise<ContiguousCache>
}
