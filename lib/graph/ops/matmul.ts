/** Matrix products. Frozen right operands are packed once into the matmul library's own layout. */
import { elementCount, sameShape } from '../../tensor/dtype.js'
import { defineOperator, floatType, misuse, typeText, type VjpContext } from '../operator.js'
import type { Sym } from '../sym.js'
import { mul } from './elementwise.js'
import { reshape, sum, sumTo } from './reduce.js'

/**
 * How operands are multiplied: `bf16` rounds them to bf16 and accumulates in f32. `stored` multiplies up to 32 rows with
 * a frozen matrix in the quantised blocks of its file (activations are rounded to 16 bits per 32 values), and is `bf16`
 * for everything else. Inputs and outputs stay f32.
 */
export type Precision = 'f32' | 'bf16' | 'stored'

/** Transposes, factor and addend of {@link matmul}. */
export interface MatmulOptions {
  readonly transposeA?: boolean
  readonly transposeB?: boolean
  /** Factor on the product. */
  readonly alpha?: number
  /** Added to the product: a bias `[n]` or a value of the output's shape. */
  readonly addend?: Sym
  readonly precision?: Precision
}

const apply = defineOperator({
  name: 'matmul',
  attributes: { transpose_a: 'i64', transpose_b: 'i64', alpha: 'f64', precision: 'string' },
  types: ([a, b, c], { transpose_a, transpose_b, precision }) => {
    const [k, m] = lastTwo(a!, transpose_a === 0)
    const [n, inner] = lastTwo(b!, transpose_b === 0)
    const batch = a!.shape.slice(0, -2)
    if (k !== inner || !sameShape(batch, b!.shape.slice(0, -2)))
      misuse('matmul', `a right operand with inner size ${k}`, `${typeText(a)} and ${typeText(b)}`)
    const shape = [...batch, m, n]
    if (c && !sameShape(c.shape, shape) && !sameShape(c.shape, [n]))
      misuse('matmul', `an addend [${shape}] or [${n}]`, typeText(c))
    const dtype = floatType('matmul', c ? [a, b, c] : [a, b])
    if (dtype === 'f64' && precision !== 'f32')
      misuse('matmul', "precision 'f32' (the operands' own) for f64", `'${precision}'`, 'ERR_HEDDLE_DTYPE')
    return [{ shape, dtype }]
  },
  vjp: matmulVjp,
  inPlace: [[2, 0]],
  flops: ([a], [y], { transpose_a }) => 2 * elementCount(y!.shape) * a!.shape.at(transpose_a === 1 ? -2 : -1)!,
})

/** [columns, rows] of op(x) when `plain`, of its transpose otherwise. */
function lastTwo(x: Sym, plain: boolean): readonly [number, number] {
  if (x.rank < 2) misuse('matmul', 'matrices', typeText(x))
  const [rows, columns] = [x.shape.at(-2)!, x.shape.at(-1)!]
  return plain ? [columns, rows] : [rows, columns]
}

/**
 * alpha · op(a) op(b) + addend, with `a [..., m, k]` and `b [k, n]`, or both with equal leading dimensions.
 * @throws ERR_HEDDLE_SHAPE
 */
export function matmul(a: Sym, b: Sym, options: MatmulOptions = {}): Sym {
  const { transposeA = false, transposeB = false, alpha = 1, addend, precision = 'f32' } = options
  const attributes = { transpose_a: Number(transposeA), transpose_b: Number(transposeB), alpha, precision }
  if (b.rank > 2 || a.rank === 2) return apply(addend ? [a, b, addend] : [a, b], attributes)[0]!
  if (transposeA || a.rank < 2) misuse('matmul', 'a left operand [..., m, k] that is not transposed', typeText(a))
  const flat = reshape(a, [-1, a.shape.at(-1)!])
  const n = b.shape.at(transposeB ? 0 : 1)!
  const flatAddend = addend && addend.rank > 1 ? reshape(addend, [-1, n]) : addend
  return reshape(apply(flatAddend ? [flat, b, flatAddend] : [flat, b], attributes)[0]!, [...a.shape.slice(0, -1), n])
}

function matmulVjp({ inputs: [a, b, c], attributes, gradients: [g], wanted }: VjpContext): (Sym | undefined)[] {
  const transposeA = attributes.transpose_a === 1
  const transposeB = attributes.transpose_b === 1
  const options = { alpha: attributes.alpha as number, precision: attributes.precision as Precision }
  const da = () =>
    transposeA
      ? matmul(b!, g!, { ...options, transposeA: transposeB, transposeB: true })
      : matmul(g!, b!, { ...options, transposeB: !transposeB })
  const db = () =>
    transposeB
      ? matmul(g!, a!, { ...options, transposeA: true, transposeB: transposeA })
      : matmul(a!, g!, { ...options, transposeA: !transposeA })
  return [wanted[0] ? da() : undefined, wanted[1] ? db() : undefined, c && wanted[2] ? sumTo(g!, c.shape) : undefined]
}

/** Σ a·b over the last axis. */
export const dot = (a: Sym, b: Sym): Sym => sum(mul(a, b), { axes: [-1] })
