/** What every decoder language model offers to training and generation, whatever its architecture. */
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward, Site } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'

/** Gives the checkpoint's tensor of that name. @throws ERR_HEDDLE_FORMAT when it has none */
export type WeightSource = (name: string) => Tensor

/** Keys and values of earlier tokens, one pair per layer, `[b, capacity, kv heads, head dim]`. */
export interface KeyValueCache {
  readonly layers: readonly { readonly keys: Tensor; readonly values: Tensor }[]
  readonly capacity: number
}

/** Inputs of one forward pass. */
export interface DecoderInputs {
  /** Token ids `i32 [b, t]`. */
  readonly ids: Sym
  /** `i32 [b, t]`; tokens see only tokens of their own segment. Training form. */
  readonly segments?: Sym | undefined
  /** First position of this call's tokens, `i32 [b]`. Cached form; needs `cache`. */
  readonly position?: Sym | undefined
  readonly cache?: KeyValueCache | undefined
}

/** A decoder language model of any architecture. */
export interface CausalLm extends Network {
  readonly vocabularySize: number
  readonly embeddingTied: boolean
  /** Final hidden states `[b·t, hidden]`, normalised, ready for {@link outputSite}. */
  hidden(inputs: DecoderInputs, forward: Forward): Promise<Sym>
  /** The output projection `[vocabulary, hidden]`. */
  readonly outputSite: Site
  /** An empty cache for `batch` texts of at most `capacity` tokens. */
  createCache(batch: number, capacity: number): Promise<KeyValueCache>
}
