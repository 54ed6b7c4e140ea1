/** The Walsh–Hadamard transform. */
import { defineOperator, floatType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { mul } from './elementwise.js'

const transform = defineOperator({
  name: 'walsh_hadamard',
  types: ([x]) => {
    const n = x?.shape.at(-1) ?? 0
    if (n < 1 || !Number.isInteger(Math.log2(n))) misuse('walsh_hadamard', 'rows of 2^k elements', typeText(x))
    return [{ shape: x!.shape, dtype: floatType('walsh_hadamard', [x]) }]
  },
  inPlace: [[0, 0]],
  // H is symmetric.
  vjp: ({ gradients: [g] }) => [transform([g])[0]],
  flops: ([x]) => x!.shape.reduce((a, b) => a * b, 1) * Math.log2(x!.shape.at(-1)!),
})

/** Options of {@link walshHadamard}. */
export interface WalshHadamardOptions {
  /** Divide by √n, which makes the transform orthogonal and its own inverse. Default true. */
  readonly normalized?: boolean
}

/**
 * H x / √n along the last axis of `x [..., n]`, n a power of two, in n log₂ n additions. H is Sylvester's matrix:
 * H[i, j] = (−1)^(number of bits that i and j share). Self-adjoint.
 * @throws ERR_HEDDLE_SHAPE unless n is a power of two
 */
export function walshHadamard(x: Sym, { normalized = true }: WalshHadamardOptions = {}): Sym {
  const y = transform([x])[0]!
  return normalized ? mul(y, 1 / Math.sqrt(x.shape.at(-1)!)) : y
}
