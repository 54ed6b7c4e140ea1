/** Softmax and its relatives, along any axis. The kernels work on the last one; others are moved there and back. */
import { defineOperator } from '../operator.js'
import type { Sym } from '../sym.js'
import { alongAxis, axisOf, moveAxis } from './axes.js'
import { add, div, exp, log, mul, sub } from './elementwise.js'
import { max, reshape, sum } from './reduce.js'
import { stopGradient } from './stop_gradient.js'

const softmaxOf = defineOperator({
  name: 'softmax',
  types: ([x]) => [{ shape: x!.shape, dtype: 'f32' }],
  inPlace: [[0, 0]],
  decompose: ([x]) => {
    const shifted = exp(sub(x!, stopGradient(max(x!, { axes: [-1], keepDims: true }))))
    return [div(shifted, sum(shifted, { axes: [-1], keepDims: true }))]
  },
  vjp: ({ outputs: [y], gradients: [g] }) => [softmaxVjp(y!, g!)],
})

const softmaxVjpOf = defineOperator({
  name: 'softmax_vjp',
  types: ([y]) => [{ shape: y!.shape, dtype: 'f32' }],
  inPlace: [[1, 0]],
  decompose: ([y, g]) => [mul(y!, sub(g!, rowDot(g!, y!)))],
  vjp: ({ inputs: [y, g], gradients: [h], wanted }) => [
    wanted[0] ? sub(mul(h!, sub(g!, rowDot(g!, y!))), mul(g!, rowDot(h!, y!))) : undefined,
    wanted[1] ? softmaxVjp(y!, h!) : undefined,
  ],
})

/** y (g − Σ g y) */
const softmaxVjp = (y: Sym, g: Sym): Sym => softmaxVjpOf([y, g])[0]!

const rowDot = (a: Sym, b: Sym): Sym => sum(mul(a, b), { axes: [-1], keepDims: true })

const logSumExpOf = defineOperator({
  name: 'log_sum_exp',
  types: ([x]) => [{ shape: x!.shape.slice(0, -1), dtype: 'f32' }],
  decompose: ([x]) => {
    const largest = stopGradient(max(x!, { axes: [-1], keepDims: true }))
    return [add(log(sum(exp(sub(x!, largest)), { axes: [-1] })), reshape(largest, x!.shape.slice(0, -1)))]
  },
  vjp: ({ inputs: [x], outputs: [y], gradients: [g] }) => {
    const column = [...y!.shape, 1]
    return [mul(reshape(g!, column), exp(sub(x!, reshape(y!, column))))]
  },
})

/**
 * e^x / Σ e^x along an axis. A row of −∞ alone gives NaN, as in PyTorch.
 * @param axis negative ones count from the end
 */
export const softmax = (x: Sym, axis = -1): Sym => alongAxis('softmax', x, axis, (rows) => softmaxOf([rows])[0]!)

/** log softmax(x) along an axis: x − log Σ e^x. */
export const logSoftmax = (x: Sym, axis = -1): Sym =>
  alongAxis('log_softmax', x, axis, (rows) =>
    sub(rows, reshape(logSumExpOf([rows])[0]!, [...rows.shape.slice(0, -1), 1])),
  )

/** log Σ e^x along an axis, which goes away unless `keepDims`. */
export function logSumExp(x: Sym, axis = -1, { keepDims = false }: { readonly keepDims?: boolean } = {}): Sym {
  const at = axisOf('log_sum_exp', x, axis)
  const y = logSumExpOf([moveAxis(x, at, -1)])[0]!
  return keepDims ? reshape(y, x.shape.with(at, 1)) : y
}
