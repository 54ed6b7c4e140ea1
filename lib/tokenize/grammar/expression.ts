/** Languages of bytes: what regular expressions and JSON schemas are turned into, and an automaton is made of. */

/** A set of byte strings. */
export type Expression =
  /** One byte, in one of the ranges. */
  | { readonly kind: 'byte'; readonly ranges: readonly Range[] }
  | { readonly kind: 'sequence'; readonly parts: readonly Expression[] }
  /** Any of the options; of none, nothing. */
  | { readonly kind: 'choice'; readonly options: readonly Expression[] }
  | { readonly kind: 'repeat'; readonly part: Expression; readonly least: number; readonly most: number }
  /** What the grammar's rule of that name stands for; may be recursive. */
  | { readonly kind: 'rule'; readonly name: string }

/** First and last, both included. */
export type Range = readonly [number, number]

/** An expression with the rules that it refers to. */
export interface Grammar {
  readonly root: Expression
  readonly rules: ReadonlyMap<string, Expression>
}

export const sequence = (...parts: readonly Expression[]): Expression => ({ kind: 'sequence', parts })
export const choice = (options: readonly Expression[]): Expression => ({ kind: 'choice', options })
export const rule = (name: string): Expression => ({ kind: 'rule', name })
export const repeat = (part: Expression, least: number, most = Number.POSITIVE_INFINITY): Expression =>
  least > most ? nothing : { kind: 'repeat', part, least, most }
export const optional = (part: Expression): Expression => repeat(part, 0, 1)
export const nothing = choice([])

const byte = (...ranges: readonly Range[]): Expression => ({ kind: 'byte', ranges })

/** The UTF-8 bytes of a text. */
export const literal = (text: string): Expression =>
  sequence(...[...new TextEncoder().encode(text)].map((each) => byte([each, each])))

/** Where the number of UTF-8 bytes changes; surrogates are left out. */
const sameLength: readonly Range[] = [
  [0, 0x7f],
  [0x80, 0x7ff],
  [0x800, 0xd7ff],
  [0xe000, 0xffff],
  [0x10000, 0x10ffff],
]

/** One character of the given ranges of code points, in UTF-8. */
export const characters = (ranges: readonly Range[]): Expression =>
  choice(
    ranges.flatMap(([low, high]) =>
      sameLength.flatMap(([from, to]) => {
        const [first, last] = [Math.max(low, from), Math.min(high, to)]
        return first > last ? [] : between(utf8(first), utf8(last), [0x80, 0xbf])
      }),
    ),
  )

const utf8 = (codePoint: number): readonly number[] => [...new TextEncoder().encode(String.fromCodePoint(codePoint))]

/** Decimal numbers from `low` to `high`, with at most 15 digits behind the point. */
export function decimals(low: number, high: number): Expression {
  if (low > high) return nothing
  if (low < 0) {
    const negative = sequence(literal('-'), decimals(Math.max(0, -high), -low))
    return high < 0 ? negative : choice([negative, decimals(0, high)])
  }
  const [first, last] = [Math.ceil(low), Math.floor(high)]
  const fraction = sequence(literal('.'), repeat(byte([0x30, 0x39]), 1, 15))
  return choice([sequence(integers(first, last - 1), optional(fraction)), first <= last ? literal(`${last}`) : nothing])
}

/** Decimal integers from `low` to `high`, without leading zeros. */
export function integers(low: number, high: number): Expression {
  if (low > high) return nothing
  if (low < 0) {
    const negative = sequence(literal('-'), integers(Math.max(1, -high), -low))
    return high < 0 ? negative : choice([negative, integers(0, high)])
  }
  const lengths = Array.from({ length: `${high}`.length - `${low}`.length + 1 }, (_, i) => i + `${low}`.length)
  return choice(
    lengths.flatMap((length) => {
      const first = length === `${low}`.length ? `${low}` : `1${'0'.repeat(length - 1)}`
      const last = length === `${high}`.length ? `${high}` : '9'.repeat(length)
      return between(codesOf(first), codesOf(last), [0x30, 0x39])
    }),
  )
}

const codesOf = (digits: string): readonly number[] => [...digits].map((digit) => digit.charCodeAt(0))

/** Strings of equal length from `low` to `high` in lexical order, whose bytes after the first are within `digits`. */
function between(low: readonly number[], high: readonly number[], digits: Range): Expression[] {
  const [[first, ...lowRest], [last, ...highRest]] = [low as [number], high as [number]]
  if (lowRest.length === 0) return [byte([first, last])]
  const [least, most] = [lowRest.map(() => digits[0]), lowRest.map(() => digits[1])]
  const after = (start: number, end: number, from: readonly number[], to: readonly number[]): Expression =>
    sequence(byte([start, end]), choice(between(from, to, digits)))
  if (first === last) return [after(first, last, lowRest, highRest)]
  const partialStart = lowRest.some((each) => each !== digits[0])
  const partialEnd = highRest.some((each) => each !== digits[1])
  const [start, end] = [first + Number(partialStart), last - Number(partialEnd)]
  return [
    ...(partialStart ? [after(first, first, lowRest, most)] : []),
    ...(start <= end ? [after(start, end, least, most)] : []),
    ...(partialEnd ? [after(last, last, least, highRest)] : []),
  ]
}
