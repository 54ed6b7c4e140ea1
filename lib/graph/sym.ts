/** Symbolic values: what operators take and return while a function is traced into a program. They hold no data. */
import { AsyncLocalStorage } from 'node:async_hooks'
import { HeddleError } from '../errors.js'
import { type DType, sameShape, shapeText } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'

/** Attribute values of an operator; the operator's declaration says how each is encoded. */
export type AttributeValue = number | string | readonly number[] | readonly string[]
/** Attribute values of one operator application. */
export type Attributes = Readonly<Record<string, AttributeValue>>

/** Shape and dtype of a value. */
export interface SymType {
  readonly shape: readonly number[]
  readonly dtype: DType
}

/** One application of an operator. */
export interface Node {
  readonly id: number
  /** Name of a registered operator, or one of the leaves `input` and `bound`. */
  readonly op: string
  readonly inputs: readonly (Sym | undefined)[]
  readonly attributes: Attributes
  readonly outputs: readonly Sym[]
  readonly trace: Trace
  /** Module path that was current when the node was made, for error messages. */
  readonly scope: string
  /** Made while differentiating: the recompute pass decides by it what would have to be kept. */
  readonly backward: boolean
  /** The tensor of a `bound` leaf. */
  readonly tensor?: Tensor
}

/** A value inside a trace. */
export class Sym implements SymType {
  constructor(
    readonly node: Node,
    readonly index: number,
    readonly shape: readonly number[],
    readonly dtype: DType,
  ) {}

  /** Number of dimensions. */
  get rank(): number {
    return this.shape.length
  }
}

/** True for values of a program being traced, false for tensors. */
export const isSym = (value: Tensor | Sym): value is Sym => value instanceof Sym

/** The nodes of one program while it is being traced. */
export class Trace {
  readonly nodes: Node[] = []
  readonly inputs: Sym[] = []
  /** State written when the program runs: bound tensor → its new value. */
  readonly assignments = new Map<Tensor, Sym>()
  readonly #bound = new Map<Tensor, Sym>()
  #scope = ''
  backward = false

  static readonly #current = new AsyncLocalStorage<Trace>()

  /** The trace that the calling code runs in. @throws ERR_HEDDLE_ARGUMENT outside `program(...)`. */
  static current(place: string): Trace {
    const trace = Trace.#current.getStore()
    if (!trace)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place,
        expected: 'to be called inside the function given to program()',
        got: 'a call outside of any trace',
      })
    return trace
  }

  /** Runs `fn` with this trace current, also across its awaits. */
  run<T>(fn: () => T): T {
    return Trace.#current.run(this, fn)
  }

  /** Appends a node. */
  add(
    op: string,
    inputs: readonly (Sym | undefined)[],
    attributes: Attributes,
    types: readonly SymType[],
    tensor?: Tensor,
  ): Node {
    const outputs: Sym[] = []
    const node: Node = {
      id: this.nodes.length,
      op,
      inputs,
      attributes,
      outputs,
      trace: this,
      scope: this.#scope,
      backward: this.backward,
      ...(tensor ? { tensor } : {}),
    }
    for (const [index, { shape, dtype }] of types.entries()) outputs.push(new Sym(node, index, shape, dtype))
    this.nodes.push(node)
    return node
  }

  /** Appends an input of the program. */
  input(type: SymType): Sym {
    const sym = this.add('input', [], { index: this.inputs.length }, [type]).outputs[0]!
    this.inputs.push(sym)
    return sym
  }

  /** The current value of a tensor; after `assign` in the same trace, still the value from before the run. */
  read(tensor: Tensor): Sym {
    let sym = this.#bound.get(tensor)
    if (!sym) {
      // One that was freed, or never had numbers, is refused where it is read, and not where the program is compiled.
      void tensor.native
      sym = this.add('bound', [], {}, [tensor], tensor).outputs[0]!
      this.#bound.set(tensor, sym)
    }
    return sym
  }

  /** Makes `value` the tensor's state after the run. */
  assign(tensor: Tensor, value: Sym): void {
    if (!sameShape(tensor.shape, value.shape) || tensor.dtype !== value.dtype)
      throw new HeddleError('ERR_HEDDLE_SHAPE', {
        place: 'assign',
        expected: `${tensor.dtype} ${shapeText(tensor.shape)}`,
        got: `${value.dtype} ${shapeText(value.shape)}`,
      })
    this.read(tensor)
    this.assignments.set(tensor, value)
  }

  /** Runs `fn` with `name` appended to the module path that errors name; a path that starts with it takes its place. */
  within<T>(name: string, fn: () => T): T {
    const outer = this.#scope
    this.#scope = outer === '' || name.startsWith(`${outer}.`) ? name : `${outer}.${name}`
    try {
      return fn()
    } finally {
      this.#scope = outer
    }
  }

  get scope(): string {
    return this.#scope
  }
}

/** The current value of `tensor` as a symbolic value of the program being traced. */
export const read = (tensor: Tensor): Sym => Trace.current('read').read(tensor)

/** Runs `fn` as part of the module `name`, below the current one: errors name it, and `recompute` finds it. */
export const within = <T>(name: string, fn: () => T): T => Trace.current('within').within(name, fn)

/** Name of the scope of {@link recomputed}. */
export const recomputedScope = '(recomputed)'

/**
 * Runs `fn` as a part of the program of which the backward pass keeps nothing but what is handed on: it computes the rest
 * again, bit for bit. For what is large, and made of little.
 */
export const recomputed = <T>(fn: () => T): T => within(recomputedScope, fn)

/** Makes the program write `value` into `tensor` at the end of each run; reads in the same run see the old value. */
export const assign = (tensor: Tensor, value: Sym): void => Trace.current('assign').assign(tensor, value)
