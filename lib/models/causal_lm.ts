/** What every decoder language model offers to training and generation, whatever its architecture. */
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward, Site } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'

/** Keys and values of earlier tokens, one pair per layer, `[b, capacity, kv heads, head dim]`. */
export interface KeyValueCache {
  readonly layers: readonly { readonly keys: Tensor; readonly values: Tensor }[]
  readonly capacity: number
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
  /** An empty cache for `batch` texts of at most `capacity` tokens; default `f32`. */
  createCache(batch: number, capacity: number, dtype?: 'f32' | 'bf16'): Promise<KeyValueCache>
}
