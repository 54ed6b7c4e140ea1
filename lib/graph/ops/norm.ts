/** Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467). */
import { shapeText } from '../../tensor/dtype.js'
import { defineOperator, misuse } from '../operator.js'
import type { Sym } from '../sym.js'

const apply = defineOperator({
  name: 'rms_norm',
  attributes: { eps: 'f64' },
  types: ([x, weight]) => {
    if (weight!.rank !== 1 || weight!.shape[0] !== x!.shape.at(-1))
      misuse('rms_norm', `a weight [${x!.shape.at(-1)}]`, shapeText(weight!.shape))
    return [
      { shape: x!.shape, dtype: 'f32' },
      { shape: x!.shape.slice(0, -1), dtype: 'f32' },
    ]
  },
  optionalOutputs: [1],
  recompute: true,
  vjp: ({ inputs: [x, weight], outputs: [, rstd], gradients: [g], wanted }) => {
    const [dx, dw] = applyVjp([x, weight, rstd, g])
    return [wanted[0] ? dx : undefined, wanted[1] ? dw : undefined]
  },
})

const applyVjp = defineOperator({
  name: 'rms_norm_vjp',
  types: ([x, weight]) => [
    { shape: x!.shape, dtype: 'f32' },
    { shape: weight!.shape, dtype: 'f32' },
  ],
  optionalOutputs: [0, 1],
  inPlace: [[3, 0]],
  vjp: { none: 'second derivatives of rms_norm are not declared yet' },
})

/** x · rsqrt(mean(x²) + eps) · weight over the last axis. */
export const rmsNorm = (x: Sym, weight: Sym, eps: number): Sym => apply([x, weight], { eps })[0]!
