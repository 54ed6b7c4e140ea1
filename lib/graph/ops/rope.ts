/** Rotary position embedding (Su et al. 2021, arXiv 2104.09864), pairs (i, i + d/2) as Hugging Face's Llama has them. */
import { shapeText } from '../../tensor/dtype.js'
import { defineOperator, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { add, cast, mul, sub } from './elementwise.js'
import { concat, slice } from './index.js'
import { reshape } from './reduce.js'

const tableOf = defineOperator({
  name: 'rope_table',
  attributes: { inverse_frequencies: 'f64[]', scale: 'f64' },
  types: ([positions], { inverse_frequencies }) => {
    if (positions!.dtype !== 'i32') misuse('rope_table', 'i32 positions', typeText(positions), 'ERR_HEDDLE_DTYPE')
    const shape = [...positions!.shape, (inverse_frequencies as readonly number[]).length]
    return [
      { shape, dtype: 'f32' },
      { shape, dtype: 'f32' },
    ]
  },
  vjp: { none: 'positions are integers' },
})

/** Rotations for {@link rope}, made by {@link ropeTable}. */
export interface RopeTable {
  /** `[..., d/2]` */
  readonly cos: Sym
  /** `[..., d/2]` */
  readonly sin: Sym
}

/** cos and sin of position · inverse frequency, times `scale`, for `positions i32 [...]`. */
export function ropeTable(positions: Sym, inverseFrequencies: readonly number[], scale = 1): RopeTable {
  const [cos, sin] = tableOf([positions], { inverse_frequencies: inverseFrequencies, scale })
  return { cos: cos!, sin: sin! }
}

const ropeOf = defineOperator({
  name: 'rope',
  attributes: { inverse: 'i64' },
  types: ([x, cos]) => {
    const [b, t, , d] = x!.shape
    if (
      x!.rank !== 4 ||
      cos!.rank !== 3 ||
      cos!.shape[1] !== t ||
      !(cos!.shape[2]! * 2 <= d!) ||
      ![1, b].includes(cos!.shape[0]!)
    )
      misuse('rope', `a table [${b}, ${t}, at most ${d! / 2}]`, `${shapeText(cos!.shape)} for x ${shapeText(x!.shape)}`)
    return [{ shape: x!.shape, dtype: 'f32' }]
  },
  inPlace: [[0, 0]],
  decompose: ([x, cosines, sines], { inverse }) => {
    const half = cosines!.shape[2]!
    const perHead = (table: Sym): Sym => {
      const [b, t, d] = table.shape
      return reshape(cast(table, x!.dtype), [b!, t!, 1, d!])
    }
    const [cos, sin] = [perHead(cosines!), perHead(sines!)]
    const left = slice(x!, [{ axis: 3, start: 0, end: half }])
    const right = slice(x!, [{ axis: 3, start: half, end: 2 * half }])
    const [less, more] = inverse === 1 ? [add, sub] : [sub, add]
    const turned = [less(mul(left, cos), mul(right, sin)), more(mul(right, cos), mul(left, sin))]
    const rest = slice(x!, [{ axis: 3, start: 2 * half, end: x!.shape[3]! }])
    return [concat(rest.shape[3] === 0 ? turned : [...turned, rest], 3)]
  },
  vjp: ({ inputs: [, cos, sin], attributes: { inverse }, gradients: [g] }) => [
    ropeOf([g, cos, sin], { inverse: 1 - (inverse as number) })[0],
    undefined,
    undefined,
  ],
})

/** Rotates pairs (i, i + r) of `x [b, t, h, d]` by the angles of a table with r columns; elements from 2 r on stay. */
export const rope = (x: Sym, { cos, sin }: RopeTable): Sym => ropeOf([x, cos, sin], { inverse: 0 })[0]!
