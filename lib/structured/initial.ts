/** What the structures draw their first parameters from, and how they measure what they leave out. */
import { mul, sqrt, square, sub } from '../graph/ops/elementwise.js'
import { randomUniform } from '../graph/ops/random.js'
import { sum } from '../graph/ops/reduce.js'
import { read } from '../graph/sym.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import { computed, type Projection, type StructuredMatrix } from './structured_matrix.js'

/** f32, uniform on [-bound, bound); different streams of one seed are independent. */
export async function uniformTensor(
  shape: readonly number[],
  bound: number,
  seed: number,
  stream: number,
): Promise<Tensor> {
  using words = tensor(Uint32Array.of(seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0), [2])
  return await computed(() => mul(sub(randomUniform(read(words), stream, shape), 0.5), 2 * bound))
}

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
