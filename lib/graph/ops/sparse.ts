/**
 * Products with a sparse matrix S whose support is fixed and whose values are learned. The gradient of the values is a
 * sampled product (SDDMM): d loss / d S is never made as a whole.
 */
import { sameShape, shapeText } from '../../tensor/dtype.js'
import type { Tensor } from '../../tensor/tensor.js'
import { defineOperator, floatType, misuse, typeText } from '../operator.js'
import { read, type Sym } from '../sym.js'
import { matmul, type Precision } from './matmul.js'
import { reshape } from './reduce.js'

/** Where S `[rows, columns]` may have non-zeros, by rows (CSR, the order of the values) and by columns (CSC). */
export interface SparseSupport {
  /** [rows, columns] */
  readonly shape: readonly [number, number]
  /** Number of entries. */
  readonly count: number
  /** i32 [rows + 1] */
  readonly rowPointers: Tensor
  /** i32 [count], ascending in each row */
  readonly columnIndices: Tensor
  /** i32 [columns + 1] */
  readonly columnPointers: Tensor
  /** i32 [count], ascending in each column */
  readonly rowIndices: Tensor
  /** i32 [count]: entry t of the order by columns is entry order[t] of the order by rows. */
  readonly columnOrder: Tensor
}

/** Options of {@link spmm}. */
export interface SpmmOptions {
  /** Multiply with Sᵀ. */
  readonly transpose?: boolean
  /** `left` (default): op(S) x. `right`: x op(S)ᵀ, the form of a linear layer whose weight is S. */
  readonly side?: 'left' | 'right'
}

/** [pointers, indices, order] of one orientation, then of the other; the order by rows is that of the values. */
type Indices = readonly (Sym | undefined)[]

function indicesOf(support: SparseSupport, transpose: boolean): Indices {
  const rows = [read(support.rowPointers), read(support.columnIndices), undefined]
  const columns = [read(support.columnPointers), read(support.rowIndices), read(support.columnOrder)]
  return transpose ? [...columns, ...rows] : [...rows, ...columns]
}

const turned = (indices: Indices): Indices => [...indices.slice(3), ...indices.slice(0, 3)]

const sizeAlong = (pointers: Sym | undefined): number => pointers!.shape[0]! - 1

const spmmOf = defineOperator({
  name: 'spmm',
  attributes: { right: 'i64' },
  types: ([values, x, ...indices], { right }) => {
    const [rows, columns] = [sizeAlong(indices[0]), sizeAlong(indices[3])]
    if (x!.rank !== 2 || x!.shape[right ? 1 : 0] !== columns)
      misuse('spmm', right ? `x [n, ${columns}]` : `x [${columns}, n]`, typeText(x))
    checkValues('spmm', values!, indices)
    const dense = x!.shape[right ? 0 : 1]!
    return [{ shape: right ? [dense, rows] : [rows, dense], dtype: floatType('spmm', [values, x]) }]
  },
  flops: ([values, x], _, { right }) => 2 * values!.shape[0]! * x!.shape[right ? 0 : 1]!,
  vjp: ({ inputs: [values, x, ...indices], attributes, gradients: [g], wanted }) => [
    wanted[0] ? sddmmOf(indices[2] ? [x, g, ...turned(indices)] : [g, x, ...indices], attributes)[0] : undefined,
    wanted[1] ? spmmOf([values, g, ...turned(indices)], attributes)[0] : undefined,
  ],
})

const sddmmOf = defineOperator({
  name: 'sddmm',
  attributes: { right: 'i64' },
  types: ([g, x, ...indices], { right }) => {
    const [rows, columns] = [sizeAlong(indices[0]), sizeAlong(indices[3])]
    const at = right ? 1 : 0
    const fits = g!.rank === 2 && x!.rank === 2 && g!.shape[at] === rows && x!.shape[at] === columns
    if (!fits || g!.shape[1 - at] !== x!.shape[1 - at])
      misuse(
        'sddmm',
        right ? `[n, ${rows}] and [n, ${columns}]` : `[${rows}, n] and [${columns}, n]`,
        `${typeText(g)} and ${typeText(x)}`,
      )
    return [{ shape: indices[1]!.shape, dtype: floatType('sddmm', [g, x]) }]
  },
  flops: ([g], [values], { right }) => 2 * values!.shape[0]! * g!.shape[right ? 0 : 1]!,
  vjp: ({ inputs: [g, x, ...indices], attributes, gradients: [c], wanted }) => [
    wanted[0] ? spmmOf([c, x, ...indices], attributes)[0] : undefined,
    wanted[1] ? spmmOf([c, g, ...turned(indices)], attributes)[0] : undefined,
  ],
})

const sparseAddOf = defineOperator({
  name: 'sparse_add',
  attributes: { columns: 'i64' },
  types: ([values, dense, ...indices], { columns }) => {
    const shape = [sizeAlong(indices[0]), columns as number]
    if (dense && !sameShape(dense.shape, shape)) misuse('sparse_add', shapeText(shape), typeText(dense))
    checkValues('sparse_add', values!, indices)
    return [{ shape, dtype: floatType('sparse_add', dense ? [values, dense] : [values]) }]
  },
  inPlace: [[1, 0]],
  vjp: ({ inputs: [, dense, ...indices], gradients: [g], wanted }) => [
    wanted[0] ? sparseGatherOf([g, ...indices])[0] : undefined,
    dense && wanted[1] ? g : undefined,
  ],
})

const sparseGatherOf = defineOperator({
  name: 'sparse_gather',
  types: ([x, ...indices]) => {
    if (x!.rank !== 2 || x!.shape[0] !== sizeAlong(indices[0]))
      misuse('sparse_gather', `a matrix of ${sizeAlong(indices[0])} rows`, typeText(x))
    return [{ shape: indices[1]!.shape, dtype: floatType('sparse_gather', [x]) }]
  },
  vjp: ({ inputs: [x, ...indices], gradients: [g] }) => [
    sparseAddOf([g, undefined, ...indices], { columns: x!.shape[1]! })[0],
  ],
})

function checkValues(op: string, values: Sym, indices: Indices): void {
  if (!sameShape(values.shape, indices[1]!.shape))
    misuse(op, `values ${shapeText(indices[1]!.shape)}, one per entry of the support`, typeText(values))
}

/**
 * op(S) x, or x op(S)ᵀ with `side: 'right'`. Sums are taken in the order of the support: results do not depend on the
 * number of threads.
 * @param values f32 or f64 `[count]`, in the order of the support by rows
 * @param x `[columns, n]`; with `side: 'right'` `[..., columns]`
 * @returns `[rows, n]`; with `side: 'right'` `[..., rows]`
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT at the run when an index lies outside of the matrix
 */
export function spmm(support: SparseSupport, values: Sym, x: Sym, options: SpmmOptions = {}): Sym {
  const { transpose = false, side = 'left' } = options
  const indices = indicesOf(support, transpose)
  if (side === 'left' || x.rank === 2) return spmmOf([values, x, ...indices], { right: Number(side === 'right') })[0]!
  if (x.rank === 0) misuse('spmm', 'x [..., columns]', typeText(x))
  const flat = reshape(x, [-1, x.shape.at(-1)!])
  return reshape(spmmOf([values, flat, ...indices], { right: 1 })[0]!, [...x.shape.slice(0, -1), sizeAlong(indices[0])])
}

/**
 * The entries (i, j) of the support of a product that is never made as a whole: Σₙ a[i, n] b[j, n], with
 * `side: 'right'` Σₙ a[n, i] b[n, j].
 * @param a `[rows, n]`; with `side: 'right'` `[n, rows]`
 * @param b `[columns, n]`; with `side: 'right'` `[n, columns]`
 * @returns `[count]`
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE
 */
export const sddmm = (support: SparseSupport, a: Sym, b: Sym, options: Pick<SpmmOptions, 'side'> = {}): Sym =>
  sddmmOf([a, b, ...indicesOf(support, false)], { right: Number(options.side === 'right') })[0]!

/**
 * S as a dense matrix, plus `addend` of the same shape where given.
 * @param values f32 or f64 `[count]`
 * @returns `[rows, columns]`
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE
 */
export function sparseToDense(support: SparseSupport, values: Sym, addend?: Sym): Sym {
  const columns = support.shape[1]
  return sparseAddOf([values, addend, ...indicesOf(support, false).slice(0, 3)], { columns })[0]!
}

/**
 * The elements of a dense matrix on the support.
 * @param x `[rows, columns]`
 * @returns `[count]`
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE
 */
export function sparseGather(support: SparseSupport, x: Sym): Sym {
  if (!sameShape(x.shape, support.shape)) misuse('sparse_gather', shapeText(support.shape), typeText(x))
  return sparseGatherOf([x, ...indicesOf(support, false).slice(0, 3)])[0]!
}

/** How {@link sparseLowRankLinear} computes. */
export type SparseLowRankPath = 'split' | 'materialised'

/** The parts of W = scale · B A + S. */
export interface SparseLowRankParts {
  /** `[out, r]` */
  readonly b: Sym
  /** `[r, in]` */
  readonly a: Sym
  readonly support: SparseSupport
  /** `[count]` */
  readonly values: Sym
  /** Factor on B A alone; default 1. */
  readonly scale?: number
}

/** Options of {@link sparseLowRankLinear}. */
export interface SparseLowRankOptions {
  /** Default: the one that {@link sparseLowRankPath} finds cheaper. */
  readonly path?: SparseLowRankPath
  /** Of the dense products; default `f32`. */
  readonly precision?: Precision
}

/**
 * Time of a multiplication with an entry of S against one of a dense product: a dense product reuses what it loads, a
 * sparse one loads a vector for each multiplication. Measured on one AVX-512 core, 256 to 1024 rows: 2.3 to 2.7 at 10 to
 * 30 %, 3.6 at 3 %, where turning x and y counts; whole training steps, in which paths are near each other at 30 %, ask
 * for 3.
 */
const sparseCost = 3

/**
 * The cheaper path for x `[n, in]` through W = B A + S: multiplications of the forward pass, those of S weighted by what
 * they cost more. Both passes of the gradient have the same ratio: each path's backward pass is twice its forward pass.
 */
export function sparseLowRankPath(sizes: {
  readonly n: number
  readonly in: number
  readonly out: number
  readonly rank: number
  readonly count: number
}): SparseLowRankPath {
  const { n, rank, count } = sizes
  const split = n * (rank * (sizes.in + sizes.out) + sparseCost * count)
  const materialised = sizes.in * sizes.out * (rank + n)
  return split <= materialised ? 'split' : 'materialised'
}

/**
 * x Wᵀ with W = scale · B A + S, `[out, in]` (SLTrain, arXiv 2406.02214). `split` never makes W: (x Aᵀ) Bᵀ + x Sᵀ, and
 * in the backward pass the values of S get theirs by {@link sddmm}. `materialised` makes W, and d loss / d W in
 * the backward pass, which is cheaper for many rows of x where rank and density are high.
 * @param x `[..., in]`
 * @returns `[..., out]`
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE
 */
export function sparseLowRankLinear(x: Sym, parts: SparseLowRankParts, options: SparseLowRankOptions = {}): Sym {
  const { a, b, support, values, scale = 1 } = parts
  const { precision = 'f32' } = options
  const [rows, columns] = support.shape
  const rank = a.shape[0]!
  if (!sameShape(a.shape, [rank, columns]) || !sameShape(b.shape, [rows, rank]) || x.shape.at(-1) !== columns)
    misuse(
      'sparse_low_rank_linear',
      `x [..., ${columns}], B [${rows}, r] and A [r, ${columns}]`,
      [x, b, a].map(typeText).join(', '),
    )
  const n = x.shape.slice(0, -1).reduce((product, size) => product * size, 1)
  const sizes = { n, in: columns, out: rows, rank, count: support.count }
  if ((options.path ?? sparseLowRankPath(sizes)) === 'materialised')
    return matmul(x, sparseToDense(support, values, matmul(b, a, { alpha: scale })), {
      transposeB: true,
      precision,
    })
  const sparse = spmm(support, values, x, { side: 'right' })
  const low = matmul(x, a, { transposeB: true, precision })
  return matmul(low, b, { transposeB: true, alpha: scale, addend: sparse, precision })
}
