/** Update rules compose, as in optax: a rule turns gradients into updates and keeps its state in tensors. */
import { pause } from '../graph/pause.js'
import type { Sym } from '../graph/sym.js'
import { type Tensor, zeros } from '../tensor/tensor.js'

/** Run-time scalars of one update, `f32 []`. */
export interface UpdateContext {
  /** Counts from 1. */
  readonly step: Sym
  readonly learningRate: Sym
  /** Current values of the parameters. */
  readonly parameters: readonly Sym[]
}

/** A rule bound to its parameters, with its state. */
export interface TransformState {
  /** State tensors under stable names, for checkpoints. */
  readonly tensors: Readonly<Record<string, Tensor>>
  /**
   * Traces the rule: gradients in, updates out; writes its own state with `assign`. Asynchronous, so that the event loop
   * can turn between the hundreds of parameters of a model: see {@link mapParameters}.
   */
  readonly update: (gradients: readonly Sym[], context: UpdateContext) => Promise<readonly Sym[]>
}

/** A rule that turns gradients into updates. */
export interface GradientTransform {
  readonly name: string
  /** Base learning rate, where the rule has one. */
  readonly learningRate?: number
  /** What else decides its numbers; a run is only resumed with the same. */
  readonly config?: Readonly<Record<string, unknown>>
  /** The same rule with another decoupled weight decay, where the rule has one. */
  readonly withWeightDecay?: (weightDecay: number) => GradientTransform
  /** Allocates state for these parameters. */
  readonly init: (parameters: readonly Tensor[]) => Promise<TransformState>
}

/** Applies rules one after the other. */
export function chain(...transforms: readonly GradientTransform[]): GradientTransform {
  const rate = transforms.find(({ learningRate }) => learningRate !== undefined)?.learningRate
  const decaying = transforms.some(({ withWeightDecay }) => withWeightDecay)
  return {
    name: transforms.map(({ name }) => name).join('+'),
    ...(rate === undefined ? {} : { learningRate: rate }),
    config: Object.fromEntries(transforms.map(({ name, config }) => [name, config ?? {}])),
    ...(decaying && {
      withWeightDecay: (weightDecay) => chain(...transforms.map((each) => each.withWeightDecay?.(weightDecay) ?? each)),
    }),
    init: async (parameters) => {
      const states: TransformState[] = []
      for (const transform of transforms) states.push(await transform.init(parameters))
      const tensors = states.flatMap((state, i) =>
        Object.entries(state.tensors).map(([name, tensor]) => [`${i}.${name}`, tensor] as const),
      )
      return {
        tensors: Object.fromEntries(tensors),
        update: async (gradients, context) => {
          let updates = gradients
          for (const state of states) updates = await state.update(updates, context)
          return updates
        },
      }
    },
  }
}

/** What {@link wrapped} does with the updates of a rule. */
export interface UpdateWrapper {
  /** State tensors under stable names. */
  readonly tensors: Readonly<Record<string, Tensor>>
  /** Traces it; writes its own state with `assign`. */
  readonly update: (
    updates: readonly Sym[],
    gradients: readonly Sym[],
    context: UpdateContext,
  ) => Promise<readonly Sym[]>
}

/** A rule whose updates are changed before they are applied, by what may look at the values that they would give. */
export const wrapped = (
  inner: GradientTransform,
  name: string,
  config: Readonly<Record<string, unknown>>,
  init: (parameters: readonly Tensor[]) => Promise<UpdateWrapper>,
): GradientTransform => ({
  name: `${inner.name}+${name}`,
  ...(inner.learningRate === undefined ? {} : { learningRate: inner.learningRate }),
  config: { [inner.name]: inner.config ?? {}, [name]: config },
  init: async (parameters) => {
    const [state, own] = [await inner.init(parameters), await init(parameters)]
    const named = Object.entries(own.tensors).map(([key, value]) => [`${name}.${key}`, value] as const)
    return {
      tensors: { ...state.tensors, ...Object.fromEntries(named) },
      update: async (gradients, context) => own.update(await state.update(gradients, context), gradients, context),
    }
  },
})

/** `fn` of each parameter (or gradient), letting the event loop turn in between. */
export async function mapParameters<T, R>(list: readonly T[], fn: (value: T, index: number) => R): Promise<R[]> {
  const results: R[] = []
  for (const [index, value] of list.entries()) {
    results.push(fn(value, index))
    await pause()
  }
  return results
}

/** A tensor of zeros like each parameter. */
export const zerosLike = (parameters: readonly Tensor[]): Promise<Tensor[]> =>
  mapParameters(parameters, ({ shape }) => zeros(shape))

/** State tensors under names: `m.0`, `m.1`, … */
export const numbered = (prefix: string, list: readonly Tensor[]): Record<string, Tensor> =>
  Object.fromEntries(list.map((tensor, i) => [`${prefix}.${i}`, tensor]))
