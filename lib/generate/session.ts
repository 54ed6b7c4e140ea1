/** A key–value cache of one or several texts with the program that runs on it: takes tokens, gives the next ones. */
import { HeddleError } from '../errors.js'
import { cast } from '../graph/ops/elementwise.js'
import { cacheUpdate, gatherRows } from '../graph/ops/index.js'
import { reshape } from '../graph/ops/reduce.js'
import { type SampledToken, sampleToken, settingNames } from '../graph/ops/sample.js'
import { type OperatorTime, type Program, program } from '../graph/program.js'
import { read, type Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { ContiguousCache } from '../models/contiguous_cache.js'
import { type Forward, weightTensors } from '../nn/site.js'
import { type Tensor, tensor } from '../tensor/tensor.js'

/** Tokens are padded to these lengths, so that few programs are ever traced; longer texts go in pieces. */
const lengthBuckets = [1, 16, 64, 256]

/** How the next token of one text is drawn, see {@link sampleToken}. */
export type DrawSettings = Readonly<Record<(typeof settingNames)[number], number>> & {
  readonly seed: number
  /** Number of the text among those that are made from one prompt with one seed. */
  readonly stream: number
}

/** What one step appends to one text, and how its next token is drawn. */
export interface Row {
  /** Tokens to append; none for a text that is finished. */
  readonly tokens: Int32Array
  readonly settings: DrawSettings
  /** One bit per token that may be drawn; all of them without it. */
  readonly mask?: Uint32Array | undefined
  /** The text so far, `tokens` included, for penalties; and how many tokens of it are the prompt's. */
  readonly history?: { readonly tokens: readonly number[]; readonly promptLength: number } | undefined
}

/** What all texts of a step share. */
export interface StepOptions {
  /** `f32 [vocabulary]`, added to the logits. */
  readonly bias?: Tensor | undefined
  /** So many of the most likely tokens are reported; 0 reports no log-probability at all. */
  readonly top?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/** A drawn token. */
export interface Drawn {
  readonly token: number
  /** Under the model's own distribution; only when it was asked for. */
  readonly logProbability?: number
  /** The most likely tokens, best first. */
  readonly top?: readonly { readonly token: number; readonly logProbability: number }[]
}

/** One run of the program. */
interface Feed {
  readonly rows: readonly Row[]
  /** Tokens of each row that this run takes, padded to `size`. */
  readonly parts: readonly Int32Array[]
  readonly size: number
  /** Tokens that each text will have once its row is taken. */
  readonly lengths: readonly number[]
}

/** Which optional inputs and outputs a program has. */
interface Variant {
  readonly bias: boolean
  readonly mask: boolean
  readonly history: boolean
  readonly top: number
}

export class Session {
  readonly capacity: number
  readonly #model: CausalLm
  readonly #forward: Forward
  readonly #cache: ContiguousCache
  readonly #programs = new Map<string, Program<Sym[]>>()
  #reader: Program<Sym[]> | undefined
  #writer: Program<Sym[]> | undefined
  /** The weights that the compiled programs hold. */
  readonly #weights: readonly Tensor[]
  /** Tokens in the cache, by text. */
  readonly #texts: number[][]
  /** Of the first text's keys, where they are all of one; see {@link LengthDependence}. */
  #regime: number | undefined

  private constructor(model: CausalLm, forward: Omit<Forward, 'training'>, cache: ContiguousCache, batch: number) {
    this.capacity = cache.capacity
    this.#model = model
    this.#forward = { ...forward, training: false }
    this.#cache = cache
    this.#weights = weightsOf(model)
    this.#texts = Array.from({ length: batch }, () => [])
  }

  /** @param capacity most tokens of a text, prompt included */
  static async create(
    model: CausalLm,
    forward: Omit<Forward, 'training'>,
    capacity: number,
    batch = 1,
  ): Promise<Session> {
    const dtype = forward.precision === 'f32' ? 'f32' : 'bf16'
    return new Session(model, forward, await model.createCache(batch, capacity, dtype), batch)
  }

  /** Number of texts. */
  get batch(): number {
    return this.#texts.length
  }

  /** Bytes of the cache. */
  get byteLength(): number {
    return this.#cache.byteLength
  }

  /** Time per operator so far. */
  profile(): readonly OperatorTime[] {
    return [...this.#programs.values()].flatMap((each) => each.profile())
  }

  /** Changes with the contents of the weights: what the cache holds is then of another model. */
  get weightVersions(): number {
    return this.#weights.reduce((sum, { native }) => sum + native.version, 0)
  }

  /** False once a weight of the model was replaced, as merging and training do: start a new session then. */
  get isCurrent(): boolean {
    return weightsOf(this.#model).every((weight, index) => weight === this.#weights[index])
  }

  /** How many tokens at the start of `tokens` the cache holds at the start of the first text. */
  commonPrefix(tokens: Int32Array): number {
    const differs = this.#texts[0]!.findIndex((token, index) => token !== tokens[index])
    return differs < 0 ? Math.min(this.#texts[0]!.length, tokens.length) : differs
  }

  /** Forgets all tokens but the first `length` of each text. */
  truncate(length: number): void {
    for (const text of this.#texts) text.length = Math.min(length, text.length)
    if (length === 0) this.#regime = undefined
  }

  /** Which regime of length the first text's keys are of: undefined for an empty text and for keys of several. */
  get regime(): number | undefined {
    return this.#regime
  }

  /** Tokens of the first text that the cache holds. */
  get tokens(): readonly number[] {
    return this.#texts[0]!
  }

  /** Copies keys and values of `count` tokens of the only text out of the cache: for each layer `[1, count, heads, size]`. */
  async readCache(position: number, count: number): Promise<Tensor[]> {
    this.#reader ??= program(
      (rows) =>
        this.#cache.layers.flatMap(({ keys, values }) =>
          [keys, values].map((cache) => {
            const [, capacity, ...rest] = cache.shape as [number, number, number, number]
            return reshape(gatherRows(reshape(read(cache), [capacity, -1]), rows!), [1, rows!.shape[0]!, ...rest])
          }),
        ),
      { device: this.#model.device },
    )
    const rows = tensor(Int32Array.from({ length: count }, (_, i) => position + i))
    const copies = await this.#reader(rows)
    rows.dispose()
    return [...copies]
  }

  /** Appends tokens whose keys and values, of that regime, {@link readCache} has given to the only text. */
  async writeCache(tokens: ArrayLike<number>, tensors: readonly Tensor[], regime: number): Promise<void> {
    this.#regime = regime
    this.#writer ??= program(
      (position, ...fresh) => {
        for (const [index, { keys, values }] of this.#cache.layers.entries())
          for (const [half, cache] of [keys, values].entries())
            cacheUpdate(read(cache), cast(fresh[2 * index + half]!, 'f32'), position!)
        return []
      },
      { device: this.#model.device },
    )
    const position = tensor(Int32Array.of(this.#texts[0]!.length))
    await this.#writer(position, ...tensors)
    position.dispose()
    this.#texts[0]!.push(...Array.from(tokens))
  }

  /**
   * Appends tokens to the texts and draws the one that follows in each; undefined for texts without new tokens.
   * @throws ERR_HEDDLE_ARGUMENT when the cache is full, ERR_HEDDLE_ABORTED
   */
  async next(given: readonly Row[], options: StepOptions = {}): Promise<(Drawn | undefined)[]> {
    const rows = given.map((row, index) => this.#renewed(row, this.#texts[index]!))
    const lengths = rows.map(({ tokens }, index) => this.#texts[index]!.length + tokens.length)
    this.#regime = this.#regimeAfter(lengths[0]!)
    const drawn: (Drawn | undefined)[] = rows.map(() => undefined)
    const fed = rows.map(() => 0)
    for (;;) {
      const rest = rows.map(({ tokens }, index) => tokens.length - fed[index]!)
      const longest = Math.max(...rest)
      if (longest === 0) return drawn
      // A finished text may lie anywhere: what is written behind it is never read.
      const live = this.#texts.filter((_, index) => rows[index]!.tokens.length > 0)
      const filled = Math.max(...live.map(({ length }) => length))
      const size = bucketFor(longest, this.capacity - filled)
      const parts = rows.map(({ tokens }, index) =>
        tokens.subarray(fed[index]!, fed[index]! + Math.min(size, rest[index]!)),
      )
      const results = await this.#run({ rows, parts, size, lengths }, options)
      for (const [index, part] of parts.entries()) {
        fed[index]! += part.length
        if (part.length > 0 && fed[index] === rows[index]!.tokens.length) drawn[index] = results[index]
      }
    }
  }

  dispose(): void {
    for (const each of [...this.#programs.values(), this.#reader, this.#writer]) each?.dispose()
    this.#cache.dispose()
  }

  /** The row, with the whole text before it where its keys have to be made anew for the length that it will have. */
  #renewed(row: Row, text: number[]): Row {
    const dependence = this.#model.lengthDependence
    if (!dependence?.renewsKeys || row.tokens.length === 0) return row
    if (dependence.regime(text.length) === dependence.regime(text.length + row.tokens.length)) return row
    const tokens = Int32Array.of(...text, ...row.tokens)
    text.length = 0
    return { ...row, tokens }
  }

  /** Keys that are kept while a text grows are of the regimes that it went through. */
  #regimeAfter(length: number): number | undefined {
    const regime = this.#model.lengthDependence?.regime(length) ?? 0
    return this.#texts[0]!.length === 0 || this.#regime === regime ? regime : undefined
  }

  async #run({ rows, parts, size, lengths }: Feed, { bias, top = 0, signal }: StepOptions): Promise<Drawn[]> {
    const variant: Variant = {
      bias: bias !== undefined,
      mask: rows.some(({ mask }) => mask !== undefined),
      history: rows.some(({ history }) => history !== undefined),
      top,
    }
    const made = [...this.#textInputs(parts, size, lengths), ...this.#drawInputs(rows, parts, variant)]
    try {
      const outputs = await this.#program(variant).run(bias ? [...made, bias] : made, { signal })
      for (const [index, part] of parts.entries()) this.#texts[index]!.push(...part)
      return await drawnOf(outputs as Tensor[], top)
    } finally {
      for (const input of made) input.dispose()
    }
  }

  /** ids, positions, lengths, and where the last token of each text lies. */
  #textInputs(parts: readonly Int32Array[], size: number, lengths: readonly number[]): Tensor[] {
    const ids = new Int32Array(this.batch * size)
    for (const [index, part] of parts.entries()) ids.set(part, index * size)
    const positions = this.#texts.map(({ length }) => Math.min(length, this.capacity - size))
    const last = parts.map((part, index) => index * size + Math.max(0, part.length - 1))
    const vectors = [positions, lengths, last].map((each) => tensor(Int32Array.from(each)))
    return [tensor(ids, [this.batch, size]), ...vectors]
  }

  #drawInputs(rows: readonly Row[], parts: readonly Int32Array[], variant: Variant): Tensor[] {
    const batch = rows.length
    const draws = rows.map(({ settings: { seed, stream } }, index) => [
      seed % 2 ** 32,
      Math.floor(seed / 2 ** 32),
      this.#texts[index]!.length + parts[index]!.length,
      stream,
    ])
    const settings = rows.map((row) => settingNames.map((name) => row.settings[name]))
    const inputs = [
      tensor(Uint32Array.from(draws.flat()), [batch, 4]),
      tensor(settings.flat(), [batch, settingNames.length]),
    ]
    if (variant.history) inputs.push(...this.#historyInputs(rows))
    if (variant.mask) inputs.push(maskInput(rows, this.#model.vocabularySize))
    return inputs
  }

  #historyInputs(rows: readonly Row[]): Tensor[] {
    const history = new Int32Array(rows.length * this.capacity).fill(-1)
    for (const [index, row] of rows.entries())
      history.set((row.history?.tokens ?? []).slice(0, this.capacity), index * this.capacity)
    const lengths = Int32Array.from(rows, (row) => row.history?.promptLength ?? 0)
    return [tensor(history, [rows.length, this.capacity]), tensor(lengths)]
  }

  #program(variant: Variant): Program<Sym[]> {
    const key = JSON.stringify(variant)
    const known = this.#programs.get(key)
    if (known) return known
    const made = program(
      async (ids, position, lengths, last, draws, settings, ...more) => {
        const inputs = { ids: ids!, position: position!, lengths: lengths!, cache: this.#cache }
        const hidden = await this.#model.hidden(inputs, this.#forward)
        const logits = this.#model.logits(gatherRows(hidden, last!), this.#forward)
        const [history, promptLength] = variant.history ? more.splice(0, 2) : []
        const [mask] = variant.mask ? more.splice(0, 1) : []
        const [bias] = more
        const top = Math.max(1, variant.top)
        const sampled = sampleToken(logits, {
          draws: draws!,
          settings: settings!,
          bias,
          mask,
          history,
          promptLength,
          top,
        })
        return outputsOf(sampled, variant)
      },
      { device: this.#model.device },
    )
    this.#programs.set(key, made)
    return made
  }
}

const outputsOf = (sampled: SampledToken, { top }: Variant): Sym[] =>
  top === 0 ? [sampled.token] : [sampled.token, sampled.logProbability, sampled.topTokens, sampled.topLogProbabilities]

async function drawnOf(outputs: readonly Tensor[], top: number): Promise<Drawn[]> {
  const [tokens, logProbabilities, topTokens, topLogProbabilities] = await Promise.all(
    outputs.map(async (output) => Array.from(await output.data(), Number)),
  )
  for (const output of outputs) output.dispose()
  return tokens!.map((token, row) => {
    if (top === 0) return { token }
    const ranked = Array.from({ length: top }, (_, rank) => ({
      token: topTokens![row * top + rank]!,
      logProbability: topLogProbabilities![row * top + rank]!,
    }))
    return { token, logProbability: logProbabilities![row]!, top: ranked }
  })
}

function maskInput(rows: readonly Row[], vocabulary: number): Tensor {
  const words = Math.ceil(vocabulary / 32)
  const all = new Uint32Array(rows.length * words).fill(2 ** 32 - 1)
  for (const [index, { mask }] of rows.entries()) if (mask) all.set(mask, index * words)
  return tensor(all, [rows.length, words])
}

/** Every weight that generation reads. */
export const weightsOf = (model: CausalLm): Tensor[] =>
  [...model.sites.values(), model.outputSite].flatMap((site) => [...weightTensors(site).values()])

/** The number of tokens that the next step takes per text: what is left, padded, or as much as there is room for. */
function bucketFor(rest: number, room: number): number {
  const size =
    lengthBuckets.find((bucket) => bucket >= rest && bucket <= room) ??
    lengthBuckets.findLast((bucket) => bucket <= rest && bucket <= room)
  if (size === undefined)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'generate',
      expected: 'room in the cache',
      got: 'a full one',
    })
  return size
}
