/** What products with chains of block-wise stages share: an operator, the fused gradient of all its operands, f64. */
import { elementCount } from '../../tensor/dtype.js'
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
  return (x, weights, given) => {
    const operands = [x, ...weights].map(floating)
    if (operands[0]!.dtype !== 'f32' || !hasLargeBlocks(weights, given)) return apply(operands, given)[0]!
    types(operands, given)
    return decompose(operands, given)[0]!
  }
}

/**
 * Entries of the smallest block from which on batched products are faster than the fused kernel, which saves passes over x
 * but knows no bf16 arithmetic. Measured on one AVX-512 core, fused / batched ms of a product and of a step: 2048 rows
 * through 768 × 192 and 768 × 768, f32 129 / 131 and 347 / 277, bf16 122 / 75 and 356 / 186; 1024 rows through 256 × 256
 * twice, f32 11.8 / 12.8 and 34 / 36, bf16 11.6 / 10.4 and 34 / 27; through 64 × 64, bf16 3.5 / 4.0 and 10.1 / 11.7.
 */
const largeBlock = { f32: 1 << 17, bf16: 1 << 14 } as const

function hasLargeBlocks(weights: readonly Sym[], { precision }: Attributes): boolean {
  const least = largeBlock[precision === 'f32' ? 'f32' : 'bf16']
  return weights.every(({ shape }) => elementCount(shape.slice(-2)) >= least)
}

/** Half floats are read as f32. */
export const floating = (x: Sym): Sym => (x.dtype === 'f64' ? x : cast(x, 'f32'))

/** How a structured product is computed. */
export interface ChainOptions {
  /** As in `matmul`: `bf16` rounds every stage's operands and accumulates in f32. Default `f32`. */
  readonly precision?: Precision
}
