/**
 * Adafactor (Shazeer & Stern 2018, arXiv 1804.04235): second moments of matrices as a row and a column. As
 * torch.optim.Adafactor computes it.
 */
import { add, div, maximum, minimum, mul, neg, pow, rsqrt, sqrt, square, sub } from '../graph/ops/elementwise.js'
import { mean, reshape } from '../graph/ops/reduce.js'
import { assign, read, type Sym } from '../graph/sym.js'
import { type Tensor, zeros } from '../tensor/tensor.js'
import { type GradientTransform, mapParameters } from './gradient_transform.js'

/** Hyper-parameters of {@link adafactor}, with torch's names and defaults. */
export interface AdafactorOptions {
  /** Base learning rate, default 1e-2: relative to a parameter's own size; a schedule scales it. */
  readonly lr?: number
  /** Exponent of the second moment's decay, β₂ = 1 − stepᵝ; default −0.8. */
  readonly beta2Decay?: number
  /** Keeps divisions finite; default 2⁻²³, the spacing of f32 at 1. */
  readonly eps1?: number
  /** Least size of a parameter that the rate is relative to; default 1e-3. */
  readonly eps2?: number
  /** Largest root mean square of an update before the rate; default 1. */
  readonly d?: number
  /** Decoupled decay: p ← p − lr · weightDecay · p. Default 0. */
  readonly weightDecay?: number
}

/**
 * ρ = min(lr, 1/√step), α = max(eps2, rms(p)) ρ, β = step^beta2Decay. For matrices R ← R + β (mean over columns of g² − R),
 * C likewise over rows, V = R Cᵀ / max(mean R, eps1); else V ← V + β (g² − V). u = g / √max(V, eps1²), and
 * update = −α u / max(1, rms(u)/d) − lr · weightDecay · p.
 */
export function adafactor(options: AdafactorOptions = {}): GradientTransform {
  const { lr = 1e-2, beta2Decay = -0.8, eps1 = 2 ** -23, eps2 = 1e-3, d = 1, weightDecay = 0 } = options
  return {
    name: 'adafactor',
    learningRate: lr,
    config: { beta2Decay, eps1, eps2, d, weightDecay },
    withWeightDecay: (other) => adafactor({ ...options, weightDecay: other }),
    init: async (parameters) => {
      const moments = await mapParameters(parameters, momentsOf)
      const named = moments.flatMap((each, i) => Object.entries(each).map(([name, t]) => [`${name}.${i}`, t] as const))
      return {
        tensors: Object.fromEntries(named),
        update: (gradients, { step, learningRate, parameters: values }) => {
          const blend = pow(step, beta2Decay)
          const rate = minimum(learningRate, rsqrt(step))
          return mapParameters(gradients, (g, i) => {
            const p = values[i]!
            const variance = secondMoment(moments[i]!, square(g), blend, eps1)
            const direction = div(g, sqrt(maximum(variance, eps1 * eps1)))
            const size = mul(rate, maximum(eps2, rms(p)))
            const scale = div(size, maximum(1, div(rms(direction), d)))
            return neg(add(mul(scale, direction), mul(mul(learningRate, weightDecay), p)))
          })
        },
      }
    },
  }
}

type Moments = { readonly row: Tensor; readonly column: Tensor } | { readonly v: Tensor }

const momentsOf = ({ shape }: Tensor): Moments =>
  shape.length < 2
    ? { v: zeros(shape) }
    : { row: zeros([...shape.slice(0, -1), 1]), column: zeros([...shape.slice(0, -2), 1, shape.at(-1)!]) }

/** Traces the state's update and gives the estimate of g², in the parameter's shape or one that broadcasts to it. */
function secondMoment(moments: Moments, squared: Sym, blend: Sym, eps1: number): Sym {
  const moved = (state: Tensor, seen: Sym): Sym => {
    const old = read(state)
    const value = add(old, mul(blend, sub(seen, old)))
    assign(state, value)
    return value
  }
  if ('v' in moments) return moved(moments.v, squared)
  const row = moved(moments.row, mean(squared, { axes: [-1], keepDims: true }))
  const column = moved(moments.column, mean(squared, { axes: [-2], keepDims: true }))
  return div(mul(row, column), maximum(mean(row, { axes: [-2], keepDims: true }), eps1))
}

const rms = (x: Sym): Sym => reshape(sqrt(mean(square(x))), [])
