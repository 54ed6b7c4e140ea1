/** The registry of operators. Each is declared once: shape rule, attributes, gradient; its kernel has the same name. */
import { HeddleError, type HeddleErrorCode } from '../errors.js'
import { type DType, shapeText } from '../tensor/dtype.js'
import { type Attributes, Sym, type SymType, Trace } from './sym.js'

/** How an attribute is encoded in an instruction. */
export type AttributeType = 'i64' | 'f64' | 'string' | 'i64[]' | 'f64[]' | 'string[]'

/** What a {@link Vjp} can use. */
export interface VjpContext {
  readonly inputs: readonly (Sym | undefined)[]
  readonly outputs: readonly Sym[]
  readonly attributes: Attributes
  /** Cotangent of each output; undefined where nothing depends on it. */
  readonly gradients: readonly (Sym | undefined)[]
  /** Which inputs a gradient is asked for. */
  readonly wanted: readonly boolean[]
}

/** Cotangents of the inputs from those of the outputs, written with other operators. */
export type Vjp = (context: VjpContext) => readonly (Sym | undefined)[]

/** Outputs of an operator from its inputs, written with simpler operators; undefined where an operand is left out. */
export type Decomposition = (
  inputs: readonly (Sym | undefined)[],
  attributes: Attributes,
) => readonly (Sym | undefined)[]

/** Floating-point operations from the types of operands. */
export type Flops = (
  inputs: readonly (SymType | undefined)[],
  outputs: readonly (SymType | undefined)[],
  attributes: Attributes,
) => number

/** An operator, declared once; its CPU kernel has the same name. */
export interface OperatorDefinition {
  readonly name: string
  readonly attributes?: Readonly<Record<string, AttributeType>>
  /** Output types from input types; throws ERR_HEDDLE_SHAPE or ERR_HEDDLE_DTYPE on misuse. */
  readonly types: (inputs: readonly (Sym | undefined)[], attributes: Attributes) => readonly SymType[]
  /**
   * Written with other operators, for a cotangent of output 0 at least; or `decomposition`: that of {@link decompose};
   * or why the operator has no gradient.
   */
  readonly vjp: Vjp | 'decomposition' | { readonly none: string }
  /**
   * What the operator means, said with simpler ones. It stands in for the kernel on f64 operands, gives the derivative
   * where `vjp` does not (cotangents of outputs beside the first, second derivatives), and is what the kernel is tested
   * against.
   */
  readonly decompose?: Decomposition
  /**
   * `elementwise`: fused into instruction `elementwise`. `alias`: same bytes, another shape, no instruction.
   * `kernel` (default): an instruction of its own.
   */
  readonly kind?: 'elementwise' | 'alias' | 'kernel'
  /** (input, output) pairs that the kernel may compute in place. */
  readonly inPlace?: readonly (readonly [number, number])[]
  /** The kernel writes through input 0, which must be a bound tensor, and output 0 is that tensor. */
  readonly mutates?: boolean
  /** Outputs that may be left out when nobody reads them. */
  readonly optionalOutputs?: readonly number[]
  /** Floating-point operations of one application; default: one per element read or written. */
  readonly flops?: Flops
  /** Cheap enough to be computed again in the backward pass instead of being kept. Elementwise operators always are. */
  readonly recompute?: boolean
}

const registry = new Map<string, OperatorDefinition>()

/** Every registered operator, by name. */
export const operators: ReadonlyMap<string, OperatorDefinition> = registry

/** Declares an operator and returns the function that applies it and gives all outputs. */
export function defineOperator(
  definition: OperatorDefinition,
): (inputs: readonly (Sym | undefined)[], attributes?: Attributes) => readonly Sym[] {
  if (registry.has(definition.name)) throw new Error(`operator ${definition.name} is declared twice`)
  registry.set(definition.name, definition)
  return (inputs, attributes = {}) => {
    const trace = traceOf(definition.name, inputs)
    const types = definition.types(inputs, attributes)
    if (definition.decompose && inputs.some((input) => input?.dtype === 'f64'))
      return definition.decompose(inputs, attributes) as readonly Sym[]
    return trace.add(definition.name, inputs, attributes, types).outputs
  }
}

export function operatorOf(name: string): OperatorDefinition {
  const definition = registry.get(name)
  if (!definition) throw new Error(`unknown operator ${name}`)
  return definition
}

/** Reports that an operator was given what it cannot take, naming it and the module it stands in. */
export function misuse(op: string, expected: string, got: string, code: HeddleErrorCode = 'ERR_HEDDLE_SHAPE'): never {
  throw new HeddleError(code, { place: placeOf(op), expected, got })
}

/**
 * The dtype that floating operands are computed in: f64 if they are f64, else f32 (bf16 and f16 are read as f32).
 * Integers go with either.
 * @throws ERR_HEDDLE_DTYPE when f64 meets another floating type
 */
export function floatType(op: string, operands: readonly (Sym | undefined)[]): 'f32' | 'f64' {
  const floats = operands.filter((x) => x !== undefined && !integerTypes.includes(x.dtype))
  const wide = floats.filter((x) => x?.dtype === 'f64').length
  if (wide !== 0 && wide !== floats.length)
    misuse(op, 'all operands f64 or none', operands.map(typeText).join(' and '), 'ERR_HEDDLE_DTYPE')
  return wide === 0 ? 'f32' : 'f64'
}

const integerTypes: readonly DType[] = ['i32', 'i64', 'u8', 'u32']

/** The dtype that a gradient of x has: x's own if it is f64, else f32. */
export const gradientType = (x: SymType): 'f32' | 'f64' => (x.dtype === 'f64' ? 'f64' : 'f32')

/** "f32 [2, 3]" for messages. */
export const typeText = (type: SymType | undefined): string =>
  type ? `${type.dtype} ${shapeText(type.shape)}` : 'nothing'

function placeOf(op: string): string {
  const scope = Trace.current(op).scope
  return scope ? `${scope}: ${op}` : op
}

function traceOf(op: string, inputs: readonly (Sym | undefined)[]): Trace {
  const trace = inputs.find((input) => input !== undefined)?.node.trace ?? Trace.current(op)
  for (const input of inputs)
    if (input !== undefined && (!(input instanceof Sym) || input.node.trace !== trace))
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: op,
        expected: 'symbolic values of the same trace',
        got: input instanceof Sym ? 'one from another program' : `a ${typeof input}`,
        hint: 'Use read(tensor) to bring a Tensor into a program.',
      })
  return trace
}
