/** Monarch matrices, and the nearest one to a dense matrix (Dao et al. 2022, arXiv 2204.00595). */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { pullbackOf } from '../graph/grad.js'
import { gradientType } from '../graph/operator.js'
import { broadcastTo, constant, mul, sqrt } from '../graph/ops/elementwise.js'
import { gatherRows, placeInZeros, transpose } from '../graph/ops/index.js'
import type { Precision } from '../graph/ops/matmul.js'
import { monarch } from '../graph/ops/monarch.js'
import { reshape } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import { svd } from '../linalg/factorise.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import { identityMatrix, projectionOf, uniformTensor } from './initial.js'
import {
  expectParameters,
  type SavedStructure,
  type Structure,
  type StructuredMatrix,
  structuredMatrix,
} from './structured_matrix.js'

/** How a matrix is cut. Either `nblocks`, or `sizes` with `rank`. */
export interface MonarchMatrixOptions {
  /**
   * Diagonal blocks of either factor, as in the reference code's `MonarchLinear`: blocks of ⌈in / n⌉ inputs and
   * ⌈out / n⌉ outputs, and as many middle units per block as the smaller of the two. Default 4. For a square matrix of
   * n = m² rows, m blocks are the paper's Monarch matrix.
   */
  readonly nblocks?: number
  /** Blocks of inputs and phases of outputs, `[K, L]`. The sub-matrix of a block and a phase has rank {@link rank}. */
  readonly sizes?: readonly [number, number]
  /** With `sizes`; default 1. */
  readonly rank?: number
}

/**
 * W = P₂ diag(blkdiag2) P₁ diag(blkdiag1). Parameters: `blkdiag1 [K, q, p]`, `blkdiag2 [L, s, r]` with K·q = L·r; W has
 * in ≤ K·p columns and out ≤ L·s rows. The rows o ≡ l (mod L) and the columns of input block k make a sub-matrix whose
 * rank is at most the number of middle units that lead from k to l. These sub-matrices are disjoint, so that `fromDense`,
 * which truncates the SVD of each (with √σ on either side), is optimal in the Frobenius norm.
 */
export const monarchMatrix: Structure<MonarchMatrixOptions> = {
  kind: 'monarch',
  async fromDense(weight, options) {
    const layout = layoutOf([weight.shape[0]!, weight.shape[1]!], options)
    const [blkdiag1, blkdiag2] = await project(weight, layout)
    return projectionOf(monarchOver(layout, { blkdiag1, blkdiag2 }), weight)
  },
  async random(shape, { seed = 0, ...options }) {
    const layout = layoutOf(shape, options)
    const draw = (size: readonly number[], stream: number): Promise<Tensor> =>
      uniformTensor(size, 1 / Math.sqrt(size[2]!), seed, stream)
    return monarchOver(layout, { blkdiag1: await draw(layout.first, 0), blkdiag2: await draw(layout.second, 1) })
  },
  restore(saved, parameters) {
    const layout = savedLayout(saved)
    const shapes = { blkdiag1: layout.first, blkdiag2: layout.second }
    return monarchOver(layout, expectParameters(saved.kind, parameters, shapes), saved.transposed)
  },
}

type Size = readonly [number, number, number]

/** The sizes of a Monarch matrix. */
export interface MonarchLayout {
  readonly out: number
  readonly in: number
  /** [K, q, p] */
  readonly first: Size
  /** [L, s, r] */
  readonly second: Size
}

const count = z.int().min(1)
const schema = z.strictObject({
  nblocks: count.optional(),
  sizes: z.tuple([count, count]).optional(),
  rank: count.optional(),
  seed: z.number().optional(),
})

function layoutOf([out, inner]: readonly [number, number], options: unknown): MonarchLayout {
  const { nblocks, sizes, rank } = parseConfig('monarchMatrix', schema, options)
  if (nblocks !== undefined && (sizes ?? rank) !== undefined)
    throw misuse('monarchMatrix.nblocks', 'either nblocks, or sizes with rank', 'both')
  if (rank !== undefined && !sizes) throw misuse('monarchMatrix.rank', 'sizes beside it', 'rank alone')
  const [blocks, phases] = sizes ?? [nblocks ?? 4, nblocks ?? 4]
  if (blocks > inner || phases > out)
    throw misuse('monarchMatrix', `at most ${inner} blocks of inputs and ${out} of outputs`, `${blocks} and ${phases}`)
  const [p, s] = [Math.ceil(inner / blocks), Math.ceil(out / phases)]
  const middle = sizes ? phases * (rank ?? 1) : Math.min(p, s)
  return { out, in: inner, first: [blocks, middle, p], second: [phases, s, (blocks * middle) / phases] }
}

/** @throws ERR_HEDDLE_FORMAT */
function savedLayout({ shape: [out, inner], config: { blkdiag1, blkdiag2 } }: SavedStructure): MonarchLayout {
  const sizes = [blkdiag1, blkdiag2]
  const isSize = (size: unknown): size is Size =>
    Array.isArray(size) && size.length === 3 && size.every((each) => Number.isSafeInteger(each) && each > 0)
  const [first, second] = sizes
  if (isSize(first) && isSize(second) && first[0] * first[1] === second[0] * second[2])
    if (first[0] * first[2] >= inner && second[0] * second[1] >= out) return { out, in: inner, first, second }
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: 'monarch',
    expected: `blkdiag1 [K, q, p] and blkdiag2 [L, s, r] of a matrix [${out}, ${inner}]`,
    got: JSON.stringify(sizes),
  })
}

/** The factors of the nearest matrix. */
async function project(weight: Tensor, layout: MonarchLayout): Promise<readonly [Tensor, Tensor]> {
  const [blocks, q, p] = layout.first
  const [phases, s, r] = layout.second
  using parts = await computed(() => {
    const padded = placeInZeros(read(weight), [0, 0], [s * phases, blocks * p])
    return reshape(transpose(reshape(padded, [s, phases, blocks, p]), [2, 1, 0, 3]), [blocks * phases, s, p])
  })
  const { u, s: sigma, vh } = await svd(parts)
  const rank = Math.min(s, p)
  // Unit m leads from block ⌊m / q⌋ to phase m mod L; those of one pair take its singular vectors in order.
  const vectors = Int32Array.from({ length: blocks * q }, (_, unit) => {
    const [block, phase] = [Math.floor(unit / q), unit % phases]
    const before = Math.ceil((block * q - phase) / phases)
    const index = (unit - phase) / phases - before
    return index < rank ? (block * phases + phase) * rank + index : blocks * phases * rank
  })
  const byPhase = Int32Array.from({ length: phases * r }, (_, at) => vectors[(at % r) * phases + Math.floor(at / r)]!)
  using first = tensor(vectors)
  using second = tensor(byPhase)
  const factors = await computed(() => {
    const root = sqrt(read(sigma))
    const rows = (x: Sym, width: number): Sym =>
      placeInZeros(reshape(x, [-1, width]), [0, 0], [blocks * phases * rank + 1, width])
    const right = rows(mul(read(vh), reshape(root, [-1, rank, 1])), p)
    const left = rows(transpose(mul(read(u), reshape(root, [-1, 1, rank])), [0, 2, 1]), s)
    return [
      reshape(gatherRows(right, read(first)), layout.first),
      transpose(reshape(gatherRows(left, read(second)), [phases, r, s]), [0, 2, 1]),
    ]
  })
  for (const each of [u, sigma, vh]) each.dispose()
  return [factors[0]!, factors[1]!]
}

/** The matrix over its parameters, `blkdiag1` and `blkdiag2`. */
export function monarchOver(
  layout: MonarchLayout,
  parameters: Record<string, Tensor>,
  transposed = false,
): StructuredMatrix {
  const { out, in: inner } = layout
  const product = (x: Sym, precision: Precision): Sym =>
    monarch(x, read(parameters.blkdiag1!), read(parameters.blkdiag2!), { out, precision })
  return structuredMatrix(
    {
      kind: 'monarch',
      shape: [out, inner],
      config: { blkdiag1: layout.first, blkdiag2: layout.second },
      parameters,
      product: (x, { transposed: turned, precision }) =>
        turned ? adjoint((y) => product(y, precision), x, inner) : product(x, precision),
      toDense: () => adjoint((y) => product(y, 'f32'), identityMatrix(out, parameters.blkdiag1!.dtype), inner),
    },
    transposed,
  )
}

/** x W for the product y ↦ y Wᵀ of a matrix with `inner` columns: what its gradient does. */
function adjoint(product: (y: Sym) => Sym, x: Sym, inner: number): Sym {
  const zeros = broadcastTo(constant(0, gradientType(x)), [...x.shape.slice(0, -1), inner])
  return pullbackOf(([y]) => [product(y!)], [zeros], [x])[0]!
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
