/** What parameters begin with. */
import { broadcastTo, constant, mul, sub } from '../graph/ops/elementwise.js'
import { randomNormal, randomUniform } from '../graph/ops/random.js'
import type { Sym } from '../graph/sym.js'
import type { InitContext, ParameterDeclaration } from './parametrization.js'

/** A value of this shape, traced. */
export type InitialValue = (shape: readonly number[], context: Pick<InitContext, 'seed' | 'stream'>) => Sym

/** One number everywhere. */
export const filled =
  (value: number): InitialValue =>
  (shape) =>
    broadcastTo(constant(value), shape)

export const zero = filled(0)

/** Uniform on ±bound. */
export const uniform =
  (bound: number): InitialValue =>
  (shape, { seed, stream }) =>
    mul(sub(randomUniform(seed, stream, shape), 0.5), 2 * bound)

export const normal =
  (deviation: number): InitialValue =>
  (shape, { seed, stream }) =>
    mul(randomNormal(seed, stream, shape), deviation)

/** A parameter that begins so. */
export const declared = (shape: readonly number[], value: InitialValue): ParameterDeclaration => ({
  shape,
  init: (context) => value(shape, context),
})
