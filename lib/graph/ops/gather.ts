/** Picking and placing elements along any axis, in PyTorch's meaning; ranges, masks, and joining what was picked. */
import { sameShape, shapeText } from '../../tensor/dtype.js'
import { defineOperator, floatType, gradientType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { axisOf, moveAxis } from './axes.js'
import { broadcastShapes, broadcastTo, cast, constant, greaterEqual, mul, sub } from './elementwise.js'
import { concat, gatherRows, placeInZeros, scatterLast, slice } from './index.js'
import { reshape } from './reduce.js'

const sameExcept = (a: readonly number[], b: readonly number[], axis: number): boolean =>
  a.length === b.length && a.every((size, i) => i === axis || size === b[i])

function checkIndex(op: string, like: readonly number[], index: Sym, axis: number): void {
  if (index.dtype !== 'i32') misuse(op, 'an i32 index', typeText(index), 'ERR_HEDDLE_DTYPE')
  if (!sameExcept(like, index.shape, axis))
    misuse(op, `an index ${shapeText(like)} except along axis ${axis}`, shapeText(index.shape))
}

const gatherOf = defineOperator({
  name: 'gather',
  attributes: { axis: 'i64' },
  types: ([x, index], { axis }) => {
    checkIndex('gather', x!.shape, index!, axis as number)
    return [{ shape: index!.shape, dtype: x!.dtype }]
  },
  vjp: ({ inputs: [x, index], attributes: { axis }, gradients: [g] }) => [
    scatterAdd(index!, g!, x!.shape[axis as number]!, axis as number),
    undefined,
  ],
})

const scatterAddOf = defineOperator({
  name: 'scatter_add',
  attributes: { axis: 'i64', size: 'i64' },
  types: ([index, source], { axis, size }) => {
    checkIndex('scatter_add', source!.shape, index!, -1)
    return [{ shape: source!.shape.with(axis as number, size as number), dtype: floatType('scatter_add', [source]) }]
  },
  vjp: ({ inputs: [index], attributes: { axis }, gradients: [g] }) => [undefined, gather(g!, axis as number, index!)],
})

/**
 * y[i, j, k] = x[i, index[i, j, k], k] for axis 1, and so on for the others.
 * @param index i32, of x's rank; along the other axes at most as long as x, as in PyTorch
 * @returns the index's shape, x's dtype. An index outside of the axis fails the run.
 */
export function gather(x: Sym, axis: number, index: Sym): Sym {
  const at = axisOf('gather', x, axis)
  const shorter = index.rank === x.rank && index.shape.every((size, i) => i === at || size <= x.shape[i]!)
  if (!shorter)
    misuse('gather', `an index within ${shapeText(x.shape)} except along axis ${at}`, shapeText(index.shape))
  const ranges = index.shape.flatMap((end, i) => (i === at || end === x.shape[i] ? [] : [{ axis: i, start: 0, end }]))
  return gatherOf([ranges.length ? slice(x, ranges) : x, index], { axis: at })[0]!
}

/** Zeros of the source's shape, `size` long along the axis, with source[i, j, k] added at [i, index[i, j, k], k]. */
export const scatterAdd = (index: Sym, source: Sym, size: number, axis: number): Sym =>
  scatterAddOf([index, source], { axis: axisOf('scatter_add', source, axis), size })[0]!

/** {@link gather} with an index that broadcasts against x along the other axes, as NumPy's take_along_axis. */
export function takeAlongAxis(x: Sym, index: Sym, axis: number): Sym {
  const at = axisOf('take_along_axis', x, axis)
  const others = broadcastShapes([x.shape.with(at, 1), index.shape.with(at, 1)])
  if (!others) misuse('take_along_axis', `an index that broadcasts to ${shapeText(x.shape)}`, shapeText(index.shape))
  const full = (value: Sym): Sym => broadcastTo(value, others.with(at, value.shape[at]!))
  return gatherOf([full(x), full(index)], { axis: at })[0]!
}

/** x at `index` i32 [k] along an axis: the axis becomes k long. */
export function indexSelect(x: Sym, axis: number, index: Sym): Sym {
  if (index.rank !== 1) misuse('index_select', 'an index [k]', typeText(index))
  return moveAxis(gatherRows(moveAxis(x, axis, 0), index), 0, axis)
}

const flipOf = defineOperator({
  name: 'flip',
  attributes: { axis: 'i64' },
  types: ([x]) => [x!],
  vjp: ({ attributes: { axis }, gradients: [g] }) => [flip(g!, axis as number)],
})

/** x from back to front along an axis. */
export const flip = (x: Sym, axis: number): Sym => flipOf([x], { axis: axisOf('flip', x, axis) })[0]!

/** Options of {@link arange}. */
export interface ArangeOptions {
  /** Default 0. */
  readonly start?: number
  /** Default 1. */
  readonly step?: number
  /** Default i32. */
  readonly dtype?: 'i32' | 'f32' | 'f64'
}

const arangeOf = defineOperator({
  name: 'arange',
  attributes: { start: 'f64', step: 'f64', count: 'i64', dtype: 'string' },
  types: (_, { count, dtype }) => [{ shape: [count as number], dtype: dtype as 'i32' | 'f32' | 'f64' }],
  vjp: { none: 'it depends on nothing' },
})

/** start, start + step, …: `count` numbers. */
export const arange = (count: number, { start = 0, step = 1, dtype = 'i32' }: ArangeOptions = {}): Sym =>
  arangeOf([], { start, step, count, dtype })[0]!

/** 1 at index[...], else 0: `index i32 [...]` → `f32 [..., classes]`. An index outside of the classes fails the run. */
export const oneHot = (index: Sym, classes: number): Sym =>
  scatterLast(index, broadcastTo(constant(1), index.shape), classes)

/** x with zeros above the diagonal-th diagonal of its last two axes (0 is the main one, above it they count up). */
export const tril = (x: Sym, diagonal = 0): Sym => mul(x, greaterEqual(diagonalsBelow(x), -diagonal))

/** x with zeros below the diagonal-th diagonal of its last two axes. */
export const triu = (x: Sym, diagonal = 0): Sym => mul(x, greaterEqual(diagonal * -1, diagonalsBelow(x)))

/** row − column for each place of the last two axes. */
function diagonalsBelow(x: Sym): Sym {
  if (x.rank < 2) misuse('tril', 'a matrix at least', typeText(x))
  const [rows, columns] = x.shape.slice(-2)
  const dtype = floatType('tril', [x])
  return sub(reshape(arange(rows!, { dtype }), [rows!, 1]), arange(columns!, { dtype }))
}

/** Parts of x along an axis, of one size each (the last may be shorter) or of the given sizes. */
export function split(x: Sym, size: number | readonly number[], axis = 0): Sym[] {
  const at = axisOf('split', x, axis)
  const total = x.shape[at]!
  const sizes =
    typeof size === 'number'
      ? Array.from({ length: Math.max(1, Math.ceil(total / size)) }, (_, i) => Math.min(size, total - i * size))
      : size
  const ends = sizes.map((_, i) => sizes.slice(0, i + 1).reduce((sum, each) => sum + each, 0))
  if (ends.at(-1) !== total || sizes.some((each) => !(each >= 0)))
    misuse('split', `sizes that add up to ${total}`, `${size}`)
  return sizes.map((each, i) => slice(x, [{ axis: at, start: ends[i]! - each, end: ends[i]! }]))
}

/** Values of one shape side by side along a new axis. */
export function stack(values: readonly Sym[], axis = 0): Sym {
  const first = values[0] ?? misuse('stack', 'at least one value', 'none')
  const other = values.find((value) => !sameShape(value.shape, first.shape))
  if (other) misuse('stack', `values ${shapeText(first.shape)}`, shapeText(other.shape))
  const at = axis < 0 ? axis + first.rank + 1 : axis
  return concat(
    values.map((value) => expandDims(value, at)),
    at,
  )
}

/** x with a new axis of size 1 at a place of the result. */
export function expandDims(x: Sym, axis: number): Sym {
  const at = axis < 0 ? axis + x.rank + 1 : axis
  if (!(at >= 0 && at <= x.rank)) misuse('expand_dims', `a place from 0 to ${x.rank}`, `${axis}`)
  return reshape(x, x.shape.toSpliced(at, 0, 1))
}

/** x without the given axes, which must have size 1; default: all of size 1. */
export function squeeze(x: Sym, axes?: readonly number[]): Sym {
  const dropped = axes?.map((axis) => axisOf('squeeze', x, axis)) ?? [...x.shape.keys()].filter((i) => x.shape[i] === 1)
  for (const axis of dropped)
    if (x.shape[axis] !== 1) misuse('squeeze', `size 1 along axis ${axis}`, shapeText(x.shape))
  return reshape(
    x,
    x.shape.filter((_, axis) => !dropped.includes(axis)),
  )
}

/** x so many times one behind the other along each axis, as PyTorch's repeat; more counts than axes make new ones. */
export function repeat(x: Sym, counts: readonly number[]): Sym {
  if (counts.length < x.rank) misuse('repeat', `a count for each of ${x.rank} axes`, `[${counts}]`)
  const shape = [...counts.slice(x.rank).map(() => 1), ...x.shape]
  const pairs = (outer: readonly number[]): number[] =>
    shape.flatMap((size, axis) => (counts[axis] === 1 ? [size] : [outer[axis]!, size]))
  const wide = broadcastTo(reshape(x, pairs(shape.map(() => 1))), pairs(counts))
  return reshape(
    wide,
    shape.map((size, axis) => size * counts[axis]!),
  )
}

/** Each element so many times in a row along an axis, as PyTorch's repeat_interleave. */
export function repeatInterleave(x: Sym, count: number, axis: number): Sym {
  const at = axisOf('repeat_interleave', x, axis)
  const wide = broadcastTo(expandDims(x, at + 1), x.shape.toSpliced(at + 1, 0, count))
  return reshape(wide, x.shape.with(at, x.shape[at]! * count))
}

/** Options of {@link pad}. */
export interface PadOptions {
  /** Default `constant`. `reflect` leaves the edge out, `replicate` repeats it, `circular` goes on at the other end. */
  readonly mode?: 'constant' | 'reflect' | 'replicate' | 'circular'
  /** Of `constant`; default 0. */
  readonly value?: number
}

/**
 * x with so many elements [before, after] added along its last axes, outermost first: one pair per axis.
 * @throws ERR_HEDDLE_SHAPE when a reflection or a circle would need more elements than the axis has
 */
export function pad(x: Sym, widths: readonly (readonly [number, number])[], options: PadOptions = {}): Sym {
  const { mode = 'constant', value = 0 } = options
  const first = x.rank - widths.length
  if (first < 0 || widths.flat().some((width) => !(Number.isInteger(width) && width >= 0)))
    misuse('pad', `at most ${x.rank} pairs of whole widths from 0 on`, JSON.stringify(widths))
  if (mode === 'constant' && value === 0) {
    const [before, after] = [0, 1].map((side) => x.shape.map((_, axis) => widths[axis - first]?.[side] ?? 0))
    const shape = x.shape.map((size, axis) => size + before![axis]! + after![axis]!)
    return placeInZeros(x, before!, shape)
  }
  return widths.reduce((padded, width, i) => {
    if (width[0] + width[1] === 0) return padded
    if (mode === 'constant') return padWithValue(padded, first + i, width, value)
    return indexSelect(padded, first + i, sourceOf(padded.shape[first + i]!, width, mode))
  }, x)
}

function padWithValue(x: Sym, axis: number, width: readonly [number, number], value: number): Sym {
  const block = (size: number): Sym[] => {
    return size === 0 ? [] : [broadcastTo(cast(constant(value, gradientType(x)), x.dtype), x.shape.with(axis, size))]
  }
  return concat([...block(width[0]), x, ...block(width[1])], axis)
}

/** i32 positions along an axis of `size` that a padded axis shows. */
function sourceOf(
  size: number,
  [before, after]: readonly [number, number],
  mode: NonNullable<PadOptions['mode']>,
): Sym {
  const limit = mode === 'reflect' ? size - 1 : mode === 'circular' ? size : Number.POSITIVE_INFINITY
  if (before > limit || after > limit || size < 1) misuse('pad', `widths of at most ${limit}`, `${before} and ${after}`)
  const middle = arange(size)
  const edge = (count: number, start: number, step: number): Sym[] => (count ? [arange(count, { start, step })] : [])
  if (mode === 'reflect') return concat([...edge(before, before, -1), middle, ...edge(after, size - 2, -1)])
  if (mode === 'circular') return concat([...edge(before, size - before, 1), middle, ...edge(after, 0, 1)])
  return concat([...edge(before, 0, 0), middle, ...edge(after, size - 1, 0)])
}
