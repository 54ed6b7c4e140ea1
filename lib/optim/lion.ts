/** Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2). */
import { add, mul, neg, sign } from '../graph/ops/elementwise.js'
import { assign, read } from '../graph/sym.js'
import { type GradientTransform, mapParameters, numbered, zerosLike } from './gradient_transform.js'

/** Hyper-parameters of {@link lion}, with the paper's defaults. */
export interface LionOptions {
  /** Base learning rate, default 1e-4: three to ten times below AdamW's; a schedule scales it. */
  readonly lr?: number
  readonly beta1?: number
  readonly beta2?: number
  /** Decoupled decay: p ← p − lr · weightDecay · p. Default 0. */
  readonly weightDecay?: number
}

/** update = −lr (sign(β₁m + (1−β₁)g) + weightDecay · p); m ← β₂m + (1−β₂)g. */
export function lion(options: LionOptions = {}): GradientTransform {
  const { lr = 1e-4, beta1 = 0.9, beta2 = 0.99, weightDecay = 0 } = options
  return {
    name: 'lion',
    learningRate: lr,
    config: { beta1, beta2, weightDecay },
    withWeightDecay: (other) => lion({ ...options, weightDecay: other }),
    init: async (parameters) => {
      const momenta = await zerosLike(parameters)
      return {
        tensors: numbered('m', momenta),
        update: (gradients, { learningRate, parameters: values }) =>
          mapParameters(gradients, (g, i) => {
            const m = read(momenta[i]!)
            assign(momenta[i]!, add(mul(beta2, m), mul(1 - beta2, g)))
            const direction = sign(add(mul(beta1, m), mul(1 - beta1, g)))
            return neg(mul(learningRate, add(direction, mul(weightDecay, values[i]!))))
          }),
      }
    },
  }
}
