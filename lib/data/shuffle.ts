/**
 * Orders that are functions of their seed alone and take no memory, so that a run of any size can be repeated and
 * resumed anywhere: a Feistel network is a bijection whatever its rounds compute (Luby and Rackoff 1988), and walking
 * along its cycles until a number falls into the range makes it one of any range (Black and Rogaway 2002).
 */
import { Pacer } from '../formats/byte_source.js'

/** An order of the numbers 0 to count - 1. */
export interface Order {
  readonly count: number
  /** The number at a position. */
  at(position: number): number
  /** The position of a number. */
  positionOf(value: number): number
}

const rounds = 8

/** The order that (seed, stream) draws; `count` up to 2^52. */
export function shuffledOrder(count: number, seed: number, stream: number): Order {
  const bits = Math.max(1, Math.ceil(Math.log2(Math.max(2, count)) / 2))
  const half = 2 ** bits
  const start = mix(mix(seed >>> 0) ^ (stream >>> 0))
  const keys = Array.from({ length: rounds }, (_, round) => mix(start + round))
  const scramble = (value: number, key: number): number => mix(mix(value ^ key) + key) >>> (32 - bits)
  const forward = (value: number): number => {
    let [left, right] = [Math.floor(value / half), value % half]
    for (const key of keys) [left, right] = [right, (left ^ scramble(right, key)) >>> 0]
    return left * half + right
  }
  const backward = (value: number): number => {
    let [left, right] = [Math.floor(value / half), value % half]
    for (let round = rounds - 1; round >= 0; round--)
      [left, right] = [(right ^ scramble(left, keys[round]!)) >>> 0, left]
    return left * half + right
  }
  return {
    count,
    at: (position) => walk(position, forward, count),
    positionOf: (value) => walk(value, backward, count),
  }
}

/** A whole {@link shuffledOrder} at once, for examples that are in memory anyway. */
export async function permutation(count: number, seed: number, stream: number): Promise<Uint32Array> {
  const order = shuffledOrder(count, seed, stream)
  const pacer = new Pacer()
  const numbers = new Uint32Array(count)
  for (let position = 0; position < count; position++) {
    numbers[position] = order.at(position)
    if (pacer.due()) await pacer.turn()
  }
  return numbers
}

/** The numbers as they are. */
export const naturalOrder = (count: number): Order => ({
  count,
  at: (position) => position,
  positionOf: (value) => value,
})

/** At most a few steps: the network's range is less than four times the order's. */
function walk(from: number, step: (value: number) => number, count: number): number {
  let value = step(from)
  while (value >= count) value = step(value)
  return value
}

/** A bijection of 32-bit words that flips about half of the bits for each bit of its input (C. Wellons, "lowbias32"). */
function mix(word: number): number {
  let x = (word + 0x9e3779b9) >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad)
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97)
  return (x ^ (x >>> 15)) >>> 0
}
