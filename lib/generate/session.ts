/** A key–value cache with the program that runs on it: takes tokens, gives the next one. Serves one text at a time. */
import { seedTensor } from '../adapters/adapter.js'
import { HeddleError } from '../errors.js'
import { gatherRows } from '../graph/ops/index.js'
import { sampleToken } from '../graph/ops/sample.js'
import { type OperatorTime, type Program, program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { CausalLm, KeyValueCache } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import type { GenerateSettings } from './options.js'

/** Prompts are padded to these lengths, so that few programs are ever traced; longer ones go in pieces. */
const promptBuckets = [1, 16, 64, 256]

/** What decides the next token, besides the text. */
type Sampling = Pick<GenerateSettings, 'temperature' | 'topK' | 'topP' | 'seed' | 'signal'>

export class Session {
  readonly capacity: number
  readonly #model: CausalLm
  readonly #cache: KeyValueCache
  readonly #step: Program<Sym>
  /** The weights that the compiled programs hold. */
  readonly #weights: readonly Tensor[]
  /** Tokens in the cache. */
  #length = 0

  private constructor(model: CausalLm, forward: Omit<Forward, 'training'>, cache: KeyValueCache) {
    this.capacity = cache.capacity
    this.#model = model
    this.#cache = cache
    this.#weights = weightsOf(model)
    this.#step = program(async (ids, position, last, seed, step, temperature, topK, topP) => {
      const context = { ...forward, training: false }
      const hidden = await model.hidden({ ids: ids!, position: position!, cache }, context)
      const logits = model.logits(gatherRows(hidden, last!), context)
      const options = { seed: seed!, step: step!, temperature: temperature!, topK: topK!, topP: topP! }
      return sampleToken(logits, options).token
    })
  }

  /** @param capacity most tokens of a text, prompt included */
  static async create(model: CausalLm, forward: Omit<Forward, 'training'>, capacity: number): Promise<Session> {
    return new Session(model, forward, await model.createCache(1, capacity))
  }

  /** Time per operator so far. */
  profile(): readonly OperatorTime[] {
    return this.#step.profile()
  }

  /** False once a weight of the model was replaced, as merging and training do: start a new session then. */
  get isCurrent(): boolean {
    return weightsOf(this.#model).every((weight, index) => weight === this.#weights[index])
  }

  /** Forgets all tokens. */
  reset(): void {
    this.#length = 0
  }

  /**
   * Appends tokens to the text and draws the one that follows.
   * @throws ERR_HEDDLE_ARGUMENT when the cache is full, ERR_HEDDLE_ABORTED
   */
  async next(tokens: Int32Array, sampling: Sampling): Promise<number> {
    let token = 0
    for (let start = 0; start < tokens.length; ) {
      const rest = tokens.length - start
      const room = this.capacity - this.#length
      const size = promptBuckets.find((bucket) => bucket >= rest && bucket <= room) ?? largestFitting(rest, room)
      const part = tokens.subarray(start, start + Math.min(size, rest))
      token = await this.#run(part, size, sampling)
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

  async #run(part: Int32Array, size: number, sampling: Sampling): Promise<number> {
    const ids = new Int32Array(size)
    ids.set(part)
    const end = this.#length + part.length
    const inputs: Tensor[] = [
      tensor(ids, [1, size]),
      tensor(Int32Array.of(this.#length)),
      tensor(Int32Array.of(part.length - 1)),
      seedTensor(sampling.seed),
      tensor(Int32Array.of(end), []),
      tensor(Float32Array.of(sampling.temperature), []),
      tensor(Int32Array.of(sampling.topK), []),
      tensor(Float32Array.of(sampling.topP), []),
    ]
    try {
      const result = await this.#step.run(inputs, { signal: sampling.signal })
      this.#length = end
      const token = result.item()
      result.dispose()
      return token
    } finally {
      for (const input of inputs) input.dispose()
    }
  }
}

const weightsOf = (model: CausalLm): Tensor[] => [...model.sites.values(), model.outputSite].map(({ weight }) => weight)

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
