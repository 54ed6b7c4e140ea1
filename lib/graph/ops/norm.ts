/** Normalisations over the last axis: RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), LayerNorm (arXiv 1607.06450). */
import { shapeText } from '../../tensor/dtype.js'
import { defineOperator, misuse, typeText } from '../operator.js'
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

const layerNormOf = defineOperator({
  name: 'layer_norm',
  attributes: { eps: 'f64' },
  types: ([x, weight, bias]) => {
    const width = x!.shape.at(-1)
    if (!width) misuse('layer_norm', 'x [..., d] with d at least 1', shapeText(x!.shape))
    for (const parameter of [weight, bias])
      if (parameter && (parameter.rank !== 1 || parameter.shape[0] !== width))
        misuse('layer_norm', `weight and bias [${width}]`, typeText(parameter))
    const rows = { shape: x!.shape.slice(0, -1), dtype: 'f32' } as const
    return [{ shape: x!.shape, dtype: 'f32' }, rows, rows]
  },
  optionalOutputs: [1, 2],
  recompute: true,
  vjp: ({ inputs: [x, weight, bias], outputs: [, mean, rstd], gradients: [g, ...statistics], wanted }) => {
    if (statistics.some(Boolean)) misuse('layer_norm', 'gradients of the result only', 'one of mean or rstd')
    const [dx, dw, db] = layerNormVjpOf([x, weight, mean, rstd, g])
    return [wanted[0] ? dx : undefined, weight && wanted[1] ? dw : undefined, bias && wanted[2] ? db : undefined]
  },
})

const layerNormVjpOf = defineOperator({
  name: 'layer_norm_vjp',
  types: ([x]) => {
    const parameter = { shape: x!.shape.slice(-1), dtype: 'f32' } as const
    return [{ shape: x!.shape, dtype: 'f32' }, parameter, parameter]
  },
  optionalOutputs: [0, 1, 2],
  inPlace: [[4, 0]],
  vjp: { none: 'second derivatives of layer_norm are not declared yet' },
})

/**
 * (x − mean) · rsqrt(var + eps) · weight + bias over the last axis, with the biased variance.
 * @param x `[..., d]`
 * @param weight `[d]`; left out: 1
 * @param bias `[d]`; left out: 0
 * @throws ERR_HEDDLE_SHAPE when weight or bias is not `[d]`
 */
export const layerNorm = (x: Sym, weight: Sym | undefined, bias: Sym | undefined, eps = 1e-5): Sym =>
  layerNormOf([x, weight, bias], { eps })[0]!
