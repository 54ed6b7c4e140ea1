/** Reductions over axes, and the reshape that goes with them. */
import { elementCount, sameShape, shapeText } from '../../tensor/dtype.js'
import { defineOperator, floatType, misuse } from '../operator.js'
import type { Sym, SymType } from '../sym.js'
import { moveAxis } from './axes.js'
import { broadcastTo, div, equal, mul, neg, sqrt, square, sub } from './elementwise.js'
import { stopGradient } from './stop_gradient.js'

/** Which axes a reduction runs over. */
export interface ReduceOptions {
  /** Axes to reduce, negative ones counted from the end; default: all. */
  readonly axes?: readonly number[]
  /** Keep reduced axes with size 1. */
  readonly keepDims?: boolean
}

const reshapeOf = defineOperator({
  name: 'reshape',
  kind: 'alias',
  attributes: { shape: 'i64[]' },
  types: ([x], { shape }) => {
    const target = shape as readonly number[]
    if (elementCount(target) !== elementCount(x!.shape))
      misuse('reshape', `${elementCount(x!.shape)} elements in all`, `shape ${shapeText(target)}`)
    return [{ shape: target, dtype: x!.dtype }]
  },
  vjp: ({ inputs: [x], gradients: [g] }) => [reshape(g!, x!.shape)],
})

/** The same elements under another shape; one size may be -1. */
export function reshape(x: Sym, shape: readonly number[]): Sym {
  const known = elementCount(shape.filter((size) => size !== -1))
  const target = shape.map((size) => (size === -1 ? elementCount(x.shape) / known : size))
  return sameShape(x.shape, target) ? x : reshapeOf([x], { shape: target })[0]!
}

const reducedType = ([x]: readonly (Sym | undefined)[], axes: readonly number[]): readonly SymType[] => [
  { shape: x!.shape.filter((_, axis) => !axes.includes(axis)), dtype: floatType('reduce', [x]) },
]

const reduceSum = defineOperator({
  name: 'reduce_sum',
  attributes: { axes: 'i64[]' },
  types: (inputs, { axes }) => reducedType(inputs, axes as readonly number[]),
  vjp: ({ inputs: [x], attributes, gradients: [g] }) => [
    broadcastTo(restoreAxes(g!, x!, attributes.axes as readonly number[]), x!.shape),
  ],
})

const reduceMax = defineOperator({
  name: 'reduce_max',
  attributes: { axes: 'i64[]' },
  types: (inputs, { axes }) => reducedType(inputs, axes as readonly number[]),
  vjp: ({ inputs: [x], outputs: [y], attributes, gradients: [g] }) => {
    const axes = attributes.axes as readonly number[]
    const isMax = stopGradient(equal(x!, restoreAxes(y!, x!, axes)))
    const share = div(isMax, sum(isMax, { axes, keepDims: true }))
    return [mul(share, restoreAxes(g!, x!, axes))]
  },
})

/** Sum over axes. */
export const sum = (x: Sym, options: ReduceOptions = {}): Sym => reduce(reduceSum, x, options)

/** Maximum over axes; the gradient is shared equally between equal maxima. */
export const max = (x: Sym, options: ReduceOptions = {}): Sym => reduce(reduceMax, x, options)

/** Arithmetic mean over axes. */
export function mean(x: Sym, options: ReduceOptions = {}): Sym {
  const total = sum(x, options)
  return div(total, elementCount(x.shape) / elementCount(total.shape))
}

const argmaxOf = defineOperator({
  name: 'argmax',
  types: ([x]) => [{ shape: x!.shape.slice(0, -1), dtype: 'i32' }],
  vjp: { none: 'an index has no derivative' },
})

/** Index of the first maximum along an axis, i32. */
export const argmax = (x: Sym, axis = -1): Sym => argmaxOf([moveAxis(x, axis, -1)])[0]!

/** Index of the first minimum along an axis, i32. */
export const argmin = (x: Sym, axis = -1): Sym => argmax(neg(x), axis)

/** Minimum over axes; the gradient is shared equally between equal minima. */
export const min = (x: Sym, options: ReduceOptions = {}): Sym => neg(max(neg(x), options))

/** Which axes a variance is taken over, and what its divisor is. */
export interface VarianceOptions extends ReduceOptions {
  /** The divisor is the number of elements less this; default 1 (Bessel's correction), as in PyTorch. */
  readonly correction?: number
}

/** Mean squared distance to the mean over axes. */
export function variance(x: Sym, { correction = 1, ...options }: VarianceOptions = {}): Sym {
  const centred = sub(x, mean(x, { ...options, keepDims: true }))
  const total = sum(square(centred), options)
  return div(total, Math.max(0, elementCount(x.shape) / elementCount(total.shape) - correction))
}

/** Standard deviation over axes: √{@link variance}. */
export const std = (x: Sym, options: VarianceOptions = {}): Sym => sqrt(variance(x, options))

/** Sums a broadcast value back to the shape it was broadcast from. */
export function sumTo(g: Sym, shape: readonly number[]): Sym {
  if (sameShape(g.shape, shape)) return g
  const extra = g.shape.length - shape.length
  const axes = [...g.shape.keys()].filter((axis) => axis < extra || (shape[axis - extra] === 1 && g.shape[axis] !== 1))
  return reshape(axes.length ? reduceSum([g], { axes })[0]! : g, shape)
}

type Reduction = typeof reduceSum

function reduce(apply: Reduction, x: Sym, { axes, keepDims = false }: ReduceOptions): Sym {
  const chosen = normalAxes(x, axes)
  if (chosen.length === 0) return x
  const y = apply([x], { axes: chosen })[0]!
  return keepDims ? restoreAxes(y, x, chosen) : y
}

function normalAxes(x: Sym, axes: readonly number[] | undefined): number[] {
  if (!axes) return [...x.shape.keys()]
  const normal = axes.map((axis) => (axis < 0 ? axis + x.rank : axis))
  for (const axis of normal)
    if (!(axis >= 0 && axis < x.rank)) misuse('reduce', `axes of a rank-${x.rank} value`, `${axis}`)
  return [...new Set(normal)].sort((a, b) => a - b)
}

const restoreAxes = (y: Sym, x: Sym, axes: readonly number[]): Sym =>
  reshape(
    y,
    x.shape.map((size, axis) => (axes.includes(axis) ? 1 : size)),
  )
