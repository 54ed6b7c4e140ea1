/** Gradient clipping by global norm (Pascanu et al. 2013, arXiv 1211.5063), as torch.nn.utils.clip_grad_norm_. */
import { add, div, minimum, mul, sqrt, square } from '../graph/ops/elementwise.js'
import { sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import type { GradientTransform } from './gradient_transform.js'

/** √Σ‖g‖² over all gradients, `f32 []`. */
export const globalNorm = (gradients: readonly Sym[]): Sym =>
  sqrt(gradients.map((gradient) => sum(square(gradient))).reduce((total, part) => add(total, part)))

/** Scales all gradients by min(1, maxNorm / (norm + 1e-6)). */
export const clipByGlobalNorm = (maxNorm: number): GradientTransform => ({
  name: 'clip',
  init: () => ({
    tensors: {},
    update: (gradients) => {
      const factor = minimum(1, div(maxNorm, add(globalNorm(gradients), 1e-6)))
      return gradients.map((gradient) => mul(gradient, factor))
    },
  }),
})
