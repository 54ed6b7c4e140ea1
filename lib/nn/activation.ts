/** Activation functions by the names that config.json uses for them. */
import { gelu, relu, silu, tanh } from '../graph/ops/elementwise.js'
import type { Sym } from '../graph/sym.js'

const geluTanh = (x: Sym): Sym => gelu(x, { approximate: 'tanh' })

/** By the names that transformers gives them. */
export const activations = {
  gelu: (x) => gelu(x),
  gelu_new: geluTanh,
  gelu_fast: geluTanh,
  gelu_pytorch_tanh: geluTanh,
  relu,
  silu,
  swish: silu,
  tanh,
} as const satisfies Readonly<Record<string, (x: Sym) => Sym>>

/** A name in {@link activations}. */
export type ActivationName = keyof typeof activations

/** The names, for config schemas. */
export const activationNames = Object.keys(activations) as [ActivationName, ...ActivationName[]]
