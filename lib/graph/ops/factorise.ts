/**
 * Orthogonal factorisations as operators. Derivatives of singular vectors and eigenvectors divide by differences of
 * values. Where two of these coincide the vectors are not determined and have no derivative: 1 / d is replaced by
 * d / (d² + ε²), with ε at the rounding of the largest value. So gradients stay finite and are exact away from there;
 * at equal values the part that would turn their vectors into each other is zero.
 */
import { defineOperator, floatType, gradientType, misuse, type VjpContext } from '../operator.js'
import type { Sym } from '../sym.js'
import { abs, add, div, maximum, mul, neg, square, sub } from './elementwise.js'
import { expandDims, tril } from './gather.js'
import { concat, slice, transpose } from './index.js'
import { matmul } from './matmul.js'
import {
  diagonal,
  identityLike,
  matrixSize,
  scaleColumns,
  squareSize,
  timesTransposed,
  transposedTimes,
  withSizes,
} from './matrices.js'
import { max } from './reduce.js'
import { solveTriangularOf } from './solve.js'
import { stopGradient } from './stop_gradient.js'

/** a = u diag(s) vh for `a [..., m, n]`; see {@link svd}. Outputs nobody reads are not computed. */
export const svdOf = (a: Sym, full: boolean): readonly Sym[] => svdOperator([a], { full: Number(full) })

const svdOperator = defineOperator({
  name: 'svd',
  attributes: { full: 'i64' },
  types: ([a], { full }) => {
    const [m, n] = matrixSize('svd', a)
    const k = Math.min(m, n)
    const dtype = floatType('svd', [a])
    return [
      { shape: withSizes(a!, m, full === 1 ? m : k), dtype },
      { shape: withSizes(a!, k), dtype },
      { shape: withSizes(a!, full === 1 ? n : k, n), dtype },
    ]
  },
  optionalOutputs: [0, 2],
  vjp: svdVjp,
  flops: ([a]) => 21 * cubic(a!.shape),
})

const cubic = (shape: readonly number[]): number => {
  const [m, n] = [shape.at(-2)!, shape.at(-1)!]
  return shape.reduce((x, y) => x * y, 1) * Math.min(m, n)
}

function svdVjp({ inputs: [a], outputs, attributes, gradients: [gu, gs, gvh] }: VjpContext): (Sym | undefined)[] {
  const [u, s, vh] = outputs as [Sym, Sym, Sym]
  const [m, n] = matrixSize('svd', a)
  const k = Math.min(m, n)
  if (attributes.full === 1 && m !== n && (gu || gvh))
    misuse('svd', 'thin factors where a gradient goes through the vectors', 'full ones', 'ERR_HEDDLE_GRAD')
  if (k === 0) return [undefined]
  const largest = largestOf(s)
  const scaled = div(s, largest)
  const inner: Sym[] = gs ? [diagonal(gs)] : []
  // The antisymmetric parts p of uᵀ gu and q of vᵀ gv: (p s_j + s_i q) / (s_j² − s_i²), but with the sums of singular
  // values apart from their differences. So the gradient of u vh, the polar factor, is exact at equal ones too.
  const p = gu && antisymmetric(transposedTimes(u, gu))
  const q = gvh && antisymmetric(timesTransposed(vh, gvh))
  if (p || q) {
    const along = (values: readonly (Sym | undefined)[]): Sym =>
      values.filter((x): x is Sym => x !== undefined).reduce((x, y) => add(x, y))
    const together = mul(along([p, q]), inverseGaps(scaled))
    const opposed = mul(along([p, q && neg(q)]), safeReciprocal(add(expandDims(scaled, -2), expandDims(scaled, -1))))
    inner.push(div(mul(0.5, add(together, opposed)), expandDims(largest, -1)))
  }
  const middle = inner.reduce((x, y) => add(x, y))
  const [left, right] = attributes.full === 1 && m !== n ? [firstColumns(u, k), firstRows(vh, k)] : [u, vh]
  const terms = [matmul(matmul(left, middle), right)]
  const inverse = div(safeReciprocal(scaled), largest)
  if (gu && m > k) terms.push(matmul(scaleColumns(sub(gu, matmul(u, transposedTimes(u, gu))), inverse), vh))
  if (gvh && n > k) terms.push(matmul(scaleColumns(u, inverse), sub(gvh, matmul(timesTransposed(gvh, vh), vh))))
  return [terms.reduce((x, y) => add(x, y))]
}

/** The largest magnitude of the last axis, kept as an axis; never zero. */
const largestOf = (values: Sym): Sym =>
  stopGradient(maximum(max(abs(values), { axes: [values.rank - 1], keepDims: true }), 1e-37))

/** 1 / x for x of magnitudes up to 1, but 0 where x is rounding. */
function safeReciprocal(x: Sym): Sym {
  const blur = gradientType(x) === 'f64' ? 1e-14 : 1e-6
  return div(x, add(square(x), blur ** 2))
}

const antisymmetric = (x: Sym): Sym => sub(x, transpose(x))

/**
 * 1 / (values_j − values_i) at place i, j, and 0 on the diagonal, whose own derivative must not be that of 0 / ε².
 */
function inverseGaps(values: Sym): Sym {
  const same = identityLike(values.shape.at(-1)!, values)
  return mul(sub(1, same), safeReciprocal(add(sub(expandDims(values, -2), expandDims(values, -1)), same)))
}

const firstColumns = (a: Sym, k: number): Sym => slice(a, [{ axis: -1, start: 0, end: k }])
const firstRows = (a: Sym, k: number): Sym => slice(a, [{ axis: -2, start: 0, end: k }])

/** a = q r for `a [..., m, n]`; see {@link qr}. */
export const qrOf = (a: Sym, full: boolean): readonly Sym[] => qrOperator([a], { full: Number(full) })

const qrOperator = defineOperator({
  name: 'qr',
  attributes: { full: 'i64' },
  types: ([a], { full }) => {
    const [m, n] = matrixSize('qr', a)
    const inner = full === 1 ? m : Math.min(m, n)
    const dtype = floatType('qr', [a])
    return [
      { shape: withSizes(a!, m, inner), dtype },
      { shape: withSizes(a!, inner, n), dtype },
    ]
  },
  optionalOutputs: [0, 1],
  vjp: ({ inputs: [a], outputs, attributes, gradients }) => {
    const [m, n] = matrixSize('qr', a)
    if (attributes.full === 1 && m > n)
      misuse('qr', 'thin factors where a gradient passes', 'full ones', 'ERR_HEDDLE_GRAD')
    const [q, r] = outputs as [Sym, Sym]
    const [gq, gr] = gradients
    if (m >= n) return [tallQrVjp(q, r, gq, gr)]
    // a = [x y] with x = q r₁ square, and y = q r₂.
    const columns = (x: Sym, start: number, end: number): Sym => slice(x, [{ axis: -1, start, end }])
    const y = columns(a!, m, n)
    const gr2 = gr && columns(gr, m, n)
    const through = gr2 && timesTransposed(y, gr2)
    const total = gq && through ? add(gq, through) : (gq ?? through)
    const gx = tallQrVjp(q, columns(r, 0, m), total, gr && columns(gr, 0, m))
    const gy = gr2 ? matmul(q, gr2) : mul(y, 0)
    return [concat([gx, gy], a!.rank - 1)]
  },
  flops: ([a]) => 4 * cubic(a!.shape),
})

/** (gq + q copy(r grᵀ − gqᵀ q)) r⁻ᵀ, where copy mirrors the lower triangle (Walter and Lehmann, arXiv 1001.1654). */
function tallQrVjp(q: Sym, r: Sym, gq: Sym | undefined, gr: Sym | undefined): Sym {
  const parts: Sym[] = []
  if (gr) parts.push(timesTransposed(r, gr))
  if (gq) parts.push(mul(-1, transposedTimes(gq, q)))
  const total = parts.reduce((x, y) => add(x, y))
  const mirrored = add(tril(total), transpose(tril(total, -1)))
  const right = matmul(q, mirrored)
  return transpose(solveTriangularOf(r, transpose(gq ? add(gq, right) : right), { upper: true }))
}

/** a[..., pivots] = q r; see {@link qrPivoted}. */
export const qrPivotedOf = defineOperator({
  name: 'qr_pivoted',
  types: ([a]) => {
    const [m, n] = matrixSize('qr_pivoted', a)
    const k = Math.min(m, n)
    const dtype = floatType('qr_pivoted', [a])
    return [
      { shape: withSizes(a!, m, k), dtype },
      { shape: withSizes(a!, k, n), dtype },
      { shape: withSizes(a!, n), dtype: 'i32' },
    ]
  },
  vjp: { none: 'its pivots jump; take the qr of the columns in their order' },
  flops: ([a]) => 4 * cubic(a!.shape),
})

/** a = v diag(w) vᵀ for symmetric `a [..., n, n]`; see {@link eigh}. */
export const eighOf = defineOperator({
  name: 'eigh',
  types: ([a]) => {
    const n = squareSize('eigh', a)
    const dtype = floatType('eigh', [a])
    return [
      { shape: withSizes(a!, n), dtype },
      { shape: a!.shape, dtype },
    ]
  },
  vjp: ({ outputs, gradients: [gw, gv] }) => {
    const [w, v] = outputs as [Sym, Sym]
    if (w.shape.at(-1) === 0) return [undefined]
    const inner: Sym[] = gw ? [diagonal(gw)] : []
    if (gv) {
      const largest = largestOf(w)
      const scaled = div(w, largest)
      const gaps = inverseGaps(scaled)
      inner.push(div(mul(transposedTimes(v, gv), gaps), expandDims(largest, -1)))
    }
    const g = timesTransposed(
      matmul(
        v,
        inner.reduce((x, y) => add(x, y)),
      ),
      v,
    )
    return [mul(0.5, add(g, transpose(g)))]
  },
  flops: ([a]) => 9 * cubic(a!.shape),
})

/**
 * `value`, which is the pseudoinverse x of a, with x's derivative in a itself instead of that of how it was computed
 * (Golub and Pereyra 1973): −x da x + x xᵀ daᵀ (1 − a x) + (1 − x a) daᵀ xᵀ x for da that keep a's rank. It does not
 * divide by differences of singular values, so equal ones are as good as any.
 */
export const pseudoinverseOf = (a: Sym, value: Sym): Sym => pseudoinverse([value, a])[0]!

const pseudoinverse = defineOperator({
  name: 'pseudoinverse',
  kind: 'alias',
  types: ([value]) => [value!],
  vjp: ({ inputs: [, a], outputs: [x], gradients: [g] }) => {
    const across = timesTransposed(transposedTimes(x!, g!), x!)
    const gt = transpose(g!)
    const left = matmul(sub(gt, matmul(a!, matmul(x!, gt))), timesTransposed(x!, x!))
    const right = matmul(transposedTimes(x!, x!), sub(gt, matmul(matmul(gt, x!), a!)))
    return [undefined, sub(add(left, right), across)]
  },
})
