/** Sparse matrices of a fixed support: where the entries lie is data that is checked once; their values are learned. */
import { HeddleError } from '../errors.js'
import { misuse, typeText } from '../graph/operator.js'
import { abs, broadcastTo, constant } from '../graph/ops/elementwise.js'
import { scatterAdd } from '../graph/ops/gather.js'
import { reshape } from '../graph/ops/reduce.js'
import { topk } from '../graph/ops/sort.js'
import type { SparseSupport } from '../graph/ops/sparse.js'
import type { Sym } from '../graph/sym.js'
import { addon, type NativeSupport } from '../native.js'
import { Tensor, tensor } from '../tensor/tensor.js'

/** Coordinates of entries, in any order. */
export interface SparseEntries {
  /** i32 `[count]` */
  readonly rows: Tensor | Int32Array
  /** i32 `[count]` */
  readonly columns: Tensor | Int32Array
}

/** A support that was made from coordinates, and where each of its entries stood among them. */
export interface SupportOfEntries {
  readonly support: SparseSupport
  /** i32 `[count]`: entry t of the support was entry source[t] of the input. */
  readonly source: Tensor
}

/**
 * The support with these entries; sorting costs O(count + rows + columns).
 * @throws ERR_HEDDLE_ARGUMENT when an entry lies outside of the matrix or is given twice; ERR_HEDDLE_SHAPE
 */
export async function supportFromEntries(
  entries: SparseEntries,
  shape: readonly [number, number],
): Promise<SupportOfEntries> {
  const [rows, columns] = [entries.rows, entries.columns].map((each) => (each instanceof Tensor ? each : tensor(each)))
  try {
    const { source, ...native } = await addon.sparseSupportFromEntries(rows!.native, columns!.native, ...shape)
    return { support: supportOf(native, shape), source: new Tensor(source!) }
  } finally {
    if (rows !== entries.rows) rows!.dispose()
    if (columns !== entries.columns) columns!.dispose()
  }
}

/**
 * The support of a CSR matrix, as from a file: everything about it is checked.
 * @param rowPointers i32 `[rows + 1]`, rising from 0 to count
 * @param columnIndices i32 `[count]`, ascending in each row
 * @throws ERR_HEDDLE_FORMAT, ERR_HEDDLE_SHAPE
 */
export async function supportFromRows(
  rowPointers: Tensor,
  columnIndices: Tensor,
  shape: readonly [number, number],
): Promise<SparseSupport> {
  if (rowPointers.size !== shape[0] + 1)
    throw new HeddleError('ERR_HEDDLE_FORMAT', {
      place: 'supportFromRows',
      expected: `${shape[0] + 1} row pointers`,
      got: `${rowPointers.size}`,
    })
  return supportOf(await addon.sparseSupportFromRows(rowPointers.native, columnIndices.native, shape[1]), shape)
}

/**
 * Where a mask `[rows, columns]`, f32 or u8, is not 0; see {@link nmMask}.
 * @throws ERR_HEDDLE_SHAPE
 */
export async function supportFromMask(mask: Tensor): Promise<SparseSupport> {
  return supportOf(await addon.sparseSupportFromMask(mask.native), [mask.shape[0]!, mask.shape[1]!])
}

/** Options of {@link randomSupport}. */
export interface RandomSupportOptions {
  /** Share of the entries, above 0 and at most 1; ⌊density · rows · columns⌋ entries, as SLTrain truncates. */
  readonly density: number
  /** Default 0. */
  readonly seed?: number
}

/**
 * Entries drawn without replacement, every set as likely as any other. The same arguments give the same support on any
 * machine; memory is proportional to the entries.
 * @throws ERR_HEDDLE_ARGUMENT
 */
export async function randomSupport(
  shape: readonly [number, number],
  { density, seed = 0 }: RandomSupportOptions,
): Promise<SparseSupport> {
  if (!(density > 0 && density <= 1))
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'randomSupport.density',
      expected: 'more than 0 and at most 1',
      got: String(density),
    })
  const count = Math.floor(density * shape[0] * shape[1])
  return supportOf(await addon.randomSparseSupport(...shape, count, seed), shape)
}

/** Frees the tensors of a support. */
export function disposeSupport(support: SparseSupport): void {
  for (const each of [support.rowPointers, support.columnIndices, support.columnPointers, support.rowIndices])
    each.dispose()
  support.columnOrder.dispose()
}

/**
 * 1 at the `kept` largest magnitudes of every `of` elements in a row of the last axis, else 0 (2:4 sparsity is
 * `nmMask(w, 2, 4)`); among equals the first are kept. Magnitudes of the weight alone; any score can be given instead.
 * @param score `[..., d]` with d a multiple of `of`
 * @returns the score's shape, f32 (f64 for f64)
 * @throws ERR_HEDDLE_SHAPE
 */
export function nmMask(score: Sym, kept: number, of: number): Sym {
  const width = score.shape.at(-1) ?? 0
  if (!(Number.isInteger(of) && of >= 1 && Number.isInteger(kept) && kept >= 0 && kept <= of && width % of === 0))
    misuse('nm_mask', `0 <= n <= m and a last axis that m divides`, `${kept}:${of} of ${typeText(score)}`)
  const groups = reshape(abs(score), [-1, of])
  const { indices } = topk(groups, kept)
  const ones = broadcastTo(constant(1, groups.dtype === 'f64' ? 'f64' : 'f32'), indices.shape)
  return reshape(scatterAdd(indices, ones, of, 1), score.shape)
}

/** 1 at the `count` elements of x of largest magnitude, else 0. */
export function largestMask(x: Sym, count: number): Sym {
  const flat = reshape(abs(x), [1, -1])
  const { indices } = topk(flat, count)
  return reshape(scatterAdd(indices, broadcastTo(constant(1, 'f32'), indices.shape), flat.shape[1]!, 1), x.shape)
}

function supportOf(native: NativeSupport, shape: readonly [number, number]): SparseSupport {
  const columnIndices = new Tensor(native.columnIndices)
  return {
    shape,
    count: columnIndices.size,
    rowPointers: new Tensor(native.rowPointers),
    columnIndices,
    columnPointers: new Tensor(native.columnPointers),
    rowIndices: new Tensor(native.rowIndices),
    columnOrder: new Tensor(native.columnOrder),
  }
}
