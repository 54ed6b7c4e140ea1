/** Block-diagonal matrices of equal blocks. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { blockDiagonal } from '../graph/ops/block_diagonal.js'
import { placeInZeros, slice, transpose } from '../graph/ops/index.js'
import { reshape } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'
import { projectionOf, uniformTensor } from './initial.js'
import { expectParameters, type Structure, type StructuredMatrix, structuredMatrix } from './structured_matrix.js'

/** Options of {@link blockDiagonalMatrix}. */
export interface BlockDiagonalMatrixOptions {
  /** Number of blocks; it divides both dimensions. */
  readonly blocks: number
}

const schema = z.strictObject({ blocks: z.int().min(1), seed: z.number().optional() })

/**
 * Equal blocks along the diagonal. Parameter: `blocks [blocks, out / blocks, in / blocks]`. `fromDense` keeps the blocks
 * as they are, which is optimal: what it leaves out is the norm of everything beside them.
 */
export const blockDiagonalMatrix: Structure<BlockDiagonalMatrixOptions> = {
  kind: 'block_diagonal',
  async fromDense(weight, options) {
    const shape = blockShape(weight.shape as [number, number], options)
    return projectionOf(over(await computed(() => diagonalBlocks(read(weight), shape))), weight)
  },
  async random(shape, { seed = 0, ...options }) {
    const blocks = blockShape(shape, options)
    return over(await uniformTensor(blocks, 1 / Math.sqrt(blocks[2]), seed, 0))
  },
  restore: ({ kind, shape, transposed, config }, parameters) =>
    over(expectParameters(kind, parameters, { blocks: blockShape(shape, config) }).blocks!, transposed),
}

type BlockShape = readonly [blocks: number, out: number, inner: number]

function blockShape([out, inner]: readonly [number, number], options: unknown): BlockShape {
  const { blocks } = parseConfig('blockDiagonalMatrix', schema, options)
  if (out % blocks === 0 && inner % blocks === 0) return [blocks, out / blocks, inner / blocks]
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'blockDiagonalMatrix.blocks',
    expected: `a divisor of ${out} and ${inner}`,
    got: String(blocks),
  })
}

/** Blocks (k, k) of W: of its rows seen as `[blocks, s, blocks, p]` one in blocks + 1. */
function diagonalBlocks(weight: Sym, [blocks, out, inner]: BlockShape): Sym {
  const pairs = reshape(transpose(reshape(weight, [blocks, out, blocks, inner]), [0, 2, 1, 3]), [
    blocks * blocks,
    out,
    inner,
  ])
  return slice(pairs, [{ axis: 0, start: 0, end: blocks * blocks, step: blocks + 1 }])
}

/** W from its blocks: a block and then `blocks` empty ones, over and over. */
function denseOf(parts: Sym): Sym {
  const [blocks, out, inner] = parts.shape as [number, number, number]
  const spread = placeInZeros(reshape(parts, [blocks, 1, out, inner]), [0, 0, 0, 0], [blocks, blocks + 1, out, inner])
  const flat = reshape(spread, [blocks * (blocks + 1), out, inner])
  const pairs = slice(flat, [{ axis: 0, start: 0, end: blocks * blocks }])
  return reshape(transpose(reshape(pairs, [blocks, blocks, out, inner]), [0, 2, 1, 3]), [blocks * out, blocks * inner])
}

const over = (parts: Tensor, transposed = false): StructuredMatrix => {
  const [blocks, out, inner] = parts.shape as [number, number, number]
  return structuredMatrix(
    {
      kind: 'block_diagonal',
      shape: [blocks * out, blocks * inner],
      config: { blocks },
      parameters: { blocks: parts },
      product: (x, { transposed: turned, precision }) =>
        blockDiagonal(x, turned ? transpose(read(parts), [0, 2, 1]) : read(parts), { precision }),
      toDense: () => denseOf(read(parts)),
    },
    transposed,
  )
}
