/** Functions of symbolic values as functions of tensors: a program that is traced, run once and freed. */

import type { Tensor } from '../tensor/tensor.js'
import { copy } from './ops/index.js'
import { type Computed, program, type RunOptions } from './program.js'
import { read, type Sym } from './sym.js'

/** What a traced function gives, computed off the event loop. */
export async function computed<O>(
  fn: (...inputs: Sym[]) => O | Promise<O>,
  inputs: readonly Tensor[] = [],
  options: RunOptions = {},
): Promise<Computed<O>> {
  const step = program(fn)
  try {
    return await step.run(inputs, options)
  } finally {
    step.dispose()
  }
}

/** A tensor of its own with the same contents: what comes from a file is read-only. */
export const copied = (original: Tensor): Promise<Tensor> => computed(() => copy(read(original)))
