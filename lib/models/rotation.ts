/** Angles of rotary positions by place and, where a checkpoint asks for it, by the length of the text. */
import { cast, cos, exp, greater, log, maximum, mul, select, sin, sub } from '../graph/ops/elementwise.js'
import { reshape } from '../graph/ops/reduce.js'
import { type RopeTable, ropeTable } from '../graph/ops/rope.js'
import { read, type Sym } from '../graph/sym.js'
import { tensor } from '../tensor/tensor.js'
import type { LengthDependence } from './causal_lm.js'
import type { LongTexts, Rotary } from './rope_scaling.js'

/** The texts of a call. */
export interface RotationInputs {
  /** `i32 [1 or b, t]` */
  readonly places: Sym
  /** Tokens of each text, `i32 [1 or b]`; read only where the rotation depends on them. */
  readonly lengths: Sym
  /** No text is longer than this. */
  readonly longest: number
}

/** The table for {@link rope}: each text turns as its length says, as transformers has it for that text alone. */
export function rotationTable(rotary: Rotary, inputs: RotationInputs): RopeTable {
  const { frequencies, scale, beyond } = rotary
  const { places, lengths, longest } = inputs
  if (!beyond || longest <= beyond.limit) return ropeTable(places, frequencies, scale)
  const perText = reshape(cast(lengths, 'f32'), [-1, 1, 1])
  if (beyond.kind === 'dynamic') return dynamicTable(frequencies, beyond, places, perText)
  const [short, long] = [frequencies, beyond.frequencies].map((each) => ropeTable(places, each, scale))
  const isLong = greater(perText, beyond.limit)
  return { cos: select(isLong, long!.cos, short!.cos), sin: select(isLong, long!.sin, short!.sin) }
}

function dynamicTable(
  frequencies: readonly number[],
  { limit, factor }: Extract<LongTexts, { kind: 'dynamic' }>,
  places: Sym,
  lengths: Sym,
): RopeTable {
  const pairs = frequencies.length
  const exponents = Array.from({ length: pairs }, (_, i) => (2 * i) / (2 * pairs - 2))
  const perPair = (values: readonly number[]): Sym => read(tensor(values, [1, 1, pairs]))
  const stretch = maximum(1, sub(mul(factor / limit, lengths), factor - 1))
  const turns = mul(perPair(frequencies), exp(mul(perPair(exponents.map((x) => -x)), log(stretch))))
  const angles = mul(reshape(cast(places, 'f32'), [...places.shape, 1]), turns)
  return { cos: cos(angles), sin: sin(angles) }
}

/** What caches of keys must know of a network's rotations. */
export function lengthDependenceOf(rotaries: readonly Rotary[]): LengthDependence | undefined {
  const [beyond] = rotaries.flatMap((rotary) => rotary.beyond ?? [])
  if (!beyond) return undefined
  const { kind, limit } = beyond
  return {
    regime: (length) => (length <= limit ? 0 : kind === 'longrope' ? 1 : length),
    renewsKeys: kind === 'longrope',
  }
}

/** Longest text of a model that was made for `positions`: dynamic scaling is for texts that are longer. */
export function longestText(positions: number, rotaries: readonly Rotary[]): number {
  const stretched = rotaries.flatMap(({ beyond }) =>
    beyond?.kind === 'dynamic' ? [Math.floor(beyond.factor * positions)] : [],
  )
  return Math.max(positions, ...stretched)
}
