/** Counter-based random numbers (Philox; Salmon et al. 2011): the same seed gives the same numbers on any device. */
import { sameShape } from '../../tensor/dtype.js'
import { defineOperator, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { div, greaterEqual, mul } from './elementwise.js'

const declare = (name: string) =>
  defineOperator({
    name,
    attributes: { stream: 'i64', shape: 'i64[]' },
    types: ([seed], { shape }) => {
      if (seed!.dtype !== 'u32' || !sameShape(seed!.shape, [2])) misuse(name, 'a seed u32 [2]', typeText(seed))
      return [{ shape: shape as readonly number[], dtype: 'f32' }]
    },
    vjp: { none: 'random numbers depend on no input' },
    recompute: true,
  })

const uniformOf = declare('random_uniform')
const normalOf = declare('random_normal')

/** Uniform on [0, 1). `seed u32 [2]`; different streams of one seed are independent. */
export const randomUniform = (seed: Sym, stream: number, shape: readonly number[]): Sym =>
  uniformOf([seed], { stream, shape })[0]!

/** Standard normal. */
export const randomNormal = (seed: Sym, stream: number, shape: readonly number[]): Sym =>
  normalOf([seed], { stream, shape })[0]!

/** x with each element set to 0 with probability p, the others scaled by 1/(1 - p). */
export const dropout = (x: Sym, p: number, seed: Sym, stream: number): Sym =>
  mul(x, div(greaterEqual(randomUniform(seed, stream, x.shape), p), 1 - p))
