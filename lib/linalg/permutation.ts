/** Permutations, assignments, and random orthogonal matrices. */
import { computed } from '../graph/computed.js'
import { defineOperator, floatType } from '../graph/operator.js'
import { abs, add, cast, mul, neg, sign, sub } from '../graph/ops/elementwise.js'
import { split } from '../graph/ops/gather.js'
import { transpose } from '../graph/ops/index.js'
import { matrixSize, scaleColumns, withSizes } from '../graph/ops/matrices.js'
import { randomNormal, randomUniform } from '../graph/ops/random.js'
import { reshape } from '../graph/ops/reduce.js'
import { argsort } from '../graph/ops/sort.js'
import type { RunOptions } from '../graph/program.js'
import { isSym, type Sym } from '../graph/sym.js'
import { seedTensor } from '../tensor/seed.js'
import type { Tensor } from '../tensor/tensor.js'
import { diagonalOf, qr } from './factorise.js'

const assignmentOf = defineOperator({
  name: 'linear_assignment',
  types: ([cost]) => {
    const [m] = matrixSize('linear_assignment', cost)
    floatType('linear_assignment', [cost])
    return [{ shape: withSizes(cost!, m), dtype: 'i32' }]
  },
  vjp: { none: 'an assignment has no derivative' },
  flops: ([cost]) => cost!.shape.reduce((a, b) => a * b, 1) * cost!.shape.at(-2)!,
})

/** Options of {@link linearAssignment}. */
export interface AssignmentOptions {
  /** Make the sum greatest instead of least. */
  readonly maximize?: boolean
}

/**
 * For each row of `cost [..., m, n]` a column of its own, so that the costs' sum is least: i32 `[..., m]`, −1 for rows
 * that are left over where m > n. Shortest augmenting paths (Jonker and Volgenant), in f64, O(m² n).
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when a cost is not finite; ERR_HEDDLE_ABORTED
 */
export function linearAssignment(cost: Tensor, options?: AssignmentOptions & RunOptions): Promise<Tensor>
export function linearAssignment(cost: Sym, options?: AssignmentOptions): Sym
export function linearAssignment(
  cost: Tensor | Sym,
  options: AssignmentOptions & RunOptions = {},
): Promise<Tensor> | Sym {
  if (!isSym(cost)) return computed((x) => linearAssignment(x!, options), [cost], options)
  return assignmentOf([options.maximize ? neg(cost) : cost])[0]!
}

/** Where random numbers come from: Philox, the same on any number of threads. */
export interface RandomOptions {
  /** Default 0. */
  readonly seed?: number
  /** Default 0. */
  readonly stream?: number
}

async function drawn(fn: (seed: Sym, stream: number) => Sym, { seed = 0, stream = 0 }: RandomOptions): Promise<Tensor> {
  using words = seedTensor(seed)
  return await computed((given) => fn(given!, stream), [words])
}

/**
 * Orthogonal matrices `[..., m, n]` by Haar's measure (m ≥ n: orthonormal columns; m < n: rows): the q of Gaussian
 * matrices with the signs of r's diagonal taken in, without which LAPACK's q is not uniform (Mezzadri 2007).
 * @throws ERR_HEDDLE_SHAPE unless the shape is that of matrices
 */
export const randomOrthogonal = (
  shape: readonly number[],
  options: RandomOptions & { readonly dtype?: 'f32' | 'f64' } = {},
): Promise<Tensor> => drawn((seed, stream) => haar(shape, seed, stream, options.dtype ?? 'f32'), options)

function haar(shape: readonly number[], seed: Sym, stream: number, dtype: 'f32' | 'f64'): Sym {
  const wide = shape.at(-2)! < shape.at(-1)!
  const tall = wide ? [...shape.slice(0, -2), shape.at(-1)!, shape.at(-2)!] : shape
  const { q, r } = qr(cast(randomNormal(seed, stream, tall), dtype))
  const signs = sign(diagonalOf(r))
  // A zero on the diagonal has probability zero, but a sign of zero would not be orthogonal.
  const fixed = scaleColumns(q, add(signs, sub(1, abs(signs))))
  return wide ? transpose(fixed) : fixed
}

/** A permutation of 0 … n − 1, i32 `[n]`: where uniform numbers of 48 bits stand in order. */
export const randomPermutation = (n: number, options: RandomOptions = {}): Promise<Tensor> =>
  drawn((seed, stream) => {
    const words = cast(randomUniform(seed, stream, [2, n]), 'f64')
    const [high, low] = split(words, 1, 0)
    return reshape(argsort(add(high!, mul(low!, 2 ** -24))), [n])
  }, options)

/** The permutation that undoes another: i32 `[..., n]`. */
export function invertPermutation(permutation: Tensor, options?: RunOptions): Promise<Tensor>
export function invertPermutation(permutation: Sym): Sym
export function invertPermutation(permutation: Tensor | Sym, options: RunOptions = {}): Promise<Tensor> | Sym {
  if (!isSym(permutation)) return computed((x) => invertPermutation(x!), [permutation], options)
  return argsort(cast(permutation, 'f64'))
}
