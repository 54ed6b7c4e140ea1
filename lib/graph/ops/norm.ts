/**
 * Normalisations: RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467) and LayerNorm (arXiv 1607.06450) over the last axis;
 * GroupNorm (arXiv 1803.08494), InstanceNorm and BatchNorm (arXiv 1502.03167) of images, composed of others.
 */
import { shapeText } from '../../tensor/dtype.js'
import type { Tensor } from '../../tensor/tensor.js'
import { pullbackOf } from '../grad.js'
import { type Decomposition, defineOperator, floatType, misuse, typeText } from '../operator.js'
import { assign, read, type Sym } from '../sym.js'
import { add, broadcastTo, constant, mul, rsqrt, square, sub } from './elementwise.js'
import { mean, reshape, variance } from './reduce.js'

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

/** Scale and shift of a normalisation, one of each per channel. */
export interface AffineOptions {
  /** `[c]`; left out: 1 */
  readonly weight?: Sym | undefined
  /** `[c]`; left out: 0 */
  readonly bias?: Sym | undefined
  /** Default 1e-5. */
  readonly eps?: number
}

/** x · weight + bias, per channel (axis 1). */
function affine(op: string, x: Sym, weight: Sym | undefined, bias: Sym | undefined): Sym {
  const channels = x.shape[1]!
  const column = (parameter: Sym): Sym => {
    if (parameter.rank !== 1 || parameter.shape[0] !== channels)
      misuse(op, `weight and bias [${channels}]`, typeText(parameter))
    return reshape(parameter, [channels, ...x.shape.slice(2).map(() => 1)])
  }
  const scaled = weight ? mul(x, column(weight)) : x
  return bias ? add(scaled, column(bias)) : scaled
}

/**
 * Normalises each group of channels of each image by its own mean and biased variance; then scale and shift per channel.
 * @param x `[n, c, ...]`
 * @param groups divides c
 * @throws ERR_HEDDLE_SHAPE when groups, weight or bias do not fit
 */
export function groupNorm(x: Sym, groups: number, { weight, bias, eps = 1e-5 }: AffineOptions = {}): Sym {
  const [n, c] = x.shape
  if (x.rank < 2 || !(groups >= 1) || c! % groups !== 0)
    misuse('group_norm', `x [n, c, ...] with c a multiple of ${groups}`, typeText(x))
  const rows = layerNorm(reshape(x, [n!, groups, -1]), undefined, undefined, eps)
  return affine('group_norm', reshape(rows, x.shape), weight, bias)
}

/** {@link groupNorm} with a group for each channel. */
export const instanceNorm = (x: Sym, options: AffineOptions = {}): Sym => groupNorm(x, x.shape[1]!, options)

/** Options of {@link batchNorm}. */
export interface BatchNormOptions extends AffineOptions {
  /** `f32 [c]`, the running mean: read in evaluation, updated in training. */
  readonly runningMean: Tensor
  /** `f32 [c]`, the running variance (unbiased). */
  readonly runningVariance: Tensor
  /** Normalise by the batch's own statistics, and let the running ones follow them. */
  readonly training: boolean
  /** Share of the batch in the new running statistics; default 0.1. */
  readonly momentum?: number
}

/**
 * Normalises each channel by mean and variance over everything else: those of the batch in training, running ones in
 * evaluation.
 * @param x `[n, c, ...]`
 * @throws ERR_HEDDLE_SHAPE when weight, bias or running statistics are not `[c]`
 */
export function batchNorm(x: Sym, options: BatchNormOptions): Sym {
  const { weight, bias, eps = 1e-5, runningMean, runningVariance, training, momentum = 0.1 } = options
  if (x.rank < 2) misuse('batch_norm', 'x [n, c, ...]', typeText(x))
  const axes = [...x.shape.keys()].filter((axis) => axis !== 1)
  const column = [x.shape[1]!, ...x.shape.slice(2).map(() => 1)]
  const running = [read(runningMean), read(runningVariance)] as const
  const centre = training ? mean(x, { axes }) : running[0]
  const spread = training ? variance(x, { axes, correction: 0 }) : running[1]
  if (training) {
    const count = axes.reduce((product, axis) => product * x.shape[axis]!, 1)
    const follow = (state: Sym, batch: Sym): Sym => add(mul(1 - momentum, state), mul(momentum, batch))
    assign(runningMean, follow(running[0], centre))
    assign(runningVariance, follow(running[1], mul(count / Math.max(1, count - 1), spread)))
  }
  const centred = sub(x, reshape(centre, column))
  return affine('batch_norm', mul(centred, reshape(rsqrt(add(spread, eps)), column)), weight, bias)
}
