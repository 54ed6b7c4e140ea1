/** What the structures draw their first parameters from, and how they measure what they leave out. */
import { computed } from '../graph/computed.js'
import { cast, equal, mul, sqrt, square, sub } from '../graph/ops/elementwise.js'
import { arange } from '../graph/ops/gather.js'
import { randomUniform } from '../graph/ops/random.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import type { DType } from '../tensor/dtype.js'
import { seedTensor } from '../tensor/seed.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Projection, StructuredMatrix } from './structured_matrix.js'

/** f32, uniform on [-bound, bound); different streams of one seed are independent. */
export async function uniformTensor(
  shape: readonly number[],
  bound: number,
  seed: number,
  stream: number,
): Promise<Tensor> {
  using words = seedTensor(seed)
  return await computed(() => mul(sub(randomUniform(read(words), stream, shape), 0.5), 2 * bound))
}

/** The traced identity matrix `[n, n]`. */
export const identityMatrix = (n: number, dtype: DType): Sym =>
  cast(equal(reshape(arange(n), [n, 1]), arange(n)), dtype)

/** The matrix with its distance from W, measured. */
export async function projectionOf<M extends StructuredMatrix>(matrix: M, weight: Tensor): Promise<Projection<M>> {
  const norms = await computed(() => ({
    error: sqrt(sum(square(sub(read(weight), matrix.toDense())))),
    whole: sqrt(sum(square(read(weight)))),
  }))
  const [error, whole] = [norms.error.item(), norms.whole.item()]
  norms.error.dispose()
  norms.whole.dispose()
  return { matrix, error, relativeError: whole === 0 ? 0 : error / whole }
}
