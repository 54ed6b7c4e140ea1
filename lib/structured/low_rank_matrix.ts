/** B A with few rows in A: the best approximation of a rank. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { mul, sqrt } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { reshape } from '../graph/ops/reduce.js'
import { read } from '../graph/sym.js'
import { svd } from '../linalg/factorise.js'
import type { Tensor } from '../tensor/tensor.js'
import { projectionOf, uniformTensor } from './initial.js'
import { expectParameters, type Structure, type StructuredMatrix, structuredMatrix } from './structured_matrix.js'

/** Options of {@link lowRankMatrix}. */
export interface LowRankMatrixOptions {
  /** Columns of B and rows of A, at most min(out, in). */
  readonly rank: number
}

const schema = z.strictObject({ rank: z.int().min(1), seed: z.number().optional() })

/**
 * W = B A. Parameters: `B [out, rank]`, `A [rank, in]`; `rank · (out + in)` numbers. `fromDense` is the truncated SVD with
 * √σ on either side, optimal in the Frobenius norm (Eckart and Young 1936).
 */
export const lowRankMatrix: Structure<LowRankMatrixOptions> = {
  kind: 'low_rank',
  async fromDense(weight, options) {
    const rank = rankOf(options, weight.shape)
    const { u, s, vh } = await svd(weight)
    const parts = await computed(() => {
      const root = sqrt(slice(read(s), [{ axis: 0, start: 0, end: rank }]))
      return {
        B: mul(slice(read(u), [{ axis: 1, start: 0, end: rank }]), root),
        A: mul(slice(read(vh), [{ axis: 0, start: 0, end: rank }]), reshape(root, [rank, 1])),
      }
    })
    for (const each of [u, s, vh]) each.dispose()
    return projectionOf(over(parts.B, parts.A), weight)
  },
  async random(shape, { seed = 0, ...options }) {
    const [out, inner] = shape
    const rank = rankOf(options, shape)
    return over(
      await uniformTensor([out, rank], 1 / Math.sqrt(rank), seed, 0),
      await uniformTensor([rank, inner], 1 / Math.sqrt(inner), seed, 1),
    )
  },
  restore({ kind, shape: [out, inner], transposed, config }, parameters) {
    const rank = rankOf(config, [out, inner])
    const { A, B } = expectParameters(kind, parameters, { B: [out, rank], A: [rank, inner] })
    return over(B!, A!, transposed)
  },
}

function rankOf(options: unknown, shape: readonly number[]): number {
  const { rank } = parseConfig('lowRankMatrix', schema, options)
  const most = Math.min(...shape)
  if (rank <= most) return rank
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'lowRankMatrix.rank',
    expected: `at most ${most}`,
    got: String(rank),
  })
}

const over = (b: Tensor, a: Tensor, transposed = false): StructuredMatrix =>
  structuredMatrix(
    {
      kind: 'low_rank',
      shape: [b.shape[0]!, a.shape[1]!],
      config: { rank: a.shape[0]! },
      parameters: { B: b, A: a },
      product(x, { transposed: turned, precision }) {
        const [first, second] = turned ? [b, a] : [a, b]
        const options = { transposeB: !turned, precision }
        return matmul(matmul(x, read(first), options), read(second), options)
      },
      toDense: () => matmul(read(b), read(a)),
    },
    transposed,
  )
