/** Stochastic gradient descent with momentum (Sutskever et al. 2013), as torch.optim.SGD computes it. */
import { add, equal, mul, neg, select } from '../graph/ops/elementwise.js'
import { assign, read } from '../graph/sym.js'
import { type GradientTransform, mapParameters, numbered, zerosLike } from './gradient_transform.js'

/** Hyper-parameters of {@link sgd}, with torch's names and, but for the rate, defaults. */
export interface SgdOptions {
  /** Base learning rate, default 1e-2; a schedule scales it. */
  readonly lr?: number
  /** Default 0: none. */
  readonly momentum?: number
  /** Damps the gradient's part in the momentum; default 0. */
  readonly dampening?: number
  /** Looks ahead along the momentum; default false. */
  readonly nesterov?: boolean
  /** Coupled decay: g ← g + weightDecay · p. Default 0. */
  readonly weightDecay?: number
}

/**
 * g ← g + weightDecay · p; b ← g at the first step, then momentum · b + (1 − dampening) g; update = −lr b, with nesterov
 * −lr (g + momentum · b), without momentum −lr g.
 */
export function sgd(options: SgdOptions = {}): GradientTransform {
  const { lr = 1e-2, momentum = 0, dampening = 0, nesterov = false, weightDecay = 0 } = options
  return {
    name: 'sgd',
    learningRate: lr,
    config: { momentum, dampening, nesterov, weightDecay },
    withWeightDecay: (other) => sgd({ ...options, weightDecay: other }),
    init: async (parameters) => {
      const buffers = momentum === 0 ? [] : await zerosLike(parameters)
      return {
        tensors: numbered('b', buffers),
        update: (gradients, { step, learningRate, parameters: values }) =>
          mapParameters(gradients, (gradient, i) => {
            const g = weightDecay === 0 ? gradient : add(gradient, mul(weightDecay, values[i]!))
            if (momentum === 0) return neg(mul(learningRate, g))
            const grown = add(mul(momentum, read(buffers[i]!)), mul(1 - dampening, g))
            const b = select(equal(step, 1), g, grown)
            assign(buffers[i]!, b)
            return neg(mul(learningRate, nesterov ? add(g, mul(momentum, b)) : b))
          }),
      }
    },
  }
}
