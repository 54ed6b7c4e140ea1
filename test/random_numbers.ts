import { elementCount } from '../lib/tensor/dtype.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'

/** `count` seeded numbers in [-1, 1) for tests (mulberry32). */
export function randomNumbers(count: number, seed: number): Float32Array {
  let state = (seed * 0x9e3779b9) >>> 0
  return Float32Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) >>> 0
    let word = Math.imul(state ^ (state >>> 15), state | 1)
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61)
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 31 - 1
  })
}

/** A tensor of {@link randomNumbers}. */
export const randomTensor = (shape: readonly number[], seed: number): Tensor =>
  tensor(randomNumbers(elementCount(shape), seed), shape)

/** A tensor of these numbers, cut to bf16 if wanted. */
export function tensorOf(values: Float32Array, shape: readonly number[], dtype: 'f32' | 'bf16'): Tensor {
  if (dtype === 'f32') return tensor(values, shape)
  const halves = new Uint16Array(values.buffer, values.byteOffset, 2 * values.length)
  return tensor(
    halves.filter((_, i) => i % 2 === 1),
    shape,
  )
}
