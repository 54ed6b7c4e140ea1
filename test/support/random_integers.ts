import { randomNumbers } from '../random_numbers.js'

/** Seeded integers for tests: each call gives one from 0 to below `below`. */
export function randomIntegers(seed: number): (below: number) => number {
  let count = 0
  return (below) => {
    count += 1
    return Math.floor(((randomNumbers(1, seed * 7919 + count)[0]! + 1) / 2) * below)
  }
}
