/**
 * The factors of many adapters side by side: for every linear site a matrix of A's rows and one of B's columns, in which
 * an adapter has the same range of rows everywhere.
 */
import { Adapter } from '../adapters/adapter.js'
import { disposeFactors, factorsOf } from '../adapters/as_lora.js'
import { type ScaledFactors, storedFactorsOf } from '../adapters/stored_factors.js'
import { HeddleError } from '../errors.js'
import { type GroupedRows, groupedLowRank } from '../graph/ops/grouped_low_rank.js'
import { pause } from '../graph/pause.js'
import { read } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import { linearShape, type Site, type SiteHook } from '../nn/site.js'
import { type Tensor, writeRows, zeros } from '../tensor/tensor.js'
import type { RowRange } from './adapter_ranges.js'
import type { ReadAdapter } from './adapter_store.js'

/** How large the pools are, and how their numbers are stored. */
export interface AdapterPoolOptions {
  readonly rows: number
  readonly dtype: 'f32' | 'bf16'
}

/** A site's pools: A's rows `[rows, in]` and B's columns `[rows, out]`. */
interface SitePool {
  readonly a: Tensor
  readonly b: Tensor
}

/** Their writes are handed over in well under a millisecond. */
const sitesAtOnce = 32

/** Sites that adapters of an engine can act on: the output projection is computed for few rows only. */
const poolSites = ({ sites }: CausalLm): Site[] =>
  [...sites.values()].filter(({ kind, isOutput }) => kind === 'linear' && !isOutput)

/** Bytes of one row over all sites. */
export const rowBytes = (network: CausalLm, { dtype }: Pick<AdapterPoolOptions, 'dtype'>): number =>
  poolSites(network).reduce((sum, site) => sum + linearShape(site)[0] + linearShape(site)[1], 0) *
  (dtype === 'f32' ? 4 : 2)

export class AdapterPool {
  readonly #network: CausalLm
  readonly #pools: ReadonlyMap<string, SitePool>

  private constructor(network: CausalLm, pools: ReadonlyMap<string, SitePool>) {
    this.#network = network
    this.#pools = pools
  }

  /** Memory is taken as rows are first written. */
  static async create(network: CausalLm, { rows, dtype }: AdapterPoolOptions): Promise<AdapterPool> {
    const pools = new Map<string, SitePool>()
    for (const site of poolSites(network)) {
      const [out, inner] = linearShape(site)
      pools.set(site.path, { a: zeros([rows, inner], dtype), b: zeros([rows, out], dtype) })
      await pause()
    }
    return new AdapterPool(network, pools)
  }

  /** The updates of a traced step, one token a row. */
  hook(rows: GroupedRows): SiteHook {
    return {
      targets: ({ path }) => this.#pools.has(path),
      apply: ({ path }, x, base) => {
        const { a, b } = this.#pools.get(path)!
        return groupedLowRank(base(), x, read(a), read(b), rows)
      },
    }
  }

  /**
   * Reads an adapter's folder.
   * @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, and ERR_HEDDLE_ARGUMENT when the change is of no low rank or at a module
   *   that has no pool
   */
  async read(folder: string): Promise<ReadAdapter> {
    const factors = (await storedFactorsOf(this.#network, folder)) ?? (await this.#computedFactors(folder))
    try {
      for (const path of factors.keys()) this.#expectPool({ path, kind: 'linear' })
    } catch (error) {
      disposeFactors(factors)
      throw error
    }
    const rank = Math.max(...[...factors.values()].map(({ a }) => a.shape[0]!))
    return { rank, write: (range) => this.#write(factors, range), dispose: () => disposeFactors(factors) }
  }

  dispose(): void {
    for (const { a, b } of this.#pools.values()) for (const each of [a, b]) each.dispose()
  }

  #expectPool({ path, kind }: Pick<Site, 'path' | 'kind'>): void {
    if (this.#pools.has(path)) return
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: path,
      expected: "an adapter of the layers' linear modules, which an engine can choose per request",
      got: kind === 'linear' ? 'one of the output projection' : `one of a module of the kind ${kind}`,
      hint: 'Merge it into the model instead.',
    })
  }

  /** The factors of a method that computes them from what its file holds. */
  async #computedFactors(folder: string): Promise<Map<string, ScaledFactors>> {
    const adapter = await Adapter.load(this.#network, folder)
    try {
      for (const { site } of adapter.attachments.values()) this.#expectPool(site)
      const factors = await factorsOf(adapter)
      return new Map([...factors].map(([path, { a, b }]) => [path, { a, b, scale: 1 }]))
    } finally {
      adapter.dispose()
    }
  }

  /** Fills a range in all pools; a step that runs at the same time reads other rows. */
  async #write(factors: ReadonlyMap<string, ScaledFactors>, { first, rank }: RowRange): Promise<void> {
    const rows = { first, count: rank }
    const sites = [...this.#pools]
    for (let start = 0; start < sites.length; start += sitesAtOnce)
      await writeRows(
        sites.slice(start, start + sitesAtOnce).flatMap(([path, { a, b }]) => {
          const own = factors.get(path)
          return [
            { ...rows, target: a, source: own?.a },
            { ...rows, target: b, source: own?.b, transposed: true, scale: own?.scale },
          ]
        }),
      )
  }
}
