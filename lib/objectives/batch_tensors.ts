/** A batch on its way into a program: arrays to tensors outside, values to names inside. */
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import type { BatchArray, Objective, Syms } from './objective.js'

/** The batch's tensors in the order of the objective's inputs. */
export const batchTensors = <N extends Network, B>(objective: Objective<N, B>, batch: B): Tensor[] =>
  arrayTensors(objective, objective.arrays(batch))

/** The same of a batch's arrays. */
export const arrayTensors = (
  { inputs }: Pick<Objective, 'inputs'>,
  arrays: Readonly<Record<string, BatchArray>>,
): Tensor[] => inputs.map((name) => tensor(arrays[name]!.data, arrays[name]!.shape))

/** The traced inputs by the objective's names for them. */
export const namedInputs = ({ inputs }: Pick<Objective, 'inputs'>, arrays: readonly Sym[]): Syms =>
  Object.fromEntries(inputs.map((name, i) => [name, arrays[i]!]))
