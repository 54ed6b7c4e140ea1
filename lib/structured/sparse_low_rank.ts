/** B A + S: low rank, and sparse on a fixed support (SLTrain, Han et al., arXiv 2406.02214). */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { mul, sub } from '../graph/ops/elementwise.js'
import { matmul } from '../graph/ops/matmul.js'
import { type SparseSupport, sparseGather, sparseLowRankLinear, sparseToDense, spmm } from '../graph/ops/sparse.js'
import { read } from '../graph/sym.js'
import { elementCount } from '../tensor/dtype.js'
import { type Tensor, zeros } from '../tensor/tensor.js'
import { projectionOf, uniformTensor } from './initial.js'
import { lowRankMatrix } from './low_rank_matrix.js'
import { disposeSupport, largestMask, randomSupport, supportFromMask, supportFromRows } from './sparse.js'
import { expectParameters, type Structure, type StructuredMatrix, structuredMatrix } from './structured_matrix.js'

/** Options of {@link sparseLowRankMatrix}. */
export interface SparseLowRankMatrixOptions {
  /** Columns of B and rows of A. */
  readonly rank: number
  /** Share of the entries that S has, between 0 and 1. */
  readonly density: number
  /** Factor on B A alone (SLTrain's alpha / r); default 1. */
  readonly scale?: number
}

const schema = z.strictObject({
  rank: z.int().min(1),
  density: z.number().gt(0).lt(1),
  scale: z.number().default(1),
  seed: z.number().optional(),
})

type Options = z.infer<typeof schema>

/**
 * W = scale · B A + S. Parameters: `lora_B [out, rank]`, `lora_A [rank, in]`, `sparse_value [count]` with
 * count = ⌊density · out · in⌋; buffers: the support as `row_pointers` i32 `[out + 1]` and `column_indices` i32 `[count]`.
 * `random` draws the support once and starts as SLTrain does: B = 0, A and the values uniform within ±1/√in.
 * `fromDense`: B A is the truncated SVD, S what remains at its largest magnitudes.
 */
export const sparseLowRankMatrix: Structure<SparseLowRankMatrixOptions> = {
  kind: 'sparse_low_rank',
  async fromDense(weight, options) {
    const parsed = optionsOf(options, weight.shape)
    const { matrix: low } = await lowRankMatrix.fromDense(weight, { rank: parsed.rank })
    const { A, B } = Object.fromEntries(low.parameters()) as { readonly A: Tensor; readonly B: Tensor }
    using rest = await computed(() => sub(read(weight), matmul(read(B), read(A))))
    using mask = await computed(() => largestMask(read(rest), countOf(parsed, weight.shape)))
    const support = await supportFromMask(mask)
    const values = await computed(() => sparseGather(support, read(rest)))
    using unscaled = B
    const b = await computed(() => mul(read(unscaled), 1 / parsed.scale))
    return projectionOf(over(parsed, { a: A, b, values, support }), weight)
  },
  async random(shape, { seed = 0, ...options }) {
    const parsed = optionsOf(options, shape)
    const support = await randomSupport(shape, { density: parsed.density, seed })
    const bound = 1 / Math.sqrt(shape[1])
    return over(parsed, {
      a: await uniformTensor([parsed.rank, shape[1]], bound, seed, 0),
      b: zeros([shape[0], parsed.rank]),
      values: await uniformTensor([support.count], bound, seed, 1),
      support,
    })
  },
  async restore({ kind, shape, transposed, config }, parameters) {
    const parsed = optionsOf(config, shape)
    const count = countOf(parsed, shape)
    const found = expectParameters(kind, parameters, {
      lora_B: [shape[0], parsed.rank],
      lora_A: [parsed.rank, shape[1]],
      sparse_value: [count],
      row_pointers: [shape[0] + 1],
      column_indices: [count],
    })
    const support = await supportFromRows(found.row_pointers!, found.column_indices!, shape)
    found.row_pointers!.dispose()
    found.column_indices!.dispose()
    const parts = { a: found.lora_A!, b: found.lora_B!, values: found.sparse_value!, support }
    return over(parsed, parts, transposed)
  },
}

const countOf = ({ density }: Options, shape: readonly number[]): number => Math.floor(density * elementCount(shape))

function optionsOf(options: unknown, shape: readonly number[]): Options {
  const parsed = parseConfig('sparseLowRankMatrix', schema, options)
  const most = Math.min(...shape)
  if (parsed.rank <= most && parsed.scale !== 0) return parsed
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'sparseLowRankMatrix',
    expected: `a rank of at most ${most} and a scale other than 0`,
    got: `${parsed.rank} and ${parsed.scale}`,
  })
}

interface Parts {
  readonly a: Tensor
  readonly b: Tensor
  readonly values: Tensor
  readonly support: SparseSupport
}

function over({ rank, density, scale }: Options, parts: Parts, transposed = false): StructuredMatrix {
  const { a, b, values, support } = parts
  return structuredMatrix(
    {
      kind: 'sparse_low_rank',
      shape: support.shape,
      config: { rank, density, scale },
      parameters: {
        lora_B: b,
        lora_A: a,
        sparse_value: values,
      },
      buffers: { row_pointers: support.rowPointers, column_indices: support.columnIndices },
      dispose: () => disposeSupport(support),
      product(x, { transposed: turned, precision }) {
        if (!turned) {
          const given = { a: read(a), b: read(b), values: read(values), support, scale }
          return sparseLowRankLinear(x, given, { precision })
        }
        const addend = spmm(support, read(values), x, { transpose: true, side: 'right' })
        return matmul(matmul(x, read(b), { precision }), read(a), { alpha: scale, addend, precision })
      },
      toDense: () => sparseToDense(support, read(values), matmul(read(b), read(a), { alpha: scale })),
    },
    transposed,
  )
}
