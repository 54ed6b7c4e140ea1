/** Vectors of texts from a decoder's last hidden states. */
import type { ActiveAdapter } from '../adapters/active.js'
import { AdapterPrograms } from '../adapters/adapter_programs.js'
import { add, cast, div, mul, sqrt } from '../graph/ops/elementwise.js'
import { gatherRows } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'
import { tensor } from '../tensor/tensor.js'

/** How the hidden states of a text become one vector: their mean, or the last token's. */
export type DecoderPooling = 'mean' | 'last'

/** Texts of a group are padded to a multiple of it, so that few programs are made. */
const lengthStep = 32

/** Compiled for each adapter and length that it meets. */
export class DecoderEmbedder {
  readonly #programs: AdapterPrograms
  readonly #longest: number

  constructor(model: CausalLm, forward: Pick<Forward, 'precision'>, pooling: DecoderPooling, normalize: boolean) {
    this.#longest = model.maxPositions
    this.#programs = new AdapterPrograms(model, forward, async ([ids, weights, last], withHook) => {
      const [, time] = ids!.shape as [number, number]
      const lengths = cast(add(last!, 1), 'i32')
      const hidden = await model.hidden({ ids: ids!, lengths }, withHook)
      const pooled =
        pooling === 'last'
          ? gatherRows(hidden, last!)
          : reshape(matmul(weights!, reshape(hidden, [1, time, -1])), [1, hidden.shape.at(-1)!])
      return normalize ? div(pooled, sqrt(sum(mul(pooled, pooled), { axes: [-1], keepDims: true }))) : pooled
    })
  }

  /** The vector of one text of at least one token. */
  async embed(
    tokens: Int32Array,
    {
      adapter,
      signal,
    }: { readonly adapter?: ActiveAdapter | undefined; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<Float32Array> {
    const length = Math.min(this.#longest, Math.ceil(tokens.length / lengthStep) * lengthStep)
    const ids = new Int32Array(length)
    ids.set(tokens)
    // Causal attention: what is padded behind changes nothing before.
    const weights = new Float32Array(length).fill(1 / tokens.length, 0, tokens.length)
    const inputs = [tensor(ids, [1, length]), tensor(weights, [1, 1, length]), tensor([tokens.length - 1], [1], 'i32')]
    try {
      const vector = await this.#programs.for(adapter).run(inputs, { signal })
      const data = (await vector.data()) as Float32Array
      vector.dispose()
      return data
    } finally {
      for (const input of inputs) input.dispose()
    }
  }

  dispose(): void {
    this.#programs.dispose()
  }
}
