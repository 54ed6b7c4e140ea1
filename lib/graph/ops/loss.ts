/** Cross-entropy fused with the output projection, so that logits over a large vocabulary are never kept. */
import { elementCount, sameShape, shapeText } from '../../tensor/dtype.js'
import { pullbackOf } from '../grad.js'
import { type Decomposition, defineOperator, misuse } from '../operator.js'
import type { Sym } from '../sym.js'
import { cast, exp, mul, notEqual, select, sub } from './elementwise.js'
import { gatherLast, scatterLast } from './index.js'
import { matmul, type Precision } from './matmul.js'
import { reshape } from './reduce.js'
import { logSumExp } from './softmax.js'

const decompose: Decomposition = ([x, weight, targets], attributes) => {
  const precision = attributes.precision as Precision
  const w = cast(weight!, x!.dtype)
  const logits = matmul(x!, w, { transposeB: true, precision })
  const counted = cast(notEqual(targets!, -100), x!.dtype)
  const index = cast(select(counted, targets!, 0), 'i32')
  const lse = logSumExp(logits)
  const column = (rows: Sym): Sym => reshape(rows, [-1, 1])
  const errors = sub(exp(sub(logits, column(lse))), scatterLast(index, counted, w.shape[0]!))
  return [
    mul(counted, sub(lse, gatherLast(logits, index))),
    mul(counted, lse),
    mul(column(counted), matmul(errors, w, { precision })),
  ]
}

const apply = defineOperator({
  name: 'linear_cross_entropy',
  attributes: { precision: 'string' },
  types: ([x, weight, targets]) => {
    if (x!.rank !== 2 || weight!.rank !== 2 || x!.shape[1] !== weight!.shape[1])
      misuse(
        'linear_cross_entropy',
        'x [n, d] and weight [v, d]',
        `${shapeText(x!.shape)}, ${shapeText(weight!.shape)}`,
      )
    const rows = [x!.shape[0]!]
    if (targets!.dtype !== 'i32' || !sameShape(targets!.shape, rows))
      misuse('linear_cross_entropy', `targets i32 [${rows}]`, `${targets!.dtype} ${shapeText(targets!.shape)}`)
    return [{ shape: rows, dtype: 'f32' }, { shape: rows, dtype: 'f32' }, x!]
  },
  optionalOutputs: [2],
  flops: ([x, weight], [, , dx]) => (dx ? 4 : 2) * elementCount(x!.shape) * weight!.shape[0]!,
  decompose,
  vjp: ({ inputs: [x, weight, targets], outputs: [, lse, dx], attributes, gradients: [g], wanted }) => {
    const dw = wanted[1] ? applyVjp([x, weight, targets, lse, g], attributes) : undefined
    // The forward pass has the probabilities at hand, so it hands out d nll / d x almost for free.
    const unit = wanted[0] && !dw ? mul(reshape(g!, [-1, 1]), dx!) : undefined
    return [wanted[0] ? (unit ?? dw?.[0]) : undefined, dw?.[1], undefined]
  },
})

const applyVjp = defineOperator({
  name: 'linear_cross_entropy_vjp',
  attributes: { precision: 'string' },
  types: ([x, weight]) => [x!, weight!],
  optionalOutputs: [0, 1],
  flops: ([x, weight]) => 6 * elementCount(x!.shape) * weight!.shape[0]!,
  decompose: ([x, weight, targets, , g], attributes) =>
    pullbackOf((inputs) => decompose([...inputs, targets], attributes), [x!, weight!], [g]),
  vjp: 'decomposition',
})

/** How {@link linearCrossEntropy} multiplies. */
export interface LinearCrossEntropyOptions {
  readonly precision?: Precision
}

/**
 * Negative log-likelihood of `targets i32 [n]` under softmax(x weightᵀ), with `x [n, d]`, `weight [v, d]` → `[n]`.
 * A target of -100 is ignored: its loss and gradient are 0.
 */
export const linearCrossEntropy = (x: Sym, weight: Sym, targets: Sym, options: LinearCrossEntropyOptions = {}): Sym =>
  apply([x, weight, targets], { precision: options.precision ?? 'f32' })[0]!
