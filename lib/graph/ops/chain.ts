/** What products with chains of block-wise stages share: an operator, the fused gradient of all its operands, f64. */
import { pullbackOf } from '../grad.js'
import {
  type AttributeType,
  type Decomposition,
  defineOperator,
  type Flops,
  gradientType,
  misuse,
} from '../operator.js'
import type { Attributes, Sym, SymType } from '../sym.js'
import { cast } from './elementwise.js'
import type { Precision } from './matmul.js'

/** An operator y `[..., out]` = f(x `[..., in]`, weights) that is linear in each operand. */
export interface ChainDefinition {
  readonly name: string
  readonly attributes?: Readonly<Record<string, AttributeType>>
  readonly types: (inputs: readonly (Sym | undefined)[], attributes: Attributes) => readonly SymType[]
  /** Multiplications and additions of one row of x. */
  readonly flops: Flops
  readonly decompose: Decomposition
  /** Most weights there may be. */
  readonly weights: number
}

/** Declares the operator and its gradient `name_vjp`, whose kernels make all cotangents in one pass over x and dy. */
export function defineChain(
  definition: ChainDefinition,
): (x: Sym, weights: readonly Sym[], attributes: Attributes) => Sym {
  const { name, types, decompose, flops } = definition
  const attributes = { ...definition.attributes, precision: 'string' } as const
  const vjpOf = defineOperator({
    name: `${name}_vjp`,
    attributes,
    types: (inputs) => inputs.slice(0, -1).map((operand) => ({ shape: operand!.shape, dtype: gradientType(operand!) })),
    optionalOutputs: Array.from({ length: definition.weights + 1 }, (_, i) => i),
    flops: (inputs, _, given) => 2.5 * flops(inputs.slice(0, -1), [], given),
    decompose: (inputs, given) => pullbackOf((own) => decompose(own, given), inputs.slice(0, -1), inputs.slice(-1)),
    vjp: 'decomposition',
  })
  const apply = defineOperator({
    name,
    attributes,
    types: (inputs, given) => {
      const found = types(inputs, given)
      if (found[0]!.dtype === 'f64' && given.precision !== 'f32')
        misuse(name, "precision 'f32' (the operands' own) for f64", `'${given.precision}'`, 'ERR_HEDDLE_DTYPE')
      return found
    },
    flops,
    decompose,
    vjp: ({ inputs, attributes: given, gradients: [g] }) => vjpOf([...inputs, g], given),
  })
  return (x, weights, given) => apply([x, ...weights].map(floating), given)[0]!
}

/** Half floats are read as f32. */
export const floating = (x: Sym): Sym => (x.dtype === 'f64' ? x : cast(x, 'f32'))

/** How a structured product is computed. */
export interface ChainOptions {
  /** As in `matmul`: `bf16` rounds every stage's operands and accumulates in f32. Default `f32`. */
  readonly precision?: Precision
}
