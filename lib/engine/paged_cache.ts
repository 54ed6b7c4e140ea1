/** Keys and values of all texts of an engine, in pages of one pool per layer. */
import type { CachedAttentionOptions } from '../graph/ops/attention.js'
import { type PagedStep, pagedAttention, pagedCacheUpdate } from '../graph/ops/paged_attention.js'
import { reshape } from '../graph/ops/reduce.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import type { FreshHeads, KeyValueCache, KeyValueShape } from '../models/causal_lm.js'
import { type Tensor, zeros } from '../tensor/tensor.js'

/** How many pages of how many tokens. */
export interface PagedCacheOptions {
  readonly pages: number
  readonly pageTokens: number
  readonly dtype: 'f32' | 'bf16'
}

/** The inputs of a step that say where its tokens' keys and values go and come from. */
export interface PagedInputs extends PagedStep {
  /** Where each token's keys and values go, `i32 [n]`; -1 for padding. */
  readonly slots: Sym
}

/** Bytes that a page takes over all layers. */
export const pageBytes = (
  { layers, heads, size }: KeyValueShape,
  { pageTokens, dtype }: Omit<PagedCacheOptions, 'pages'>,
): number => 2 * layers * heads * size * pageTokens * (dtype === 'f32' ? 4 : 2)

export class PagedCache {
  /** `[pages, page tokens, heads, size]` */
  readonly #layers: readonly { readonly keys: Tensor; readonly values: Tensor }[]

  private constructor(layers: readonly { readonly keys: Tensor; readonly values: Tensor }[]) {
    this.#layers = layers
  }

  /** Memory is taken as pages are first written. */
  static async create(
    { layers, heads, size }: KeyValueShape,
    { pages, pageTokens, dtype }: PagedCacheOptions,
  ): Promise<PagedCache> {
    const made: { keys: Tensor; values: Tensor }[] = []
    while (made.length < layers) {
      const [keys, values] = [0, 1].map(() => zeros([pages, pageTokens, heads, size], dtype))
      made.push({ keys: keys!, values: values! })
      await pause()
    }
    return new PagedCache(made)
  }

  /** As the tokens of a traced step see it, one token a row. @param capacity most tokens of a text */
  at({ slots, ...step }: PagedInputs, capacity: number): KeyValueCache {
    return {
      capacity,
      attend: (layer, fresh, options) => this.#attend(layer, fresh, { slots, ...step }, options),
    }
  }

  dispose(): void {
    for (const { keys, values } of this.#layers) {
      keys.dispose()
      values.dispose()
    }
  }

  #attend(layer: number, { q, k, v }: FreshHeads, inputs: PagedInputs, options: CachedAttentionOptions): Sym {
    const { keys, values } = this.#layers[layer]!
    const perToken = (x: Sym): Sym => reshape(x, [x.shape[0]!, x.shape[2]!, x.shape[3]!])
    const allKeys = pagedCacheUpdate(read(keys), perToken(k), inputs.slots)
    const allValues = pagedCacheUpdate(read(values), perToken(v), inputs.slots)
    return reshape(pagedAttention(perToken(q), allKeys, allValues, inputs, options), q.shape)
  }
}
