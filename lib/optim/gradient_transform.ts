/** Update rules compose, as in optax: a rule turns gradients into updates and keeps its state in tensors. */
import type { Sym } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'

/** Run-time scalars of one update, `f32 []`. */
export interface UpdateContext {
  /** Counts from 1. */
  readonly step: Sym
  readonly learningRate: Sym
  /** Current values of the parameters. */
  readonly parameters: readonly Sym[]
}

export interface TransformState {
  /** State tensors under stable names, for checkpoints. */
  readonly tensors: Readonly<Record<string, Tensor>>
  /** Traces the rule: gradients in, updates out; writes its own state with `assign`. */
  readonly update: (gradients: readonly Sym[], context: UpdateContext) => readonly Sym[]
}

export interface GradientTransform {
  readonly name: string
  /** Base learning rate, where the rule has one. */
  readonly learningRate?: number
  /** Allocates state for these parameters. */
  readonly init: (parameters: readonly Tensor[]) => TransformState
}

/** Applies rules one after the other. */
export function chain(...transforms: readonly GradientTransform[]): GradientTransform {
  const rate = transforms.find(({ learningRate }) => learningRate !== undefined)?.learningRate
  return {
    name: transforms.map(({ name }) => name).join('+'),
    ...(rate === undefined ? {} : { learningRate: rate }),
    init: (parameters) => {
      const states = transforms.map((transform) => transform.init(parameters))
      const tensors = states.flatMap((state, i) =>
        Object.entries(state.tensors).map(([name, tensor]) => [`${i}.${name}`, tensor] as const),
      )
      return {
        tensors: Object.fromEntries(tensors),
        update: (gradients, context) => states.reduce((updates, state) => state.update(updates, context), gradients),
      }
    },
  }
}
