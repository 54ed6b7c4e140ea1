/** A matrix without structure: what the others are held against. */
import { copied } from '../graph/computed.js'
import { matmul } from '../graph/ops/matmul.js'
import { read } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'
import { uniformTensor } from './initial.js'
import {
  expectParameters,
  type SavedStructure,
  type Structure,
  type StructuredMatrix,
  structuredMatrix,
} from './structured_matrix.js'

/** W itself. Parameter: `weight [out, in]`. */
export const denseMatrix: Structure<Readonly<Record<never, never>>> = {
  kind: 'dense',
  async fromDense(weight) {
    const own = await copied(weight)
    return { matrix: over(own), error: 0, relativeError: 0 }
  },
  async random(shape, { seed = 0 } = {}) {
    return over(await uniformTensor(shape, 1 / Math.sqrt(shape[1]), seed, 0))
  },
  restore: ({ kind, shape, transposed }: SavedStructure, parameters) =>
    over(expectParameters(kind, parameters, { weight: shape }).weight!, transposed),
}

const over = (weight: Tensor, transposed = false): StructuredMatrix =>
  structuredMatrix(
    {
      kind: 'dense',
      shape: [weight.shape[0]!, weight.shape[1]!],
      config: {},
      parameters: { weight },
      product: (x, { transposed: turned, precision }) => matmul(x, read(weight), { transposeB: !turned, precision }),
      toDense: () => read(weight),
    },
    transposed,
  )
