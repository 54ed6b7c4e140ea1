/** Operands of the cases of `npm run bench -- cuda`: what they hold, beside dtype and shape. */
import { type DType, dtypeSize, elementCount } from '../../lib/tensor/dtype.js'
import { randomNumbers } from '../../test/random_numbers.js'
import type { Operand } from '../../test/support/kernel_calls.js'

/** An operand with contents that the operator takes. */
export interface CaseOperand extends Operand {
  /** Element i of so many; default: random numbers in [-1, 1). */
  readonly fill?: (i: number, count: number) => number
}

/** An f32 operand. */
export const f32 = (...shape: readonly number[]): CaseOperand => ({ dtype: 'f32', shape })
/** A bf16 operand. */
export const bf16 = (...shape: readonly number[]): CaseOperand => ({ dtype: 'bf16', shape })
/** An i32 operand of zeros. */
export const i32 = (...shape: readonly number[]): CaseOperand => ({ dtype: 'i32', shape, fill: () => 0 })
/** A u32 operand: words of a random state, bits of a mask. */
export const u32 = (...shape: readonly number[]): CaseOperand => ({
  dtype: 'u32',
  shape,
  fill: (i) => Math.imul(i + 1, 0x9e3779b9) >>> 0,
})

/** Indices below a limit, all over the place. */
export const indices = (limit: number, ...shape: readonly number[]): CaseOperand => ({
  ...i32(...shape),
  fill: (i) => (Math.imul(i + 1, 0x9e3779b1) >>> 0) % limit,
})

/** The numbers from 0 on, or their multiples, from `first` on. */
export const counting = (count: number, step = 1, first = 0): CaseOperand => ({
  ...i32(count),
  fill: (i) => first + i * step,
})

/** A matrix, or a batch of them, whose diagonal weighs more than all else in its rows. */
export const dominated = (...shape: readonly number[]): CaseOperand => {
  const n = shape.at(-1)!
  return { ...f32(...shape), fill: (i) => (Math.floor(i / n) % n === i % n ? 2 : ((i % 17) - 8) / (8 * n)) }
}

const drawn = randomNumbers(1 << 16, 1)

/** An operand's bytes. */
export function contents({ dtype, shape, fill }: CaseOperand): Uint8Array {
  const count = elementCount(shape)
  const bytes = new Uint8Array(count * dtypeSize(dtype))
  const at = fill ?? ((i: number) => drawn[i % drawn.length]!)
  if (dtype === 'bf16') {
    const [wide, target] = [new Float32Array(1), new Uint16Array(bytes.buffer)]
    const bits = new Uint32Array(wide.buffer)
    for (let i = 0; i < count; i += 1) {
      wide[0] = at(i, count)
      target[i] = bits[0]! >>> 16
    }
    return bytes
  }
  const target = arrayOf(dtype, bytes.buffer)
  for (let i = 0; i < count; i += 1) target[i] = at(i, count)
  return bytes
}

function arrayOf(
  dtype: DType,
  buffer: ArrayBuffer,
): Float32Array | Float64Array | Int32Array | Uint32Array | Uint8Array {
  if (dtype === 'f64') return new Float64Array(buffer)
  if (dtype === 'i32') return new Int32Array(buffer)
  if (dtype === 'u32') return new Uint32Array(buffer)
  return dtype === 'u8' ? new Uint8Array(buffer) : new Float32Array(buffer)
}
