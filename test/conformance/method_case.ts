/** What a method's file in cases/ says, so that 120-adapter-conformance can put it through the cases of all methods. */
import type { InitialChange, Parametrization } from '../../lib/adapters/parametrization.js'

/** A method under test. The configs are small: the models have 64 to 576 channels. */
export interface MethodCase {
  /** Name in the registry. */
  readonly method: string
  /** What distinguishes several cases of one method. */
  readonly variant?: string
  /** Fields of the config on every model, without `target_modules`. */
  readonly config: Readonly<Record<string, unknown>>
  /** Sites on the Llama models; default q_proj and down_proj, of the first two layers. */
  readonly targets?: readonly string[]
  /** Sites on MiniLM (BERT); default query and output.dense. */
  readonly encoderTargets?: readonly string[]
  /** Trainable numbers with `config` on q_proj `[64, 64]` and down_proj `[64, 96]` of both layers of tiny-llama-untied. */
  readonly parameterCount: number
  /** Trainable numbers of one site, as the paper or the sheet counts them. */
  readonly counts: readonly {
    readonly config: Readonly<Record<string, unknown>>
    /** [out, in] */
    readonly shape: readonly [number, number]
    readonly parameters: number
  }[]
  /** Configs that are refused, and what the message says. */
  readonly refused: readonly { readonly config: Readonly<Record<string, unknown>>; readonly message: RegExp }[]
  /** A kind of site that the method cannot act at, by a module of tiny-llama; default `norm`. */
  readonly unsuited?: readonly string[]
  /** Where it is not the method's own {@link ParametrizationType.initialChange}. */
  readonly initialChange?: InitialChange
  /** Why an adapter of this method cannot be merged, where that is so. */
  readonly neverMerges?: RegExp
  /** Parts of the output are constants of differentiation (DoRA's norm): gradients are no finite differences. */
  readonly hasConstants?: boolean
  /** Learning rate at which 30 AdamW steps lower the loss of a tiny model; default 1e-2. */
  readonly learningRate?: number
  /** Size of the noise that makes the adapter do something; default 0.1. */
  readonly noise?: number
  /** For what the registry's `create` does not make of a config, e.g. since it is an option of another method. */
  readonly make?: (config: Readonly<Record<string, unknown>>) => Parametrization
}
