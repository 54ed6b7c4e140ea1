/** Seeds as the random operators take them. */
import { type Tensor, tensor } from './tensor.js'

/** The two words of a 53-bit seed, the low one first. */
export const seedWords = (seed: number): readonly [number, number] => [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0]

/** {@link seedWords} as `u32 [2]`. */
export const seedTensor = (seed: number): Tensor => tensor(Uint32Array.from(seedWords(seed)), [2])
