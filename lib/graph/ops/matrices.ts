/** What operators on batches of matrices `[..., m, n]` share. */
import { gradientType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { equal, mul } from './elementwise.js'
import { arange, expandDims } from './gather.js'
import { transpose } from './index.js'
import { matmul } from './matmul.js'
import { reshape } from './reduce.js'

/** [rows, columns] of matrices `[..., m, n]`. */
export function matrixSize(op: string, a: Sym | undefined): readonly [number, number] {
  if (!a || a.rank < 2) misuse(op, 'matrices [..., m, n]', typeText(a))
  return [a.shape.at(-2)!, a.shape.at(-1)!]
}

/** The size of square matrices `[..., n, n]`. */
export function squareSize(op: string, a: Sym | undefined): number {
  const [m, n] = matrixSize(op, a)
  if (m !== n) misuse(op, 'square matrices [..., n, n]', typeText(a))
  return n
}

/** a's leading dimensions and some more. */
export const withSizes = (a: Sym, ...sizes: readonly number[]): readonly number[] => [...a.shape.slice(0, -2), ...sizes]

/** The first n rows of an identity with so many columns, in the dtype of `like`. */
export function identityLike(n: number, like: Sym, columns: number = n): Sym {
  const dtype = gradientType(like)
  return equal(reshape(arange(n, { dtype }), [n, 1]), arange(columns, { dtype }))
}

/** values `[..., n]` as diagonal matrices `[..., n, n]`. */
export const diagonal = (values: Sym): Sym => mul(expandDims(values, -1), identityLike(values.shape.at(-1)!, values))

/** a diag(values) */
export const scaleColumns = (a: Sym, values: Sym): Sym => mul(a, expandDims(values, -2))

/** diag(values) a */
export const scaleRows = (a: Sym, values: Sym): Sym => mul(a, expandDims(values, -1))

/** aᵀ b */
export const transposedTimes = (a: Sym, b: Sym): Sym =>
  a.rank === 2 ? matmul(a, b, { transposeA: true }) : matmul(transpose(a), b)

/** a bᵀ */
export const timesTransposed = (a: Sym, b: Sym): Sym => matmul(a, b, { transposeB: true })
