/** Operators that move elements: rows by index, slices, concatenation, permutation, cache rows. */
import { sameShape, shapeText } from '../../tensor/dtype.js'
import { defineOperator, floatType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'

const list = (value: unknown): readonly number[] => value as readonly number[]

function expectIndex(op: string, index: Sym | undefined): Sym {
  if (index?.dtype !== 'i32') misuse(op, 'an i32 index', typeText(index), 'ERR_HEDDLE_DTYPE')
  return index
}

const gatherRowsOf = defineOperator({
  name: 'gather_rows',
  types: ([table, index]) => [
    { shape: [...expectIndex('gather_rows', index).shape, ...table!.shape.slice(1)], dtype: table!.dtype },
  ],
  vjp: ({ inputs: [table, index], gradients: [g] }) => [scatterAddRows(index!, g!, table!.shape[0]!), undefined],
})

/** Rows of `table [v, …rest]` at `index i32 [...i]` → `[...i, …rest]`. An index outside the table fails the run. */
export const gatherRows = (table: Sym, index: Sym): Sym => gatherRowsOf([table, index])[0]!

const scatterAddRowsOf = defineOperator({
  name: 'scatter_add_rows',
  attributes: { rows: 'i64' },
  types: ([index, source], { rows }) => [
    {
      shape: [rows as number, ...source!.shape.slice(expectIndex('scatter_add_rows', index).rank)],
      dtype: floatType('scatter_add_rows', [source]),
    },
  ],
  vjp: ({ inputs: [index], gradients: [g] }) => [undefined, gatherRows(g!, index!)],
})

/** A table of `rows` zero rows to which `source`'s rows are added at `index`. */
export const scatterAddRows = (index: Sym, source: Sym, rows: number): Sym =>
  scatterAddRowsOf([index, source], { rows })[0]!

const gatherLastOf = defineOperator({
  name: 'gather_last',
  types: ([x, index]) => {
    if (!sameShape(x!.shape.slice(0, -1), expectIndex('gather_last', index).shape))
      misuse('gather_last', `an index of shape ${shapeText(x!.shape.slice(0, -1))}`, shapeText(index!.shape))
    return [{ shape: index!.shape, dtype: x!.dtype }]
  },
  vjp: ({ inputs: [x, index], gradients: [g] }) => [scatterLast(index!, g!, x!.shape.at(-1)!), undefined],
})

/** x[..., index[...]]: one element per row of the last axis. */
export const gatherLast = (x: Sym, index: Sym): Sym => gatherLastOf([x, index])[0]!

const scatterLastOf = defineOperator({
  name: 'scatter_last',
  attributes: { size: 'i64' },
  types: ([index, source], { size }) => {
    if (!sameShape(source!.shape, expectIndex('scatter_last', index).shape))
      misuse('scatter_last', `a source of shape ${shapeText(index!.shape)}`, shapeText(source!.shape))
    return [{ shape: [...index!.shape, size as number], dtype: source!.dtype }]
  },
  vjp: ({ inputs: [index], gradients: [g] }) => [undefined, gatherLast(g!, index!)],
})

/** Zeros `[..., size]` with source[...] at index[...]. */
export const scatterLast = (index: Sym, source: Sym, size: number): Sym => scatterLastOf([index, source], { size })[0]!

const sliceOf = defineOperator({
  name: 'slice',
  attributes: { start: 'i64[]', step: 'i64[]', shape: 'i64[]' },
  types: ([x], { start, step, shape }) => {
    const fits = x!.shape.every((size, axis) => {
      const count = list(shape)[axis]!
      const first = list(start)[axis]!
      return first >= 0 && (count === 0 || first + (count - 1) * list(step)[axis]! < size)
    })
    if (!fits) misuse('slice', `a range inside ${shapeText(x!.shape)}`, `${shapeText(list(shape))} from ${list(start)}`)
    return [{ shape: list(shape), dtype: x!.dtype }]
  },
  vjp: ({ inputs: [x], attributes: { start, step }, gradients: [g] }) => [
    sliceVjpOf([g!], { start: start!, step: step!, shape: x!.shape })[0],
  ],
})

const sliceVjpOf = defineOperator({
  name: 'slice_vjp',
  attributes: { start: 'i64[]', step: 'i64[]', shape: 'i64[]' },
  types: ([x], { shape }) => [{ shape: list(shape), dtype: x!.dtype }],
  vjp: ({ inputs: [x], attributes: { start, step }, gradients: [g] }) => [
    sliceOf([g!], { start: start!, step: step!, shape: x!.shape })[0],
  ],
})

/** Zeros of a shape, with x's elements from `start` on: the adjoint of a {@link slice} without steps. */
export const placeInZeros = (x: Sym, start: readonly number[], shape: readonly number[]): Sym =>
  sliceVjpOf([x], { start, step: start.map(() => 1), shape })[0]!

/** A range along one axis, for {@link slice}. */
export interface SliceRange {
  readonly axis: number
  readonly start: number
  /** One past the last element. */
  readonly end: number
  readonly step?: number
}

/** Elements start, start+step, … below end along the named axes. */
export function slice(x: Sym, ranges: readonly SliceRange[]): Sym {
  const start = x.shape.map(() => 0)
  const step = x.shape.map(() => 1)
  const shape = [...x.shape]
  for (const range of ranges) {
    const axis = range.axis < 0 ? range.axis + x.rank : range.axis
    start[axis] = range.start
    step[axis] = range.step ?? 1
    shape[axis] = Math.ceil((range.end - range.start) / step[axis])
  }
  return sliceOf([x], { start, step, shape })[0]!
}

const concatOf = defineOperator({
  name: 'concat',
  attributes: { axis: 'i64' },
  types: (inputs, { axis }) => {
    const at = axis as number
    const first = inputs[0] ?? misuse('concat', 'at least one input', 'none')
    const shape = [...first.shape]
    shape[at] = 0
    for (const input of inputs) {
      const others = input!.shape.every((size, other) => other === at || size === first.shape[other])
      if (!others || input!.rank !== first.rank || input!.dtype !== first.dtype)
        misuse('concat', `inputs like ${typeText(first)} except along axis ${at}`, typeText(input))
      shape[at] += input!.shape[at]!
    }
    return [{ shape, dtype: first.dtype }]
  },
  vjp: ({ inputs, attributes: { axis }, gradients: [g] }) => {
    let start = 0
    return inputs.map((input) => {
      const end = start + input!.shape[axis as number]!
      const part = slice(g!, [{ axis: axis as number, start, end }])
      start = end
      return part
    })
  },
})

/** Inputs one behind the other along an axis. */
export const concat = (inputs: readonly Sym[], axis = 0): Sym =>
  inputs.length === 1 ? inputs[0]! : concatOf(inputs, { axis: axis < 0 ? axis + inputs[0]!.rank : axis })[0]!

const transposeOf = defineOperator({
  name: 'transpose',
  attributes: { permutation: 'i64[]' },
  types: ([x], { permutation }) => {
    const order = list(permutation)
    if (order.length !== x!.rank || new Set(order).size !== order.length || order.some((a) => !(a in x!.shape)))
      misuse('transpose', `a permutation of ${x!.rank} axes`, `[${order}]`)
    return [{ shape: order.map((axis) => x!.shape[axis]!), dtype: x!.dtype }]
  },
  vjp: ({ attributes: { permutation }, gradients: [g] }) => {
    const order = list(permutation)
    return [
      transpose(
        g!,
        [...order.keys()].map((axis) => order.indexOf(axis)),
      ),
    ]
  },
})

/** Axes in another order; default: the last two swapped. */
export function transpose(x: Sym, permutation?: readonly number[]): Sym {
  const order = permutation ?? [...[...x.shape.keys()].slice(0, -2), x.rank - 1, x.rank - 2]
  return transposeOf([x], { permutation: order })[0]!
}

const copyOf = defineOperator({
  name: 'copy',
  types: ([x]) => [x!],
  vjp: ({ gradients: [g] }) => [g],
})

/** The same elements in a buffer of their own. */
export const copy = (x: Sym): Sym => copyOf([x])[0]!

const cacheUpdateOf = defineOperator({
  name: 'cache_update',
  mutates: true,
  types: ([cache, fresh, position]) => {
    const [b, s, h, d] = cache!.shape
    const fits = fresh!.rank === 4 && fresh!.shape[1]! <= s! && sameShape(fresh!.shape, [b!, fresh!.shape[1]!, h!, d!])
    if (!fits) misuse('cache_update', `rows for a cache ${shapeText(cache!.shape)}`, shapeText(fresh!.shape))
    expectIndex('cache_update', position)
    return [cache!]
  },
  vjp: { none: 'a cache is written for inference only' },
})

/** Writes `fresh [b, t, h, d]` into the bound `cache [b, s, h, d]` from row `position i32 [b]` on; gives the cache. */
export const cacheUpdate = (cache: Sym, fresh: Sym, position: Sym): Sym => cacheUpdateOf([cache, fresh, position])[0]!
