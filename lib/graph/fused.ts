/** Instructions that no one writes but the passes: their attributes, and what their kernels may compute in place. */
import type { AttributeType } from './operator.js'

export interface FusedInstruction {
  readonly attributes: Readonly<Record<string, AttributeType>>
  /** (input, output) pairs that may share memory; `alike`: any of equal shape and dtype. */
  readonly inPlace: readonly (readonly [number, number])[] | 'alike'
}

export const fusedInstructions: ReadonlyMap<string, FusedInstruction> = new Map([
  [
    'elementwise',
    { attributes: { ops: 'string[]', operands: 'i64[]', constants: 'f64[]', results: 'i64[]' }, inPlace: 'alike' },
  ],
  [
    'low_rank_matmul',
    {
      attributes: {
        transpose_b: 'i64',
        transpose_u: 'i64',
        transpose_v: 'i64',
        alpha: 'f64',
        alpha_z: 'f64',
        precision: 'string',
      },
      inPlace: [[4, 0]],
    },
  ],
])
