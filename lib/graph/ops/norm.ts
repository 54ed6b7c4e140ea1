/** Normalisations over the last axis: RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), LayerNorm (arXiv 1607.06450). */
import { shapeText } from '../../tensor/dtype.js'
import { pullbackOf } from '../grad.js'
import { type Decomposition, defineOperator, floatType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { add, broadcastTo, constant, mul, rsqrt, square, sub } from './elementwise.js'
import { mean, reshape } from './reduce.js'

const scaledRows: Decomposition = ([x, weight], { eps }) => {
  const rstd = rsqrt(add(mean(square(x!), { axes: [-1], keepDims: true }), eps as number))
  return [mul(mul(x!, rstd), weight!), reshape(rstd, x!.shape.slice(0, -1))]
}

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
  decompose: scaledRows,
  vjp: ({ inputs: [x, weight], outputs: [, rstd], attributes, gradients: [g], wanted }) => {
    const [dx, dw] = applyVjp([x, weight, rstd, g], attributes)
    return [wanted[0] ? dx : undefined, wanted[1] ? dw : undefined]
  },
})

const applyVjp = defineOperator({
  name: 'rms_norm_vjp',
  attributes: { eps: 'f64' },
  types: ([x, weight]) => [
    { shape: x!.shape, dtype: 'f32' },
    { shape: weight!.shape, dtype: 'f32' },
  ],
  optionalOutputs: [0, 1],
  inPlace: [[3, 0]],
  decompose: ([x, weight, , g], attributes) =>
    pullbackOf((inputs) => scaledRows(inputs, attributes), [x!, weight!], [g]),
  vjp: 'decomposition',
})

/** x · rsqrt(mean(x²) + eps) · weight over the last axis. */
export const rmsNorm = (x: Sym, weight: Sym, eps: number): Sym => apply([x, weight], { eps })[0]!

const standardRows: Decomposition = ([x, weight, bias], { eps }) => {
  const average = mean(x!, { axes: [-1], keepDims: true })
  const centred = sub(x!, average)
  const rstd = rsqrt(add(mean(square(centred), { axes: [-1], keepDims: true }), eps as number))
  const standard = mul(centred, rstd)
  const scaled = weight ? mul(standard, weight) : standard
  const rows = x!.shape.slice(0, -1)
  return [bias ? add(scaled, bias) : scaled, reshape(average, rows), reshape(rstd, rows)]
}

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
  decompose: standardRows,
  vjp: ({ inputs: [x, weight, bias], outputs: [, mean, rstd], attributes, gradients: [g], wanted }) => {
    const [dx, dw, db] = layerNormVjpOf([x, weight, mean, rstd, g], attributes)
    return [wanted[0] ? dx : undefined, weight && wanted[1] ? dw : undefined, bias && wanted[2] ? db : undefined]
  },
})

const layerNormVjpOf = defineOperator({
  name: 'layer_norm_vjp',
  attributes: { eps: 'f64' },
  types: ([x]) => {
    const parameter = { shape: x!.shape.slice(-1), dtype: 'f32' } as const
    return [{ shape: x!.shape, dtype: 'f32' }, parameter, parameter]
  },
  optionalOutputs: [0, 1, 2],
  inPlace: [[4, 0]],
  decompose: ([x, weight, , , g], attributes) => {
    const bias = broadcastTo(constant(0, floatType('layer_norm_vjp', [x])), x!.shape.slice(-1))
    return pullbackOf((inputs) => standardRows(inputs, attributes), [x, weight, bias], [g])
  },
  vjp: 'decomposition',
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
