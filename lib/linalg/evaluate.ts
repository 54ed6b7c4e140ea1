/** Functions of symbolic values as functions of tensors: the one way from a tensor to its factors. */
import { type Computed, program, type RunOptions } from '../graph/program.js'
import { Sym } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'

/** What runs on tensors takes beside its own options. */
export type { RunOptions }

/** Runs a traced function once, off the event loop. */
export async function evaluate<O>(
  fn: (...inputs: Sym[]) => O | Promise<O>,
  inputs: readonly Tensor[],
  options: RunOptions = {},
): Promise<Computed<O>> {
  const step = program(fn)
  try {
    return await step.run(inputs, options)
  } finally {
    step.dispose()
  }
}

/** True for values of a program being traced, false for tensors. */
export const isSym = (value: Tensor | Sym): value is Sym => value instanceof Sym
