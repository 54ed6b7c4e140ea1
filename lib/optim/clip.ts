/** Gradient clipping by global norm (Pascanu et al. 2013, arXiv 1211.5063), as torch.nn.utils.clip_grad_norm_. */
import { add, div, minimum, mul, sqrt, square } from '../graph/ops/elementwise.js'
import { sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import { type GradientTransform, mapParameters } from './gradient_transform.js'

/** √Σ‖g‖² over all gradients, `f32 []`. */
export async function globalNorm(gradients: readonly Sym[]): Promise<Sym> {
  const parts = await mapParameters(gradients, (gradient) => sum(square(gradient)))
  return sqrt(parts.reduce((total, part) => add(total, part)))
}

/** Scales all gradients by min(1, maxNorm / (norm + 1e-6)). */
export const clipByGlobalNorm = (maxNorm: number): GradientTransform => ({
  name: 'clip',
  config: { maxNorm },
  init: async () => ({
    tensors: {},
    update: async (gradients) => {
      const factor = minimum(1, div(maxNorm, add(await globalNorm(gradients), 1e-6)))
      return mapParameters(gradients, (gradient) => mul(gradient, factor))
    },
  }),
})
