/** Instructions that no one writes but the passes: their attributes, and what their kernels may compute in place. */
import { elementCount } from '../tensor/dtype.js'
import type { AttributeType, Flops } from './operator.js'

export interface FusedInstruction {
  readonly attributes: Readonly<Record<string, AttributeType>>
  /** (input, output) pairs that may share memory; `alike`: any of equal shape and dtype. */
  readonly inPlace: readonly (readonly [number, number])[] | 'alike'
  readonly flops: Flops
}

export const fusedInstructions: ReadonlyMap<string, FusedInstruction> = new Map<string, FusedInstruction>([
  [
    'elementwise',
    {
      attributes: { ops: 'string[]', operands: 'i64[]', constants: 'f64[]', results: 'i64[]' },
      inPlace: 'alike',
      flops: (_, [y], { ops }) => elementCount(y!.shape) * (ops as readonly string[]).length,
    },
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
      flops: ([a], [y, z]) => {
        const [rows, depth] = a!.shape as [number, number]
        return 2 * rows * (depth * y!.shape[1]! + z!.shape[1]! * (depth + y!.shape[1]!))
      },
    },
  ],
])
