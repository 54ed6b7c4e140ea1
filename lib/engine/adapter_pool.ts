/**
 * The factors of many adapters side by side: for every linear site a matrix of A's rows and one of B's columns, in which
 * an adapter has the same range of rows everywhere.
 */
import { Adapter } from '../adapters/adapter.js'
import { disposeFactors, type FactorTensors, factorsOf } from '../adapters/as_lora.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { broadcastTo, constant } from '../graph/ops/elementwise.js'
import { type GroupedRows, groupedLowRank } from '../graph/ops/grouped_low_rank.js'
import { cacheUpdate, concat, transpose } from '../graph/ops/index.js'
import { reshape } from '../graph/ops/reduce.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import type { CausalLm } from '../models/causal_lm.js'
import { linearShape, type Site, type SiteHook } from '../nn/site.js'
import { type Tensor, tensor, zeros } from '../tensor/tensor.js'
import type { RowRange } from './adapter_ranges.js'
import type { ReadAdapter } from './adapter_store.js'

/** How large the pools are, and how their numbers are stored. */
export interface AdapterPoolOptions {
  readonly rows: number
  readonly dtype: 'f32' | 'bf16'
}

/** A site's pools: A's rows `[1, rows, 1, in]` and B's columns `[1, rows, 1, out]`. */
interface SitePool {
  readonly a: Tensor
  readonly b: Tensor
}

/** Sites that adapters of an engine can act on: the output projection is computed for few rows only. */
const poolSites = ({ sites }: CausalLm): Site[] =>
  [...sites.values()].filter(({ kind, isOutput }) => kind === 'linear' && !isOutput)

/** Bytes of one row over all sites. */
export const rowBytes = (network: CausalLm, { dtype }: Pick<AdapterPoolOptions, 'dtype'>): number =>
  poolSites(network).reduce((sum, site) => sum + linearShape(site)[0] + linearShape(site)[1], 0) *
  (dtype === 'f32' ? 4 : 2)

export class AdapterPool {
  readonly #network: CausalLm
  readonly #rows: number
  readonly #pools: ReadonlyMap<string, SitePool>

  private constructor(network: CausalLm, rows: number, pools: ReadonlyMap<string, SitePool>) {
    this.#network = network
    this.#rows = rows
    this.#pools = pools
  }

  /** Memory is taken as rows are first written. */
  static async create(network: CausalLm, { rows, dtype }: AdapterPoolOptions): Promise<AdapterPool> {
    const pools = new Map<string, SitePool>()
    for (const site of poolSites(network)) {
      const [out, inner] = linearShape(site)
      pools.set(site.path, { a: zeros([1, rows, 1, inner], dtype), b: zeros([1, rows, 1, out], dtype) })
      await pause()
    }
    return new AdapterPool(network, rows, pools)
  }

  /** The updates of a traced step, one token a row. */
  hook(rows: GroupedRows): SiteHook {
    const matrix = (pool: Tensor): Sym => reshape(read(pool), [this.#rows, -1])
    return {
      targets: ({ path }) => this.#pools.has(path),
      apply: ({ path }, x, base) => {
        const { a, b } = this.#pools.get(path)!
        return groupedLowRank(base(), x, matrix(a), matrix(b), rows)
      },
    }
  }

  /**
   * Reads an adapter's folder.
   * @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, and ERR_HEDDLE_ARGUMENT when the change is of no low rank or at a module
   *   that has no pool
   */
  async read(folder: string): Promise<ReadAdapter> {
    const adapter = await Adapter.load(this.#network, folder)
    let factors: Map<string, FactorTensors>
    try {
      for (const { site } of adapter.attachments.values()) this.#expectPool(site)
      factors = await factorsOf(adapter)
    } finally {
      adapter.dispose()
    }
    const rank = Math.max(...[...factors.values()].map(({ a }) => a.shape[0]!))
    return { rank, write: (range) => this.#write(factors, range), dispose: () => disposeFactors(factors) }
  }

  dispose(): void {
    for (const { a, b } of this.#pools.values()) for (const each of [a, b]) each.dispose()
  }

  #expectPool({ path, kind }: Site): void {
    if (this.#pools.has(path)) return
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: path,
      expected: "an adapter of the layers' linear modules, which an engine can choose per request",
      got: kind === 'linear' ? 'one of the output projection' : `one of a module of the kind ${kind}`,
      hint: 'Merge it into the model instead.',
    })
  }

  /** Fills a range in all pools; a step that runs at the same time reads other rows. */
  async #write(factors: ReadonlyMap<string, FactorTensors>, { first, rank }: RowRange): Promise<void> {
    using position = tensor(Int32Array.of(first))
    await computed(
      async (start) => {
        for (const [path, pool] of this.#pools) {
          const own = factors.get(path)
          const place = (target: Tensor, rows: Sym | undefined): void => {
            const width = target.shape[3]!
            cacheUpdate(read(target), reshape(padded(rows, rank, width), [1, rank, 1, width]), start!)
          }
          place(pool.a, own && read(own.a))
          place(pool.b, own && transpose(read(own.b)))
          await pause()
        }
        return []
      },
      [position],
    )
  }
}

/** `[rank, width]`: the rows there are, and zeros behind them. */
function padded(rows: Sym | undefined, rank: number, width: number): Sym {
  if (!rows) return broadcastTo(constant(0), [rank, width])
  const missing = rank - rows.shape[0]!
  return missing === 0 ? rows : concat([rows, broadcastTo(constant(0), [missing, width])])
}
