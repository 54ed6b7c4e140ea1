/** Keys and values in one piece per text: for texts that are made by themselves or side by side from start to end. */
import { attentionCached, type CachedAttentionOptions } from '../graph/ops/attention.js'
import { cacheUpdate } from '../graph/ops/index.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import { type Tensor, zeros } from '../tensor/tensor.js'
import type { FreshHeads, KeyValueCache, KeyValueShape } from './causal_lm.js'

/** Keys and values of one layer, `[b, capacity, kv heads, head dim]` each. */
export interface LayerCache {
  readonly keys: Tensor
  readonly values: Tensor
}

export class ContiguousCache implements KeyValueCache {
  private constructor(
    readonly layers: readonly LayerCache[],
    readonly capacity: number,
  ) {}

  /** An empty cache for `batch` texts of at most `capacity` tokens. */
  static async create(
    { layers, heads, size }: KeyValueShape,
    batch: number,
    capacity: number,
    dtype: 'f32' | 'bf16' = 'f32',
  ): Promise<ContiguousCache> {
    const made: LayerCache[] = []
    while (made.length < layers) {
      const [keys, values] = [0, 1].map(() => zeros([batch, capacity, heads, size], dtype))
      made.push({ keys: keys!, values: values! })
      await pause()
    }
    return new ContiguousCache(made, capacity)
  }

  /** Bytes of keys and values. */
  get byteLength(): number {
    return this.layers.reduce((sum, { keys, values }) => sum + keys.native.byteLength + values.native.byteLength, 0)
  }

  attend(layer: number, { q, k, v, position }: FreshHeads, options: CachedAttentionOptions): Sym {
    const { keys, values } = this.layers[layer]!
    const [allKeys, allValues] = [cacheUpdate(read(keys), k, position), cacheUpdate(read(values), v, position)]
    return attentionCached(q, allKeys, allValues, position, options)
  }

  /** Frees the keys and values of every layer. */
  dispose(): void {
    for (const { keys, values } of this.layers) {
      keys.dispose()
      values.dispose()
    }
  }
}
