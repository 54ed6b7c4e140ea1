/** Orders that are functions of their seed alone, so that a run can be repeated and resumed anywhere. */
import { Pacer } from '../formats/byte_source.js'

/** The numbers 0 to `count` - 1 in an order drawn from (seed, stream): Fisher–Yates over counter-based randomness. */
export async function permutation(count: number, seed: number, stream: number): Promise<Uint32Array> {
  const order = Uint32Array.from({ length: count }, (_, index) => index)
  const key = mix(mix(seed >>> 0) ^ (stream >>> 0))
  const pacer = new Pacer(4096)
  for (let last = count - 1; last > 0; last--) {
    const other = Math.floor((mix(key ^ last) / 2 ** 32) * (last + 1))
    const value = order[last]!
    order[last] = order[other]!
    order[other] = value
    if (pacer.due()) await pacer.turn()
  }
  return order
}

/** A bijection of 32-bit words that flips about half of the bits for each bit of its input (C. Wellons, "lowbias32"). */
function mix(word: number): number {
  let x = (word + 0x9e3779b9) >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad)
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97)
  return (x ^ (x >>> 15)) >>> 0
}
