/** Sums of Kronecker products, and the nearest one to a dense matrix (Van Loan and Pitsianis 1993). */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { mul, sqrt } from '../graph/ops/elementwise.js'
import { placeInZeros, slice, transpose } from '../graph/ops/index.js'
import { kroneckerMatmul, kroneckerToDense } from '../graph/ops/kronecker.js'
import { reshape } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import { svd } from '../linalg/factorise.js'
import { elementCount } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import { projectionOf, uniformTensor } from './initial.js'
import { expectParameters, type Structure, type StructuredMatrix, structuredMatrix } from './structured_matrix.js'

/** Options of {@link kroneckerMatrix}. */
export interface KroneckerMatrixOptions {
  /** Rows and columns of each factor; their products are those of the matrix. At most 16. */
  readonly factors: readonly (readonly [rows: number, columns: number])[]
  /** Number of Kronecker products in the sum; default 1. */
  readonly terms?: number
}

/**
 * W = Σ over terms of F₁ ⊗ F₂ ⊗ … Parameters: `factor1`, `factor2`, … `[terms, rows, columns]`; terms · Σ rows · columns
 * numbers. With two factors `fromDense` is optimal in the Frobenius norm: the entries of W, rearranged so that block (i, j)
 * is a row, make the matrix Σ vec(F₁) vec(F₂)ᵀ, whose SVD is truncated. One product of more factors is split off factor
 * by factor, which gives W back where it is such a product and is close to the best otherwise.
 */
export const kroneckerMatrix: Structure<KroneckerMatrixOptions> = {
  kind: 'kronecker',
  async fromDense(weight, options) {
    const layout = layoutOf([weight.shape[0]!, weight.shape[1]!], options)
    if (layout.terms > 1 && layout.sizes.length > 2)
      throw misuse('kroneckerMatrix.terms', '1 term of more than two factors', String(layout.terms))
    return projectionOf(over(await split(weight, layout)), weight)
  },
  async random(shape, { seed = 0, ...options }) {
    const { terms, sizes } = layoutOf(shape, options)
    const factors: Tensor[] = []
    // So that x W has the variance that a dense weight, uniform on ±1/√in, gives it.
    for (const [i, [m, n]] of sizes.entries())
      factors.push(await uniformTensor([terms, m, n], Math.sqrt((i === 0 ? 1 / terms : 3) / n), seed, i))
    return over(factors)
  },
  restore({ kind, shape, transposed, config: { terms, rows, columns } }, parameters) {
    const factors = (rows as readonly number[] | undefined)?.map((m, i) => [m, (columns as readonly number[])?.[i]])
    const layout = layoutOf(shape, { factors, terms })
    const shapes = Object.fromEntries(layout.sizes.map(([m, n], i) => [`factor${i + 1}`, [layout.terms, m, n]]))
    return over(Object.values(expectParameters(kind, parameters, shapes)), transposed)
  },
}

interface Layout {
  readonly terms: number
  readonly sizes: readonly (readonly [number, number])[]
}

const count = z.int().min(1)
const schema = z.strictObject({
  factors: z
    .array(z.tuple([count, count]))
    .min(1)
    .max(16),
  terms: count.optional(),
  seed: z.number().optional(),
})

function layoutOf([out, inner]: readonly [number, number], options: unknown): Layout {
  const { factors, terms = 1 } = parseConfig('kroneckerMatrix', schema, options)
  const [rows, columns] = [elementCount(factors.map(([m]) => m)), elementCount(factors.map(([, n]) => n))]
  if (rows === out && columns === inner) return { terms, sizes: factors }
  throw misuse('kroneckerMatrix.factors', `factors of a matrix [${out}, ${inner}]`, `of one [${rows}, ${columns}]`)
}

/** The first factor, then what is left as a matrix of its own. */
async function split(weight: Tensor, { terms, sizes }: Layout): Promise<Tensor[]> {
  const [[m, n], ...rest] = sizes as readonly [readonly [number, number], ...(readonly (readonly [number, number])[])]
  if (rest.length === 0)
    return [await computed(() => placeInZeros(reshape(read(weight), [1, m, n]), [0, 0, 0], [terms, m, n]))]
  const [s, t] = [weight.shape[0]! / m, weight.shape[1]! / n]
  using rearranged = await computed(() =>
    reshape(transpose(reshape(read(weight), [m, s, n, t]), [0, 2, 1, 3]), [m * n, s * t]),
  )
  const { u, s: sigma, vh } = await svd(rearranged)
  const kept = Math.min(terms, sigma.size)
  const [first, second] = await computed(() => {
    const root = sqrt(slice(read(sigma), [{ axis: 0, start: 0, end: kept }]))
    const left = transpose(mul(slice(read(u), [{ axis: 1, start: 0, end: kept }]), root))
    const right = mul(slice(read(vh), [{ axis: 0, start: 0, end: kept }]), reshape(root, [kept, 1]))
    return [reshape(left, [kept, m, n]), reshape(right, [kept, s, t])].map((factor) =>
      // More terms than the matrix has singular values leave some empty.
      placeInZeros(factor, [0, 0, 0], [terms, ...factor.shape.slice(1)]),
    )
  })
  for (const each of [u, sigma, vh]) each.dispose()
  if (rest.length === 1) return [first!, second!]
  using remainder = await computed(() => reshape(read(second!), [s, t]))
  second!.dispose()
  return [first!, ...(await split(remainder, { terms: 1, sizes: rest }))]
}

function over(factors: readonly Tensor[], transposed = false): StructuredMatrix {
  const sizeOf = (axis: number): number => elementCount(factors.map(({ shape }) => shape[axis]!))
  const own = (turned: boolean): Sym[] =>
    factors.map((factor) => (turned ? transpose(read(factor), [0, 2, 1]) : read(factor)))
  return structuredMatrix(
    {
      kind: 'kronecker',
      shape: [sizeOf(1), sizeOf(2)],
      config: {
        terms: factors[0]!.shape[0]!,
        rows: factors.map(({ shape }) => shape[1]!),
        columns: factors.map(({ shape }) => shape[2]!),
      },
      parameters: Object.fromEntries(factors.map((factor, i) => [`factor${i + 1}`, factor])),
      product: (x, { transposed: turned, precision }) => kroneckerMatmul(x, own(turned), { precision }),
      toDense: () => kroneckerToDense(own(false)),
    },
    transposed,
  )
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
