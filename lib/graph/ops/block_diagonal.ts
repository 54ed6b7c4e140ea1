/** Products with block-diagonal matrices. */
import { elementCount } from '../../tensor/dtype.js'
import { floatType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { type ChainOptions, defineChain } from './chain.js'
import { transpose } from './index.js'
import { matmul, type Precision } from './matmul.js'
import { reshape } from './reduce.js'

const apply = defineChain({
  name: 'block_diagonal',
  weights: 1,
  types: ([x, w]) => {
    const [blocks, out, inner] = w!.shape
    if (w!.rank !== 3 || x!.rank < 1 || x!.shape.at(-1) !== blocks! * inner!)
      misuse('block_diagonal', 'x [..., blocks · p] and w [blocks, s, p]', `${typeText(x)} and ${typeText(w)}`)
    return [{ shape: [...x!.shape.slice(0, -1), blocks! * out!], dtype: floatType('block_diagonal', [x, w]) }]
  },
  flops: ([x, w]) => (2 * elementCount(x!.shape) * elementCount(w!.shape)) / Math.max(1, x!.shape.at(-1)!),
  decompose: ([x, w], { precision }) => {
    const y = perBlock(reshape(x!, [-1, w!.shape[0]!, w!.shape[2]!]), w!, precision as Precision)
    return [reshape(y, [...x!.shape.slice(0, -1), w!.shape[0]! * w!.shape[1]!])]
  },
})

/**
 * y with block k of the features being w[k] times block k of x.
 * @param x `[..., blocks · p]`
 * @param w `[blocks, s, p]`
 * @returns `[..., blocks · s]`
 * @throws ERR_HEDDLE_SHAPE
 */
export const blockDiagonal = (x: Sym, w: Sym, { precision = 'f32' }: ChainOptions = {}): Sym =>
  apply(x, [w], { precision })

/** x `[rows, blocks, p]` and w `[blocks, s, p]` → `[rows, blocks, s]`, with batched products. */
export function perBlock(x: Sym, w: Sym, precision: Precision): Sym {
  return transpose(matmul(transpose(x, [1, 0, 2]), w, { transposeB: true, precision }), [1, 0, 2])
}
