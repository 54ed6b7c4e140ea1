/** Kronecker products, and products with sums of chains of them that are never written out. */
import { elementCount } from '../../tensor/dtype.js'
import { floatType, misuse, typeText } from '../operator.js'
import type { Sym, SymType } from '../sym.js'
import { type ChainOptions, defineChain, floating } from './chain.js'
import { add, mul } from './elementwise.js'
import { slice, transpose } from './index.js'
import { matmul, type Precision } from './matmul.js'
import { reshape, sum } from './reduce.js'

/** a ⊗ b `[m·s, n·t]` of `a [m, n]` and `b [s, t]`: block (i, j) is a[i, j] b. @throws ERR_HEDDLE_SHAPE */
export function kron(a: Sym, b: Sym): Sym {
  if (a.rank !== 2 || b.rank !== 2) misuse('kron', 'two matrices', `${typeText(a)} and ${typeText(b)}`)
  const [m, n] = a.shape as [number, number]
  const [s, t] = b.shape as [number, number]
  return reshape(mul(reshape(a, [m, 1, n, 1]), reshape(b, [1, s, 1, t])), [m * s, n * t])
}

/**
 * The order in which to apply factors `[m, n]` with the fewest operations. Exchanging two neighbours shows that it is the
 * order of 1/n − 1/m: those that shrink their axis most come first.
 */
export const kroneckerOrder = (factors: readonly (readonly [m: number, n: number])[]): number[] =>
  factors
    .map(([m, n], factor) => ({ factor, gain: 1 / n - 1 / m }))
    .sort((a, b) => a.gain - b.gain || a.factor - b.factor)
    .map(({ factor }) => factor)

/** Multiplications of one row with a chain of factors `[m, n]`, in an order. */
export function kroneckerProducts(
  factors: readonly (readonly [m: number, n: number])[],
  order: readonly number[] = kroneckerOrder(factors),
): number {
  let features = factors.reduce((product, [, n]) => product * n, 1)
  let products = 0
  for (const factor of order) {
    const [m, n] = factors[factor]!
    features = (features / n) * m
    products += features * n
  }
  return products
}

const sizesOf = (factors: readonly (SymType | undefined)[]): (readonly [number, number])[] =>
  factors.map((factor) => [factor!.shape[1]!, factor!.shape[2]!])

const apply = defineChain({
  name: 'kronecker',
  attributes: { order: 'i64[]' },
  weights: 16,
  types: ([x, ...factors]) => {
    const terms = factors[0]?.shape[0]
    const inner = factors.reduce((product, factor) => product * (factor!.shape[2] ?? 0), 1)
    const fits = factors.every((factor) => factor!.rank === 3 && factor!.shape[0] === terms)
    if (!fits || x!.rank < 1 || x!.shape.at(-1) !== inner || factors.length > 16)
      misuse(
        'kronecker',
        'x [..., n₁·…·n_d] and at most 16 factors [terms, mᵢ, nᵢ]',
        [x, ...factors].map(typeText).join(', '),
      )
    const out = factors.reduce((product, factor) => product * factor!.shape[1]!, 1)
    return [{ shape: [...x!.shape.slice(0, -1), out], dtype: floatType('kronecker', [x, ...factors]) }]
  },
  flops: ([x, ...factors], _, { order }) =>
    2 *
    elementCount(x!.shape.slice(0, -1)) *
    (factors[0]?.shape[0] ?? 1) *
    kroneckerProducts(sizesOf(factors), order as readonly number[]),
  decompose: ([x, ...factors], { order, precision }) => {
    const terms = Array.from({ length: factors[0]!.shape[0]! }, (_, term) => {
      const sizes = factors.map((factor) => factor!.shape[2]!)
      let value = x!
      for (const axis of order as readonly number[]) {
        const [, m, n] = factors[axis]!.shape as [number, number, number]
        const factor = reshape(slice(factors[axis]!, [{ axis: 0, start: term, end: term + 1 }]), [m, n])
        const behind = elementCount(sizes.slice(axis + 1))
        const moved = transpose(reshape(value, [-1, n, behind]), [0, 2, 1])
        const product = matmul(moved, factor, { transposeB: true, precision: precision as Precision })
        value = transpose(product, [0, 2, 1])
        sizes[axis] = m
      }
      return reshape(value, [-1, elementCount(sizes)])
    })
    const out = factors.reduce((product, factor) => product * factor!.shape[1]!, 1)
    return [
      reshape(
        terms.reduce((sum, term) => add(sum, term)),
        [...x!.shape.slice(0, -1), out],
      ),
    ]
  },
})

/** How {@link kroneckerMatmul} computes: factor by factor, or with the sum of products written out. */
export type KroneckerPath = 'stages' | 'materialised'

/**
 * The path of fewer multiplications for `rows` rows of x. Each term goes through the stages by itself, so a sum of many
 * costs more than the dense matrix.
 */
export function kroneckerPath(sizes: {
  readonly rows: number
  readonly terms: number
  readonly factors: readonly (readonly [m: number, n: number])[]
}): KroneckerPath {
  const { rows, terms, factors } = sizes
  const dense = factors.reduce((entries, [m, n]) => entries * m * n, 1)
  return rows * terms * kroneckerProducts(factors) > (rows + terms) * dense ? 'materialised' : 'stages'
}

/** Options of {@link kroneckerMatmul}. */
export interface KroneckerOptions extends ChainOptions {
  /** Default: the one that {@link kroneckerPath} finds cheaper. */
  readonly path?: KroneckerPath
}

/**
 * x (Σ over terms of F₁ ⊗ F₂ ⊗ … ⊗ F_d)ᵀ, one factor after the other in the cheapest order; the product of the factors
 * is written out only where there are so many terms that this is cheaper.
 * @param x `[..., n₁·…·n_d]`
 * @param factors each `[mᵢ, nᵢ]`, or all `[terms, mᵢ, nᵢ]`
 * @returns `[..., m₁·…·m_d]`
 * @throws ERR_HEDDLE_SHAPE
 */
export function kroneckerMatmul(x: Sym, factors: readonly Sym[], options: KroneckerOptions = {}): Sym {
  const { precision = 'f32' } = options
  const stacked = stack(factors)
  const sizes = sizesOf(stacked)
  const rows = elementCount(x.shape.slice(0, -1))
  const path = options.path ?? kroneckerPath({ rows, terms: stacked[0]!.shape[0]!, factors: sizes })
  if (path === 'stages') return apply(x, stacked, { order: kroneckerOrder(sizes), precision })
  return matmul(floating(x), kroneckerToDense(stacked.map(floating)), { transposeB: true, precision })
}

/**
 * Σ over terms of F₁ ⊗ F₂ ⊗ … ⊗ F_d, written out.
 * @param factors each `[mᵢ, nᵢ]`, or all `[terms, mᵢ, nᵢ]`
 * @returns `[m₁·…·m_d, n₁·…·n_d]`
 * @throws ERR_HEDDLE_SHAPE
 */
export function kroneckerToDense(factors: readonly Sym[]): Sym {
  const [first, ...rest] = stack(factors)
  const [terms, m, n] = first!.shape as [number, number, number]
  if (rest.length === 0) return sum(first!, { axes: [0] })
  const behind = rest.reduce((a, b) => {
    const [, p, q] = a.shape as [number, number, number]
    const [, s, t] = b.shape as [number, number, number]
    return reshape(mul(reshape(a, [terms, p, 1, q, 1]), reshape(b, [terms, 1, s, 1, t])), [terms, p * s, q * t])
  })
  const [, s, t] = behind.shape as [number, number, number]
  // Entry (i, j) of F₁ times the rest is a product of vectors (Van Loan and Pitsianis): all terms are summed by one product.
  const rearranged = matmul(reshape(first!, [terms, m * n]), reshape(behind, [terms, s * t]), { transposeA: true })
  return reshape(transpose(reshape(rearranged, [m, n, s, t]), [0, 2, 1, 3]), [m * s, n * t])
}

function stack(factors: readonly Sym[]): readonly Sym[] {
  if (factors.length === 0) misuse('kronecker', 'at least one factor', 'none')
  const stacked = factors.map((factor) => (factor.rank === 2 ? reshape(factor, [1, ...factor.shape]) : factor))
  if (stacked.some(({ rank, shape }) => rank !== 3 || shape[0] !== stacked[0]!.shape[0]))
    misuse('kronecker', 'factors [m, n], or all [terms, m, n]', factors.map(typeText).join(', '))
  return stacked
}
