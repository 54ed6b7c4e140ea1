/** Rotations of blocks of channels, made of skew-symmetric matrices: what OFT and BOFT have in common. */
import { blockDiagonal } from '../../graph/ops/block_diagonal.js'
import { add, broadcastTo, cast, constant, maximum, minimum, mul, sign, sub } from '../../graph/ops/elementwise.js'
import { arange, indexSelect, scatterAdd } from '../../graph/ops/gather.js'
import { transpose } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { identityLike } from '../../graph/ops/matrices.js'
import { randomUniform } from '../../graph/ops/random.js'
import { reshape } from '../../graph/ops/reduce.js'
import { solveOf } from '../../graph/ops/solve.js'
import { topk } from '../../graph/ops/sort.js'
import { read, type Sym } from '../../graph/sym.js'
import { convolutionWith, type Site } from '../../nn/site.js'
import { type MatrixShape, matrixShape } from '../low_rank_change.js'
import type { SiteContext } from '../parametrization.js'
import { unsuited } from '../targeting.js'

/** Q `[blocks, h, h]` with Q = −Qᵀ, from what is above its diagonals, row by row: `[blocks, h (h − 1) / 2]`. */
export function skewSymmetric(above: Sym, h: number): Sym {
  const [row, column] = [reshape(arange(h, { dtype: 'f32' }), [h, 1]), arange(h, { dtype: 'f32' })]
  const [low, high] = [minimum(row, column), maximum(row, column)]
  // Row i begins at i h − i (i + 1) / 2; on the diagonal the sign is 0, whatever is taken.
  const start = sub(mul(low, h), mul(mul(low, add(low, 1)), 0.5))
  const place = cast(maximum(add(start, sub(sub(high, low), 1)), 0), 'i32')
  const values = reshape(indexSelect(above, 1, reshape(place, [h * h])), [above.shape[0]!, h, h])
  return mul(values, cast(sign(sub(column, row)), values.dtype))
}

/** (I − Q)(I + Q)⁻¹, orthogonal for skew-symmetric Q `[..., h, h]`; the identity for 0. */
export function cayley(skew: Sym): Sym {
  const one = identityLike(skew.shape.at(-1)!, skew)
  const plus = add(one, skew)
  // Both factors are functions of Q and commute.
  return solveOf(plus, sub(broadcastTo(one, skew.shape), skew))
}

/**
 * The first terms of (I + Q)(I − Q)⁻¹ = I + 2 Q + 2 Q² + …, as PEFT adds them: up to Qⁿ⁻¹ (Q³ for n = 3), whose factor is
 * 1. PEFT turns the other way here than in {@link cayley}: a Q learned with the one is of no use to the other.
 */
export function cayleyNeumann(skew: Sym, terms: number): Sym {
  let result = broadcastTo(identityLike(skew.shape.at(-1)!, skew), skew.shape)
  const last = terms > 2 ? Math.max(3, terms - 1) : terms - 1
  let power = skew
  for (let k = 1; k <= last; k += 1) {
    if (k > 1) power = matmul(power, skew)
    result = add(result, k === last && terms > 2 ? power : mul(2, power))
  }
  return result
}

/** x R (or x Rᵀ), block by block: x `[..., channels]`, R `[blocks, h, h]`; one block for all where there is only one. */
export function rotated(x: Sym, blocks: Sym, isTransposed = false): Sym {
  const [count, h] = blocks.shape as [number, number, number]
  const rows = count === 1 ? reshape(x, [-1, h]) : x
  return reshape(blockDiagonal(rows, isTransposed ? blocks : transpose(blocks, [0, 2, 1])), x.shape)
}

/** 1 for ⌊p · count⌋ of `count` blocks drawn at random, else 0: those that are left out of a step. */
export function droppedBlocks(count: number, p: number, seed: Sym, stream: number): Sym {
  const { indices } = topk(randomUniform(seed, stream, [1, count]), Math.floor(p * count), { largest: false })
  return reshape(scatterAdd(indices, broadcastTo(constant(1), indices.shape), count, 1), [count])
}

/** R with the identity in the place of the blocks where `isDropped`, broadcast over `[h, h]`, is 1. */
export function withoutBlocks(blocks: Sym, isDropped: Sym): Sym {
  const one = identityLike(blocks.shape.at(-1)!, blocks)
  return add(blocks, mul(isDropped, sub(one, blocks)))
}

/**
 * What is rotated are the rows of this matrix.
 * @throws ERR_HEDDLE_ARGUMENT for other modules, and where a convolution's kernels see a part of the channels only
 */
export function rotatedShape(method: string, site: Site): MatrixShape {
  const groups = site.window?.groups ?? 1
  if (groups > 1) throw unsuited(method, site, 'a convolution without groups', `${groups}`)
  return matrixShape(method, site, ['linear', 'conv2d'])
}

/** A kernel `[out, in, kh, kw]` with its rows `[out, in · kh · kw]` changed. */
export const changedRows = (kernel: Sym, change: (rows: Sym) => Sym): Sym =>
  reshape(change(reshape(kernel, [kernel.shape[0]!, -1])), kernel.shape)

/**
 * What a convolution computes with such a kernel. A rotation of the kernel takes as many multiplications for all of an
 * image as one of the input takes for `out` of its windows, which overlap besides.
 */
export const convolvedWith = ({ site, x }: SiteContext, change: (rows: Sym) => Sym): Sym =>
  convolutionWith(site, changedRows(read(site.weight), change), x)
