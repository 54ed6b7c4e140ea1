/**
 * Elementwise operators. Shapes broadcast as in NumPy; computed in f32, or in f64 when every floating operand is f64.
 * Neighbours are fused into one instruction.
 */
import type { DType } from '../../tensor/dtype.js'
import { sameShape, shapeText } from '../../tensor/dtype.js'
import { defineOperator, floatType, gradientType, misuse, type Vjp } from '../operator.js'
import { Sym, Trace } from '../sym.js'
import { sumTo } from './reduce.js'
import { stopGradient } from './stop_gradient.js'

/** A symbolic value, or a number that becomes a scalar constant. */
export type Operand = Sym | number

/** NumPy's broadcast of shapes, or undefined when they do not fit. */
export function broadcastShapes(shapes: readonly (readonly number[])[]): number[] | undefined {
  const rank = Math.max(0, ...shapes.map((shape) => shape.length))
  const result = new Array<number>(rank).fill(1)
  for (const shape of shapes)
    for (const [axis, size] of shape.entries()) {
      const at = rank - shape.length + axis
      if (size === 1) continue
      if (result[at] !== 1 && result[at] !== size) return undefined
      result[at] = size
    }
  return result
}

const constantOf = defineOperator({
  name: 'constant',
  kind: 'elementwise',
  attributes: { value: 'f64', dtype: 'string' },
  types: (_, { dtype }) => [{ shape: [], dtype: dtype as DType }],
  vjp: { none: 'a constant depends on nothing' },
})

/** Constants by value: thousands of operators of a large trace share a few. */
const shared = new WeakMap<Trace, Map<string, Sym>>()

/** A scalar constant. */
export function constant(value: number, dtype: 'f32' | 'f64' = 'f32'): Sym {
  const trace = Trace.current('constant')
  const known = shared.get(trace) ?? new Map<string, Sym>()
  shared.set(trace, known)
  const key = `${dtype} ${Object.is(value, -0) ? '-0' : value}`
  const made = known.get(key) ?? constantOf([], { value, dtype })[0]!
  known.set(key, made)
  return made
}

/** `conditions`: leading operands that only choose, and so may be of any dtype. */
function declare(name: string, arity: number, vjp: Vjp | { readonly none: string }, conditions = 0) {
  const dtypeOf = (inputs: readonly (Sym | undefined)[]) => floatType(name, inputs.slice(conditions))
  const apply = defineOperator({
    name,
    kind: 'elementwise',
    types: (inputs) => {
      const shapes = inputs.map((input) => input?.shape ?? misuse(name, `${arity} inputs`, 'nothing'))
      const shape =
        broadcastShapes(shapes) ?? misuse(name, 'shapes that broadcast', shapes.map(shapeText).join(' and '))
      return [{ shape, dtype: dtypeOf(inputs) }]
    },
    vjp,
  })
  return (...operands: readonly Operand[]): Sym => {
    const dtype = dtypeOf(operands.map((operand) => (operand instanceof Sym ? operand : undefined)))
    return apply(operands.map((operand) => (operand instanceof Sym ? operand : constant(operand, dtype))))[0]!
  }
}

/** A unary operator whose derivative is `derivative(x, y)`, with y the operator's own result. */
function unary(name: string, derivative: (x: Sym, y: Sym) => Operand): (x: Operand) => Sym {
  return declare(name, 1, ({ inputs: [x], outputs: [y], gradients: [g] }) => [mul(g!, derivative(x!, y!))])
}

/** A binary operator with its two partial derivatives times the cotangent g. */
function binary(
  name: string,
  left: (g: Sym, a: Sym, b: Sym, y: Sym) => Sym,
  right: (g: Sym, a: Sym, b: Sym, y: Sym) => Sym,
): (a: Operand, b: Operand) => Sym {
  return declare(name, 2, ({ inputs: [a, b], outputs: [y], gradients: [g], wanted }) => [
    wanted[0] ? sumTo(left(g!, a!, b!, y!), a!.shape) : undefined,
    wanted[1] ? sumTo(right(g!, a!, b!, y!), b!.shape) : undefined,
  ])
}

const piecewise = { none: 'its derivative is zero almost everywhere' } as const

/** −x */
export const neg = unary('neg', () => -1)
/** |x|; the derivative at 0 is 0. */
export const abs = unary('abs', (x) => stopGradient(sign(x)))
/** e to the x */
export const exp = unary('exp', (_, y) => y)
/** Natural logarithm. */
export const log = unary('log', (x) => reciprocal(x))
/** √x */
export const sqrt = unary('sqrt', (_, y) => div(0.5, y))
/** 1 / √x */
export const rsqrt = unary('rsqrt', (_, y) => mul(-0.5, mul(y, square(y))))
/** 1 / x */
export const reciprocal = unary('reciprocal', (_, y) => neg(square(y)))
/** x² */
export const square = unary('square', (x) => mul(2, x))
/** Sine, x in radians. */
export const sin = unary('sin', (x) => cos(x))
/** Cosine, x in radians. */
export const cos = unary('cos', (x) => neg(sin(x)))
/** Hyperbolic tangent. */
export const tanh = unary('tanh', (_, y) => sub(1, square(y)))
/** 1 / (1 + e^−x) */
export const sigmoid = unary('sigmoid', (_, y) => mul(y, sub(1, y)))
/** x · sigmoid(x), also called swish. */
export const silu = unary('silu', (x, y) => {
  const gate = sigmoid(x)
  return add(gate, mul(y, sub(1, gate)))
})
/** max(x, 0) */
export const relu = unary('relu', (x) => stopGradient(greater(x, 0)))
/** log(1 + e^x), exact in both tails. */
export const softplus = unary('softplus', (x) => sigmoid(x))
/** The Gauss error function. */
export const erf = unary('erf', (x) => mul(2 / Math.sqrt(Math.PI), exp(neg(square(x)))))
/** −1, 0 or 1; no derivative. */
export const sign = declare('sign', 1, piecewise) as (x: Operand) => Sym
/** The largest integer ≤ x; no derivative. */
export const floor = declare('floor', 1, piecewise) as (x: Operand) => Sym

/** a + b */
export const add = binary(
  'add',
  (g) => g,
  (g) => g,
)
/** a − b */
export const sub = binary(
  'sub',
  (g) => g,
  (g) => neg(g),
)
/** a · b */
export const mul = binary(
  'mul',
  (g, _, b) => mul(g, b),
  (g, a) => mul(g, a),
)
/** a / b */
export const div = binary(
  'div',
  (g, _, b) => div(g, b),
  (g, _, b, y) => neg(div(mul(g, y), b)),
)
/** The larger of two; where they are equal the gradient goes to the first. */
export const maximum = binary(
  'maximum',
  (g, a, b) => mul(g, stopGradient(greaterEqual(a, b))),
  (g, a, b) => mul(g, stopGradient(less(a, b))),
)
/** The smaller of two; where they are equal the gradient goes to the first. */
export const minimum = binary(
  'minimum',
  (g, a, b) => mul(g, sub(1, stopGradient(greater(a, b)))),
  (g, a, b) => mul(g, stopGradient(greater(a, b))),
)
/** a to the power b, for a > 0. */
export const pow = binary(
  'pow',
  (g, a, b) => mul(g, mul(b, pow(a, sub(b, 1)))),
  (g, a, _, y) => mul(g, mul(y, log(a))),
)

/** 1 where a > b, else 0. */
export const greater: (a: Operand, b: Operand) => Sym = declare('greater', 2, piecewise)
/** 1 where a ≥ b, else 0. */
export const greaterEqual: (a: Operand, b: Operand) => Sym = declare('greater_equal', 2, piecewise)
/** 1 where a < b, else 0. */
export const less: (a: Operand, b: Operand) => Sym = declare('less', 2, piecewise)
/** 1 where a = b, else 0. */
export const equal: (a: Operand, b: Operand) => Sym = declare('equal', 2, piecewise)
/** 1 where a ≠ b, else 0. */
export const notEqual: (a: Operand, b: Operand) => Sym = declare('not_equal', 2, piecewise)

/** a where the condition is not 0, else b. */
export const select: (condition: Operand, a: Operand, b: Operand) => Sym = declare(
  'select',
  3,
  ({ inputs: [condition, a, b], gradients: [g], wanted }) => [
    undefined,
    wanted[1] ? sumTo(select(condition!, g!, 0), a!.shape) : undefined,
    wanted[2] ? sumTo(select(condition!, 0, g!), b!.shape) : undefined,
  ],
  1,
)

/** {@link select} under PyTorch's name. */
export const where = select

/** Which form of {@link gelu}: with erf, or with tanh as GPT-2 has it (`gelu_new`, `gelu_pytorch_tanh`). */
export interface GeluOptions {
  /** Default `none`: the exact form. */
  readonly approximate?: 'none' | 'tanh'
}

/**
 * Gaussian error linear unit (Hendrycks & Gimpel 2016, arXiv 1606.08415): x Φ(x) = x/2 (1 + erf(x / √2)), or
 * x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).
 */
export function gelu(x: Sym, { approximate = 'none' }: GeluOptions = {}): Sym {
  const half = mul(0.5, x)
  if (approximate === 'none') return mul(half, add(1, erf(mul(Math.SQRT1_2, x))))
  const inner = mul(Math.sqrt(2 / Math.PI), mul(x, add(1, mul(0.044715, square(x)))))
  return mul(half, add(1, tanh(inner)))
}

/** x · sigmoid(1.702 x), the GELU of CLIP and GPT-1. */
export const quickGelu = (x: Sym): Sym => mul(x, sigmoid(mul(1.702, x)))

/** log sigmoid(x), without overflow in either tail. */
export const logSigmoid = (x: Sym): Sym => neg(softplus(neg(x)))

/** x where x > 0, else slope · x. */
export const leakyRelu = (x: Sym, slope = 0.01): Sym => select(greater(x, 0), x, mul(slope, x))

/** x where x > 0, else alpha (e^x − 1) (Clevert et al. 2015, arXiv 1511.07289). */
export const elu = (x: Sym, alpha = 1): Sym => select(greater(x, 0), x, mul(alpha, sub(exp(minimum(x, 0)), 1)))

/** x cut off at low and high; the gradient is 1 from low to high, both included, and 0 outside. */
export const clamp = (x: Sym, low: number, high: number): Sym => minimum(maximum(x, low), high)

/** {@link clamp} under PyTorch's name of the activation. */
export const hardtanh = (x: Sym, low = -1, high = 1): Sym => clamp(x, low, high)

/** x · tanh(softplus(x)) (Misra 2019, arXiv 1908.08681). */
export const mish = (x: Sym): Sym => mul(x, tanh(softplus(x)))

/** cap · tanh(x / cap): Gemma 2's soft limit on scores and logits. */
export const softcap = (x: Sym, cap: number): Sym => mul(cap, tanh(div(x, cap)))

const castOf = defineOperator({
  name: 'cast',
  kind: 'elementwise',
  attributes: { dtype: 'string' },
  types: ([x], { dtype }) => [{ shape: x!.shape, dtype: dtype as DType }],
  vjp: ({ inputs: [x], gradients: [g] }) => [x!.dtype === gradientType(x!) ? cast(g!, x!.dtype) : undefined],
})

/** The same values in another dtype; to an integer type they are cut towards zero. */
export const cast = (x: Sym, dtype: DType): Sym => (x.dtype === dtype ? x : castOf([x], { dtype })[0]!)

/** x broadcast to a shape, as a value of its own. */
export function broadcastTo(x: Sym, shape: readonly number[]): Sym {
  return sameShape(x.shape, shape) ? x : broadcast([x], { shape })[0]!
}

const broadcast = defineOperator({
  name: 'broadcast_to',
  attributes: { shape: 'i64[]' },
  types: ([x], { shape }) => {
    const target = shape as readonly number[]
    const result = broadcastShapes([x!.shape, target])
    if (!result || !sameShape(result, target))
      misuse('broadcast_to', `a shape that broadcasts to ${shapeText(target)}`, shapeText(x!.shape))
    return [{ shape: target, dtype: x!.dtype }]
  },
  vjp: ({ inputs: [x], gradients: [g] }) => [sumTo(g!, x!.shape)],
})
