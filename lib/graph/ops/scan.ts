/** Recurrences along an axis, forwards or backwards. Each one's gradient is a recurrence the other way. */
import { sameShape, shapeText } from '../../tensor/dtype.js'
import { defineOperator, floatType, gradientType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { axisOf } from './axes.js'
import { broadcastTo, constant, exp, mul, sub } from './elementwise.js'
import { expandDims, squeeze } from './gather.js'
import { concat, slice } from './index.js'

/** Options of scans. */
export interface ScanOptions {
  /** From the end to the start. */
  readonly reverse?: boolean
}

const scan = { axis: 'i64', reverse: 'i64' } as const

const cumsumOf = defineOperator({
  name: 'cumsum',
  attributes: scan,
  types: ([x]) => [{ shape: x!.shape, dtype: floatType('cumsum', [x]) }],
  inPlace: [[0, 0]],
  vjp: ({ attributes: { axis, reverse }, gradients: [g] }) => [cumsum(g!, axis as number, { reverse: reverse === 0 })],
})

/** y_t = x_0 + … + x_t along an axis; summed in f64. */
export const cumsum = (x: Sym, axis: number, { reverse = false }: ScanOptions = {}): Sym =>
  cumsumOf([x], { axis: axisOf('cumsum', x, axis), reverse: Number(reverse) })[0]!

const linearScanOf = defineOperator({
  name: 'linear_scan',
  attributes: scan,
  types: ([a, b, initial], { axis }) => {
    if (!sameShape(a!.shape, b!.shape)) misuse('linear_scan', `b ${shapeText(a!.shape)}`, shapeText(b!.shape))
    const state = a!.shape.toSpliced(axis as number, 1)
    if (initial && !sameShape(initial.shape, state))
      misuse('linear_scan', `an initial state ${shapeText(state)}`, typeText(initial))
    return [{ shape: a!.shape, dtype: floatType('linear_scan', [a, b, initial]) }]
  },
  inPlace: [
    [0, 0],
    [1, 0],
  ],
  vjp: ({ inputs: [a, , initial], outputs: [h], attributes, gradients: [g], wanted }) => {
    const axis = attributes.axis as number
    const reverse = attributes.reverse === 1
    // λ_t = g_t + a_(t+1) λ_(t+1): the same recurrence the other way.
    const lambda = linearScan(shifted(a!, axis, !reverse), g!, { axis, reverse: !reverse })
    const before = shifted(h!, axis, reverse, initial)
    const edge = (x: Sym): Sym => squeeze(first(x, axis, reverse), [axis])
    return [
      wanted[0] ? mul(lambda, before) : undefined,
      lambda,
      initial && wanted[2] ? mul(edge(a!), edge(lambda)) : undefined,
    ]
  },
})

/** The slice of the axis that the recurrence starts with. */
function first(x: Sym, axis: number, reverse: boolean): Sym {
  const start = reverse ? x.shape[axis]! - 1 : 0
  return slice(x, [{ axis, start, end: start + 1 }])
}

/** x one place later along the axis (`back`: earlier); the free place gets `edge`, or 0. */
function shifted(x: Sym, axis: number, back: boolean, edge?: Sym): Sym {
  const size = x.shape[axis]!
  const rest = slice(x, [back ? { axis, start: 1, end: size } : { axis, start: 0, end: size - 1 }])
  const free = edge ? expandDims(edge, axis) : broadcastTo(constant(0, gradientType(x)), x.shape.with(axis, 1))
  return concat(back ? [rest, free] : [free, rest], axis)
}

/** Options of {@link linearScan}. */
export interface LinearScanOptions extends ScanOptions {
  readonly axis: number
  /** h before the first step, a's shape without the axis; default 0. */
  readonly initial?: Sym | undefined
}

/** h_t = a_t h_(t−1) + b_t along an axis, for a and b of one shape. */
export const linearScan = (a: Sym, b: Sym, { axis, reverse = false, initial }: LinearScanOptions): Sym =>
  linearScanOf([a, b, initial], { axis: axisOf('linear_scan', a, axis), reverse: Number(reverse) })[0]!

const logcumsumexpOf = defineOperator({
  name: 'logcumsumexp',
  attributes: scan,
  types: ([x]) => [{ shape: x!.shape, dtype: floatType('logcumsumexp', [x]) }],
  inPlace: [[0, 0]],
  vjp: ({ inputs: [x], outputs: [y], attributes, gradients: [g] }) => {
    const axis = attributes.axis as number
    const reverse = attributes.reverse === 1
    // h_s = Σ_(t≥s) g_t e^(y_s − y_t) as a recurrence the other way, whose factors are at most 1, as y never falls.
    const next = shifted(y!, axis, !reverse, squeeze(first(y!, axis, !reverse), [axis]))
    const h = linearScan(exp(sub(y!, next)), g!, { axis, reverse: !reverse })
    return [mul(exp(sub(x!, y!)), h)]
  },
})

/** y_t = log(e^x_0 + … + e^x_t) along an axis, without overflow; summed in f64. */
export const logCumSumExp = (x: Sym, axis: number, { reverse = false }: ScanOptions = {}): Sym =>
  logcumsumexpOf([x], { axis: axisOf('logcumsumexp', x, axis), reverse: Number(reverse) })[0]!

/** y_t = x_0 · … · x_t along an axis: a linear scan that starts with 1, so that zeros have right gradients too. */
export function cumprod(x: Sym, axis: number, { reverse = false }: ScanOptions = {}): Sym {
  const at = axisOf('cumprod', x, axis)
  const initial = broadcastTo(constant(1, gradientType(x)), x.shape.toSpliced(at, 1))
  return linearScan(x, broadcastTo(constant(0, gradientType(x)), x.shape), { axis: at, reverse, initial })
}

/** Product along an axis, which goes away; zeros have right gradients too. */
export function prod(x: Sym, axis = -1): Sym {
  const at = axisOf('prod', x, axis)
  if (x.shape[at] === 0) return broadcastTo(constant(1, gradientType(x)), x.shape.toSpliced(at, 1))
  return squeeze(first(cumprod(x, at), at, true), [at])
}
