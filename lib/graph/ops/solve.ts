/** Triangular factorisations and systems of equations as operators. */
import { sameShape } from '../../tensor/dtype.js'
import { defineOperator, floatType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { add, equal, mul, neg } from './elementwise.js'
import { arange, expandDims, tril, triu } from './gather.js'
import { transpose } from './index.js'
import { matrixSize, squareSize, timesTransposed, transposedTimes, withSizes } from './matrices.js'
import { stopGradient } from './stop_gradient.js'

const perMatrix = (a: Sym, n: number): number => a.shape.slice(0, -2).reduce((x, y) => x * y, 1) * n ** 3

function expectRows(op: string, a: Sym, b: Sym | undefined): void {
  const n = squareSize(op, a)
  if (!b || b.rank < 2 || !sameShape(b.shape, withSizes(a, n, b.shape.at(-1)!)))
    misuse(op, `b [${withSizes(a, n).join(', ')}, k]`, typeText(b))
}

/** x with a x = b, for `a [..., n, n]` and `b [..., n, k]`. */
export const solveOf = (a: Sym, b: Sym): Sym => solveOperator([a, b])[0]!

const solveOperator = defineOperator({
  name: 'solve',
  types: ([a, b]) => {
    expectRows('solve', a!, b)
    return [{ shape: b!.shape, dtype: floatType('solve', [a, b]) }]
  },
  vjp: ({ inputs: [a], outputs: [x], gradients: [g], wanted }) => {
    const gb = solveOf(transpose(a!), g!)
    return [wanted[0] ? neg(timesTransposed(gb, x!)) : undefined, gb]
  },
  flops: ([a, b]) => (2 / 3 + (2 * b!.shape.at(-1)!) / a!.shape.at(-1)!) * perMatrix(a as Sym, a!.shape.at(-1)!),
})

/** Which triangle of a is read, and what is made of it. */
export interface TriangularOptions {
  /** The upper triangle; default the lower one. */
  readonly upper?: boolean
  /** Solve with aᵀ. */
  readonly transpose?: boolean
  /** The diagonal counts as ones. */
  readonly unitTriangular?: boolean
}

/** x with op(a) x = b for triangular `a [..., n, n]`, `b [..., n, k]`; the other triangle is not read. */
export const solveTriangularOf = (a: Sym, b: Sym, options: TriangularOptions = {}): Sym =>
  triangularOperator([a, b], {
    upper: Number(options.upper ?? false),
    transpose: Number(options.transpose ?? false),
    unit: Number(options.unitTriangular ?? false),
  })[0]!

const triangularOperator = defineOperator({
  name: 'solve_triangular',
  attributes: { upper: 'i64', transpose: 'i64', unit: 'i64' },
  types: ([a, b]) => {
    expectRows('solve_triangular', a!, b)
    return [{ shape: b!.shape, dtype: floatType('solve_triangular', [a, b]) }]
  },
  vjp: ({ inputs: [a], outputs: [x], attributes, gradients: [g], wanted }) => {
    const [upper, transposed, unitTriangular] = [
      attributes.upper === 1,
      attributes.transpose === 1,
      attributes.unit === 1,
    ]
    const gb = solveTriangularOf(a!, g!, { upper, transpose: !transposed, unitTriangular })
    if (!wanted[0]) return [undefined, gb]
    const ga = neg(transposed ? timesTransposed(x!, gb) : timesTransposed(gb, x!))
    const first = unitTriangular ? 1 : 0
    return [upper ? triu(ga, first) : tril(ga, -first), gb]
  },
  flops: ([a, b]) => (b!.shape.at(-1)! / a!.shape.at(-1)!) * perMatrix(a as Sym, a!.shape.at(-1)!),
})

/** l with a = l lᵀ, for positive definite `a [..., n, n]`; reads the lower triangle. */
export const choleskyOf = (a: Sym): Sym => choleskyOperator([a])[0]!

const choleskyOperator = defineOperator({
  name: 'cholesky',
  types: ([a]) => {
    squareSize('cholesky', a)
    return [{ shape: a!.shape, dtype: floatType('cholesky', [a]) }]
  },
  // ½ l⁻ᵀ (p + pᵀ) l⁻¹ for p the lower triangle of lᵀ gl (Murray 2016, arXiv 1602.07527).
  vjp: ({ outputs: [l], gradients: [g] }) => {
    const product = transposedTimes(l!, g!)
    const mirrored = add(tril(product), transpose(tril(product, -1)))
    const half = solveTriangularOf(l!, mirrored, { transpose: true })
    const whole = transpose(solveTriangularOf(l!, transpose(half), { transpose: true }))
    return [mul(0.25, add(whole, transpose(whole)))]
  },
  flops: ([a]) => perMatrix(a as Sym, a!.shape.at(-1)!) / 3,
})

/** permutation i32 `[..., m]`, l `[..., m, k]`, u `[..., k, n]` with a[permutation] = l u. */
export const luOf = defineOperator({
  name: 'lu',
  types: ([a]) => {
    const [m, n] = matrixSize('lu', a)
    const k = Math.min(m, n)
    const dtype = floatType('lu', [a])
    return [
      { shape: withSizes(a!, m), dtype: 'i32' },
      { shape: withSizes(a!, m, k), dtype },
      { shape: withSizes(a!, k, n), dtype },
    ]
  },
  // pᵀ l⁻ᵀ (strictly lower(lᵀ gl) + upper(gu uᵀ)) u⁻ᵀ
  vjp: ({ inputs: [a], outputs, gradients: [, gl, gu] }) => {
    const [m, n] = matrixSize('lu', a)
    if (m !== n) misuse('lu', 'square matrices where a gradient passes', typeText(a), 'ERR_HEDDLE_GRAD')
    const [permutation, l, u] = outputs as [Sym, Sym, Sym]
    const parts: Sym[] = []
    if (gl) parts.push(tril(transposedTimes(l, gl), -1))
    if (gu) parts.push(triu(timesTransposed(gu, u)))
    const half = solveTriangularOf(
      l,
      parts.reduce((x, y) => add(x, y)),
      { transpose: true, unitTriangular: true },
    )
    const whole = transpose(solveTriangularOf(u, transpose(half), { upper: true }))
    return [transposedTimes(permutationMatrix(permutation, whole), whole)]
  },
  flops: ([a]) => (2 / 3) * perMatrix(a as Sym, Math.min(a!.shape.at(-1)!, a!.shape.at(-2)!)),
})

/** p `[..., n, n]` with (p a)[i] = a[permutation[i]]. */
export function permutationMatrix(permutation: Sym, like: Sym): Sym {
  const n = permutation.shape.at(-1)!
  const places = arange(n, { dtype: floatType('permutation', [like]) })
  return stopGradient(equal(expandDims(permutation, -1), places))
}
