/** AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), as torch.optim.AdamW computes it. */
import { add, div, mul, neg, pow, sqrt, square, sub } from '../graph/ops/elementwise.js'
import { assign, read } from '../graph/sym.js'
import { type GradientTransform, mapParameters, numbered, zerosLike } from './gradient_transform.js'

/** Hyper-parameters of {@link adamw}, with torch's names and defaults. */
export interface AdamWOptions {
  /** Base learning rate, default 2e-4; a schedule scales it. */
  readonly lr?: number
  readonly beta1?: number
  readonly beta2?: number
  readonly eps?: number
  /** Decoupled decay: p ← p − lr · weightDecay · p. Default 0.01, as torch. */
  readonly weightDecay?: number
}

/**
 * m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; update = −lr (m̂ / (√v̂ + eps) + weightDecay · p), with m̂ = m/(1−β₁ᵗ) and
 * v̂ = v/(1−β₂ᵗ).
 */
export function adamw(options: AdamWOptions = {}): GradientTransform {
  const { lr = 2e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0.01 } = options
  return {
    name: 'adamw',
    learningRate: lr,
    config: { beta1, beta2, eps, weightDecay },
    withWeightDecay: (other) => adamw({ ...options, weightDecay: other }),
    init: async (parameters) => {
      const first = await zerosLike(parameters)
      const second = await zerosLike(parameters)
      return {
        tensors: { ...numbered('m', first), ...numbered('v', second) },
        update: (gradients, { step, learningRate, parameters: values }) => {
          const correction1 = sub(1, pow(beta1, step))
          const correction2 = sqrt(sub(1, pow(beta2, step)))
          return mapParameters(gradients, (g, i) => {
            const m = add(mul(beta1, read(first[i]!)), mul(1 - beta1, g))
            const v = add(mul(beta2, read(second[i]!)), mul(1 - beta2, square(g)))
            assign(first[i]!, m)
            assign(second[i]!, v)
            const direction = div(div(m, correction1), add(div(sqrt(v), correction2), eps))
            return neg(mul(learningRate, add(direction, mul(weightDecay, values[i]!))))
          })
        },
      }
    },
  }
}
