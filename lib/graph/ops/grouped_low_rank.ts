/** Low-rank updates of which every row has its own (Chen et al. 2023, "Punica", arXiv 2310.18547). */
import { sameShape, shapeText } from '../../tensor/dtype.js'
import { type Decomposition, defineOperator, floatType, misuse, typeText } from '../operator.js'
import type { Sym, SymType } from '../sym.js'
import { add, greaterEqual, less, mul, select } from './elementwise.js'
import { arange } from './gather.js'
import { slice } from './index.js'
import { matmul } from './matmul.js'
import { reshape } from './reduce.js'

/** Which low-rank update each row gets. */
export interface GroupedRows {
  /** `i32 [n, 2]`: first row in the pools, and rank; rank 0: no update. */
  readonly ranges: Sym
  /** `f32 [n]` */
  readonly scales: Sym
}

function groupedTypes([y, x, a, b, ranges, scales]: readonly (Sym | undefined)[]): SymType[] {
  const op = 'grouped_low_rank'
  const [n, out] = y!.shape
  const [rows, inner] = a!.shape
  const fits = y!.rank === 2 && a!.rank === 2 && sameShape(x!.shape, [n!, inner!]) && sameShape(b!.shape, [rows!, out!])
  if (!fits)
    misuse(
      op,
      'y [n, out], x [n, in], a [R, in] and b [R, out]',
      [y!, x!, a!, b!].map(({ shape }) => shapeText(shape)).join(', '),
    )
  if (ranges!.dtype !== 'i32' || !sameShape(ranges!.shape, [n!, 2]))
    misuse(op, `ranges i32 [${n}, 2]`, typeText(ranges))
  if (!sameShape(scales!.shape, [n!])) misuse(op, `scales [${n}]`, typeText(scales))
  return [{ shape: y!.shape, dtype: floatType(op, [y, x, a, b]) }]
}

const decompose: Decomposition = ([y, x, a, b, ranges, scales]) => {
  const row = arange(a!.shape[0]!)
  const [first, rank] = [0, 1].map((start) => slice(ranges!, [{ axis: 1, start, end: start + 1 }])) as [Sym, Sym]
  const own = mul(greaterEqual(row, first), less(row, add(first, rank)))
  const inner = select(own, matmul(x!, a!, { transposeB: true }), 0)
  return [add(y!, mul(reshape(scales!, [-1, 1]), matmul(inner, b!)))]
}

const groupedOf = defineOperator({
  name: 'grouped_low_rank',
  types: groupedTypes,
  inPlace: [[0, 0]],
  decompose,
  vjp: { none: 'pools of low-rank factors serve inference only' },
})

/**
 * `y + scaleᵢ · (xᵢ Aᵢᵀ) Bᵢ` for `y [n, out]`, `x [n, in]`, where the factors of row i are rows
 * `first` to `first + rank` of the pools `a [R, in]` and `b [R, out]`, f32 or bf16, with `(first, rank) = rangesᵢ`. The
 * pools are read as they lie, so that another program may change them between runs. A row's result is the same bit for
 * bit whatever the other rows are; neighbours with the same range share one pass over their factors.
 * @throws ERR_HEDDLE_SHAPE when operands do not fit; ERR_HEDDLE_ARGUMENT, when run, for a range outside of the pools
 */
export const groupedLowRank = (y: Sym, x: Sym, a: Sym, b: Sym, { ranges, scales }: GroupedRows): Sym =>
  groupedOf([y, x, a, b, ranges, scales])[0]!
