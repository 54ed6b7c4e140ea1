/** A key–value cache with the program that runs on it: takes tokens, gives the next one. Serves one text at a time. */
import { HeddleError } from '../errors.js'
import { gatherRows } from '../graph/ops/index.js'
import { sampleToken } from '../graph/ops/sample.js'
import { type Program, program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { CausalLm, KeyValueCache } from '../models/causal_lm.js'
import { type Forward, linear } from '../nn/site.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import type { ResolvedSampling } from './options.js'

/** Prompts are padded to these lengths, so that few programs are ever traced; longer ones go in pieces. */
const promptBuckets = [1, 16, 64, 256]

export class Session {
  readonly capacity: number
  readonly #cache: KeyValueCache
  readonly #step: Program<Sym>
  /** Tokens in the cache. */
  #length = 0

  constructor(model: CausalLm, forward: Omit<Forward, 'training'>, capacity: number) {
    this.capacity = capacity
    const cache = model.createCache(1, capacity)
    this.#cache = cache
    this.#step = program(async (ids, position, last, seed, step, temperature, topK, topP) => {
      const context = { ...forward, training: false }
      const hidden = await model.hidden({ ids: ids!, position: position!, cache }, context)
      const logits = linear(model.outputSite, gatherRows(hidden, last!), context)
      const options = { seed: seed!, step: step!, temperature: temperature!, topK: topK!, topP: topP! }
      return sampleToken(logits, options).token
    })
  }

  /** Forgets all tokens. */
  reset(): void {
    this.#length = 0
  }

  /**
   * Appends tokens to the text and draws the one that follows.
   * @throws ERR_HEDDLE_ARGUMENT when the cache is full, ERR_HEDDLE_ABORTED
   */
  async next(tokens: Int32Array, sampling: ResolvedSampling, signal?: AbortSignal): Promise<number> {
    let token = 0
    for (let start = 0; start < tokens.length; ) {
      const rest = tokens.length - start
      const room = this.capacity - this.#length
      const size = promptBuckets.find((bucket) => bucket >= rest && bucket <= room) ?? largestFitting(rest, room)
      const part = tokens.subarray(start, start + Math.min(size, rest))
      token = await this.#run(part, size, sampling, signal)
      start += part.length
    }
    return token
  }

  dispose(): void {
    this.#step.dispose()
    for (const { keys, values } of this.#cache.layers) {
      keys.dispose()
      values.dispose()
    }
  }

  async #run(part: Int32Array, size: number, sampling: ResolvedSampling, signal?: AbortSignal): Promise<number> {
    const ids = new Int32Array(size)
    ids.set(part)
    const end = this.#length + part.length
    const inputs: Tensor[] = [
      tensor(ids, [1, size]),
      tensor(Int32Array.of(this.#length)),
      tensor(Int32Array.of(part.length - 1)),
      tensor(Uint32Array.of(sampling.seed >>> 0, Math.floor(sampling.seed / 2 ** 32) >>> 0)),
      tensor(Int32Array.of(end), []),
      tensor(Float32Array.of(sampling.temperature), []),
      tensor(Int32Array.of(sampling.topK), []),
      tensor(Float32Array.of(sampling.topP), []),
    ]
    try {
      const result = await this.#step.run(inputs, { signal })
      this.#length = end
      const token = result.item()
      result.dispose()
      return token
    } finally {
      for (const input of inputs) input.dispose()
    }
  }
}

function largestFitting(rest: number, room: number): number {
  const size = promptBuckets.findLast((bucket) => bucket <= rest && bucket <= room)
  if (size === undefined)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'generate',
      expected: 'room in the cache',
      got: 'a full one',
    })
  return size
}
