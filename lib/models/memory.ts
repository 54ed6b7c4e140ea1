/** Whether a model's weights fit into memory, asked before anything is allocated for them. */
import { HeddleError } from '../errors.js'
import type { Checkpoint } from '../formats/checkpoint.js'
import type { Precision } from '../graph/ops/matmul.js'
import { availableMemory } from '../machine.js'
import { elementCount } from '../tensor/dtype.js'

/** Bytes that the matrices take while the model is used, at the least; vectors are left out. */
export function weightBytes(tensors: Checkpoint['tensors'], precision: Precision): number {
  const matrices = [...tensors.values()].filter(({ shape }) => shape.length > 1)
  return matrices.reduce((sum, { shape, byteLength }) => {
    if (precision === 'stored') return sum + byteLength
    return sum + elementCount(shape) * (precision === 'bf16' ? 2 : 4)
  }, 0)
}

/**
 * Refuses a model that cannot fit.
 * @param limit bytes that it may take; default: what the system and this process's control group have left
 * @throws ERR_HEDDLE_OOM with both numbers of bytes
 */
export async function expectRoom(
  { path, tensors }: Pick<Checkpoint, 'path' | 'tensors'>,
  precision: Precision,
  limit?: number,
): Promise<void> {
  const needed = weightBytes(tensors, precision)
  const available = limit ?? (await availableMemory())
  if (needed <= available) return
  throw new HeddleError('ERR_HEDDLE_OOM', {
    place: path,
    expected: `${needed} bytes of memory for its weights in ${precision}`,
    got: `${available} bytes ${limit === undefined ? 'available' : 'allowed by memoryLimit'}`,
    hint: `${precision === 'f32' ? "precision: 'bf16' takes half. " : ''}memoryLimit overrides what is available`,
  })
}
