/**
 * One step: the network over the packed tokens of many texts, and the draw of the next tokens of those whose last token
 * is among them. The network is compiled once for each of a few token counts, the draw once for each of a few row
 * counts and each set of options that some row makes use of, so that options cost nothing where nobody asks for them.
 */
import type { Drawn, DrawSettings } from '../generate/session.js'
import { gatherRows, slice } from '../graph/ops/index.js'
import { sampleToken, settingNames } from '../graph/ops/sample.js'
import { type OperatorTime, type Program, program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Forward } from '../nn/site.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import type { AdapterPool } from './adapter_pool.js'
import type { RowRange } from './adapter_ranges.js'
import type { PagedCache } from './paged_cache.js'
import type { TextPages } from './text_pages.js'

/** A text's part of a step. */
export interface StepPart {
  readonly tokens: ArrayLike<number>
  /** Position of the part's first token. */
  readonly start: number
  readonly count: number
  readonly pages: TextPages
  /** The text's rows in the adapter pool, if it has an adapter. */
  readonly adapter?: RowRange | undefined
  /** Tokens of the text for the rotation of the one at `position`; see `LengthDependence`. */
  lengthAt(position: number): number
  /** How the token behind the part's last one is drawn; undefined where that is not wanted. */
  readonly draw?: StepDraw | undefined
}

/** How one token is drawn. */
export interface StepDraw {
  readonly settings: DrawSettings
  readonly mask?: Uint32Array | undefined
  readonly history?: { readonly tokens: readonly number[]; readonly promptLength: number } | undefined
  /** `[vocabulary]` */
  readonly bias?: Float32Array | undefined
  /** So many of the most likely tokens are reported; 0 reports no log-probability. */
  readonly top: number
}

/** What steps are made for. */
export interface StepOptions {
  readonly network: CausalLm
  readonly forward: Forward
  readonly cache: PagedCache
  readonly adapters: AdapterPool
  /** Most texts of a step. */
  readonly maxBatch: number
  /** Most tokens of a step. */
  readonly stepTokens: number
  /** Most pages of a text. */
  readonly textPages: number
}

/** Which optional inputs and outputs a draw has. */
interface Variant {
  readonly bias: boolean
  readonly mask: boolean
  /** Tokens of history that fit; 0 for none. */
  readonly history: number
  readonly top: number
}

/** A draw whose text's last token is row `row` of the step, and which makes token `count` of its text. */
interface RowDraw extends StepDraw {
  readonly row: number
  readonly count: number
}

const smallestHistory = 256
/** Draws that are kept, each compiled for some row counts; the one that was used longest ago goes first. */
const mostDraws = 16

export class StepRunner {
  readonly #options: StepOptions
  /** The last hidden states of the rows that draw, `[maxBatch, dim]`. */
  readonly #body: Program<Sym>
  /** The same with the updates of adapters. */
  readonly #adapted: Program<Sym>
  readonly #draws = new Map<string, Program<Sym[]>>()
  readonly #tables: Int32Array
  readonly #counts: readonly number[]
  readonly #rowCounts: readonly number[]

  constructor(options: StepOptions) {
    this.#options = options
    this.#tables = new Int32Array(options.maxBatch * options.textPages)
    this.#counts = sizesUpTo(options.stepTokens)
    this.#rowCounts = sizesUpTo(options.maxBatch)
    const { forward, adapters, network } = options
    const compiling = { cacheSize: this.#counts.length, device: network.device }
    this.#body = program((...inputs) => this.#hidden(inputs, forward), compiling)
    this.#adapted = program(
      (ranges, scales, ...inputs) =>
        this.#hidden(inputs, { ...forward, hook: adapters.hook({ ranges: ranges!, scales: scales! }) }),
      compiling,
    )
  }

  /** Time per operator so far. */
  profile(): readonly OperatorTime[] {
    return [this.#body, this.#adapted, ...this.#draws.values()].flatMap((each) => each.profile())
  }

  /** Runs a step. @returns the drawn tokens, by part; undefined for parts that draw none */
  async run(parts: readonly StepPart[]): Promise<(Drawn | undefined)[]> {
    const isAdapted = parts.some(({ adapter }) => adapter !== undefined)
    const inputs = isAdapted ? [...this.#adapterInputs(parts), ...this.#inputs(parts)] : this.#inputs(parts)
    const hidden = await disposing(inputs, () => (isAdapted ? this.#adapted : this.#body).run(inputs))
    try {
      const drawn = await this.#draw(hidden, rowsThatDraw(parts))
      return parts.map(({ draw }) => (draw ? drawn.shift() : undefined))
    } finally {
      hidden.dispose()
    }
  }

  dispose(): void {
    for (const each of [this.#body, this.#adapted, ...this.#draws.values()]) each.dispose()
  }

  async #hidden(inputs: readonly Sym[], forward: Forward): Promise<Sym> {
    const { network, cache } = this.#options
    const [ids, position, lengths, slots, tables, starts, positions, last] = inputs as Sym[]
    const view = cache.at(
      { slots: slots!, tables: tables!, starts: starts!, positions: positions! },
      network.maxPositions,
    )
    const call = { ids: ids!, position: position!, lengths: lengths!, cache: view }
    return gatherRows(await network.hidden(call, forward), last!)
  }

  /** Ranges and scales by token. */
  #adapterInputs(parts: readonly StepPart[]): Tensor[] {
    const size = sizeFor(this.#counts, tokenCount(parts))
    const ranges = new Int32Array(2 * size)
    let row = 0
    for (const { adapter, count } of parts)
      for (const end = row + count; row < end; row += 1) if (adapter) ranges.set([adapter.first, adapter.rank], 2 * row)
    return [tensor(ranges, [size, 2]), tensor(new Float32Array(size).fill(1))]
  }

  /** The inputs of {@link StepRunner.#hidden}; tokens of padding are written nowhere and belong to no text. */
  #inputs(parts: readonly StepPart[]): Tensor[] {
    const { maxBatch, textPages } = this.#options
    const count = tokenCount(parts)
    const size = sizeFor(this.#counts, count)
    const [ids, position, lengths] = [0, 1, 2].map(() => new Int32Array(size)) as [Int32Array, Int32Array, Int32Array]
    const slots = new Int32Array(size).fill(-1)
    const starts = new Int32Array(maxBatch + 1).fill(count)
    const positions = new Int32Array(maxBatch)
    let row = 0
    for (const [index, { tokens, start, count: own, pages, lengthAt }] of parts.entries()) {
      starts[index] = row
      positions[index] = start
      this.#tables.set(pages.pages, index * textPages)
      for (let at = start; at < start + own; at += 1, row += 1) {
        ids[row] = tokens[at]!
        position[row] = at
        lengths[row] = lengthAt(at)
        slots[row] = pages.slot(at)
      }
    }
    const last = new Int32Array(maxBatch)
    last.set(rowsThatDraw(parts).map((draw) => draw.row))
    return [
      tensor(ids, [size, 1]),
      ...[position, lengths, slots].map((each) => tensor(each)),
      tensor(this.#tables, [maxBatch, textPages]),
      ...[starts, positions, last].map((each) => tensor(each)),
    ]
  }

  async #draw(hidden: Tensor, rows: readonly RowDraw[]): Promise<Drawn[]> {
    if (rows.length === 0) return []
    const variant = variantOf(rows, this.#options.network)
    const inputs = this.#drawInputs(rows, variant)
    const outputs = await disposing(inputs, () => this.#drawProgram(variant).run([hidden, ...inputs]))
    return drawnOf(outputs, rows, variant.top)
  }

  #drawInputs(rows: readonly RowDraw[], variant: Variant): Tensor[] {
    const { vocabularySize } = this.#options.network
    const size = sizeFor(this.#rowCounts, rows.length)
    const draws = new Uint32Array(4 * size)
    const settings = new Float32Array(settingNames.length * size)
    for (const [index, { settings: own, count }] of rows.entries()) {
      draws.set([own.seed % 2 ** 32, Math.floor(own.seed / 2 ** 32), count, own.stream], 4 * index)
      settings.set(
        settingNames.map((name) => own[name]),
        settingNames.length * index,
      )
    }
    const inputs = [tensor(draws, [size, 4]), tensor(settings, [size, settingNames.length])]
    if (variant.history > 0) inputs.push(...historyInputs(rows, size, variant.history))
    if (variant.mask) inputs.push(maskInput(rows, size, vocabularySize))
    if (variant.bias) inputs.push(biasInput(rows, size, vocabularySize))
    return inputs
  }

  #drawProgram(variant: Variant): Program<Sym[]> {
    const key = JSON.stringify(variant)
    const found = this.#draws.get(key) ?? this.#compiledDraw(variant)
    this.#draws.delete(key)
    this.#draws.set(key, found)
    const [oldest] = this.#draws.keys()
    if (this.#draws.size > mostDraws) {
      this.#draws.get(oldest!)!.dispose()
      this.#draws.delete(oldest!)
    }
    return found
  }

  #compiledDraw(variant: Variant): Program<Sym[]> {
    const { network, forward } = this.#options
    return program(
      (hidden, draws, settings, ...more) => {
        const rows = slice(hidden!, [{ axis: 0, start: 0, end: draws!.shape[0]! }])
        const [history, promptLength] = variant.history > 0 ? more.splice(0, 2) : []
        const [mask] = variant.mask ? more.splice(0, 1) : []
        const [bias] = more
        const edits = { bias, mask, history, promptLength }
        const top = Math.max(1, variant.top)
        const sampled = sampleToken(network.logits(rows, forward), {
          draws: draws!,
          settings: settings!,
          ...edits,
          top,
        })
        const { token, logProbability, topTokens, topLogProbabilities } = sampled
        return variant.top === 0 ? [token] : [token, logProbability, topTokens, topLogProbabilities]
      },
      { cacheSize: this.#rowCounts.length, device: network.device },
    )
  }
}

/** 1, 2, 3, 4, 6, 8, 12, … and the limit: what counts are padded to. */
function sizesUpTo(limit: number): number[] {
  const sizes = [limit]
  for (let power = 1; power < limit; power *= 2) {
    sizes.push(power)
    if (power > 1 && power * 1.5 < limit) sizes.push(power * 1.5)
  }
  return sizes.sort((a, b) => a - b)
}

const tokenCount = (parts: readonly StepPart[]): number => parts.reduce((sum, { count }) => sum + count, 0)

const sizeFor = (sizes: readonly number[], count: number): number => sizes.find((size) => size >= count)!

function rowsThatDraw(parts: readonly StepPart[]): RowDraw[] {
  let end = 0
  return parts.flatMap(({ draw, start, count }) => {
    end += count
    return draw ? [{ ...draw, row: end - 1, count: start + count }] : []
  })
}

/** What some row makes use of, in a few sizes: a client could ask for every number there is. */
function variantOf(rows: readonly StepDraw[], { vocabularySize }: CausalLm): Variant {
  const longest = Math.max(...rows.map(({ history }) => history?.tokens.length ?? 0))
  const top = Math.max(...rows.map((row) => row.top))
  return {
    bias: rows.some(({ bias }) => bias !== undefined),
    mask: rows.some(({ mask }) => mask !== undefined),
    history: longest === 0 ? 0 : powerOfTwo(Math.max(smallestHistory, longest)),
    top: top === 0 ? 0 : Math.min(vocabularySize, powerOfTwo(top)),
  }
}

/** The next power of two from a number on. */
const powerOfTwo = (least: number): number => 2 ** Math.ceil(Math.log2(least))

function historyInputs(rows: readonly StepDraw[], size: number, width: number): Tensor[] {
  const tokens = new Int32Array(size * width).fill(-1)
  const lengths = new Int32Array(size)
  for (const [index, { history }] of rows.entries()) {
    if (!history) continue
    tokens.set(history.tokens, index * width)
    lengths[index] = history.promptLength
  }
  return [tensor(tokens, [size, width]), tensor(lengths)]
}

function maskInput(rows: readonly StepDraw[], size: number, vocabulary: number): Tensor {
  const words = Math.ceil(vocabulary / 32)
  const all = new Uint32Array(size * words).fill(2 ** 32 - 1)
  for (const [index, { mask }] of rows.entries()) if (mask) all.set(mask, index * words)
  return tensor(all, [size, words])
}

function biasInput(rows: readonly StepDraw[], size: number, vocabulary: number): Tensor {
  const all = new Float32Array(size * vocabulary)
  for (const [index, { bias }] of rows.entries()) if (bias) all.set(bias, index * vocabulary)
  return tensor(all, [size, vocabulary])
}

function drawnOf(outputs: readonly Tensor[], rows: readonly StepDraw[], width: number): Drawn[] {
  const [tokens, logProbabilities, topTokens, topLogProbabilities] = outputs.map((output) => output.smallData())
  for (const output of outputs) output.dispose()
  return rows.map(({ top }, row) => {
    const token = Number(tokens![row])
    if (top === 0) return { token }
    const ranked = Array.from({ length: Math.min(top, width) }, (_, rank) => ({
      token: Number(topTokens![row * width + rank]),
      logProbability: Number(topLogProbabilities![row * width + rank]),
    }))
    return { token, logProbability: Number(logProbabilities![row]), top: ranked }
  })
}

async function disposing<R>(inputs: readonly Tensor[], work: () => Promise<R>): Promise<R> {
  try {
    return await work()
  } finally {
    for (const input of inputs) input.dispose()
  }
}
