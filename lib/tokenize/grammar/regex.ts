/**
 * Regular expressions as expressions of bytes: literals, `.`, classes, groups, alternatives and quantifiers. What looks
 * around or back (assertions, backreferences) is refused.
 */
import { HeddleError } from '../../errors.js'
import { characters, choice, type Expression, type Range, repeat, sequence } from './expression.js'

/** How one character of a set of code points is written. */
export type Spelling = (ranges: readonly Range[]) => Expression

const maxRepeats = 10_000
const lastCodePoint = 0x10ffff
const digits: readonly Range[] = [[0x30, 0x39]]
const words: readonly Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
]
const spaces: readonly Range[] = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
]
const anything: readonly Range[] = [[0, lastCodePoint]]
const exceptLineEnds = complement([
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
])
const classes: Readonly<Record<string, readonly Range[]>> = {
  d: digits,
  D: complement(digits),
  w: words,
  W: complement(words),
  s: spaces,
  S: complement(spaces),
}
const controls: Readonly<Record<string, number>> = { t: 9, n: 10, v: 11, f: 12, r: 13, '0': 0 }

/**
 * Texts that match the pattern.
 * @param whole the pattern has to match from the first to the last character, as if it had anchors
 * @throws ERR_HEDDLE_ARGUMENT for what is not supported
 */
export function regexExpression(
  pattern: string,
  { whole, spelling = characters, place }: { whole: boolean; spelling?: Spelling; place: string },
): Expression {
  const parser = new Parser([...pattern], spelling, place, pattern)
  const around = repeat(spelling(anything), 0)
  return choice(
    parser
      .alternatives()
      .map(({ expression, anchoredStart, anchoredEnd }) =>
        sequence(...(whole || anchoredStart ? [] : [around]), expression, ...(whole || anchoredEnd ? [] : [around])),
      ),
  )
}

interface Alternative {
  readonly expression: Expression
  readonly anchoredStart: boolean
  readonly anchoredEnd: boolean
}

class Parser {
  #at = 0

  constructor(
    readonly characters: readonly string[],
    readonly spelling: Spelling,
    readonly place: string,
    readonly pattern: string,
  ) {}

  /** The whole pattern, at its outermost level, where anchors may stand. */
  alternatives(): Alternative[] {
    const found: Alternative[] = []
    do {
      const anchoredStart = this.#takes('^')
      const expression = this.#terms()
      found.push({ expression, anchoredStart, anchoredEnd: this.#takes('$') })
    } while (this.#takes('|'))
    if (this.#at < this.characters.length) throw this.#refusal(`no "${this.#peek}" here`)
    return found
  }

  get #peek(): string | undefined {
    return this.characters[this.#at]
  }

  #takes(character: string): boolean {
    if (this.#peek !== character) return false
    this.#at += 1
    return true
  }

  #next(): string {
    const character = this.characters[this.#at++]
    if (character === undefined) throw this.#refusal('a complete pattern')
    return character
  }

  #terms(): Expression {
    const parts: Expression[] = []
    while (this.#peek !== undefined && !'|)$'.includes(this.#peek)) parts.push(this.#quantified(this.#atom()))
    return sequence(...parts)
  }

  #atom(): Expression {
    const character = this.#next()
    if (character === '(') return this.#group()
    if (character === '[') return this.spelling(this.#class())
    if (character === '.') return this.spelling(exceptLineEnds)
    if (character === '\\') return this.spelling(this.#escape())
    if ('^*+?{}'.includes(character)) throw this.#refusal(`no "${character}" here`)
    return this.spelling([point(character)])
  }

  #group(): Expression {
    if (this.#takes('?') && !this.#takes(':')) throw this.#refusal('groups ( ) and (?: ) only')
    const options: Expression[] = []
    do options.push(this.#terms())
    while (this.#takes('|'))
    if (!this.#takes(')')) throw this.#refusal('a group that is closed')
    return choice(options)
  }

  #quantified(part: Expression): Expression {
    const bounds = this.#bounds()
    if (!bounds) return part
    // Lazy quantifiers match the same texts.
    this.#takes('?')
    return repeat(part, ...bounds)
  }

  #bounds(): [number, number] | undefined {
    if (this.#takes('*')) return [0, Number.POSITIVE_INFINITY]
    if (this.#takes('+')) return [1, Number.POSITIVE_INFINITY]
    if (this.#takes('?')) return [0, 1]
    if (!this.#takes('{')) return undefined
    let text = ''
    while (this.#peek !== undefined && this.#peek !== '}') text += this.#next()
    const [, low, comma, high] = /^(\d+)(,?)(\d*)$/.exec(text) ?? []
    if (!this.#takes('}') || low === undefined) throw this.#refusal('a quantifier {m}, {m,} or {m,n}')
    const least = Number(low)
    const most = comma === '' ? least : high === '' ? Number.POSITIVE_INFINITY : Number(high)
    if (least > most || least > maxRepeats || (most > maxRepeats && Number.isFinite(most)))
      throw this.#refusal(`counts in order, up to ${maxRepeats}`)
    return [least, most]
  }

  #class(): readonly Range[] {
    const negated = this.#takes('^')
    const ranges: Range[] = []
    while (!this.#takes(']')) {
      const first = this.#member()
      const isSingle = first.length === 1 && first[0]![0] === first[0]![1]
      if (!isSingle || this.#peek !== '-' || this.characters[this.#at + 1] === ']') {
        ranges.push(...first)
        continue
      }
      this.#at += 1
      const last = this.#member()
      if (last.length !== 1 || last[0]![0] < first[0]![0]) throw this.#refusal('ranges in order')
      ranges.push([first[0]![0], last[0]![1]])
    }
    return negated ? complement(ranges) : ranges
  }

  #member(): readonly Range[] {
    const character = this.#next()
    return character === '\\' ? this.#escape() : [point(character)]
  }

  #escape(): readonly Range[] {
    const character = this.#next()
    const known = classes[character]
    if (known) return known
    const control = controls[character]
    if (control !== undefined) return [[control, control]]
    if (character === 'x' || character === 'u') return [this.#code(character === 'x' ? 2 : 4)]
    if (/[A-Za-z0-9]/.test(character)) throw this.#refusal(`no "\\${character}"`)
    return [point(character)]
  }

  #code(length: number): Range {
    const text = Array.from({ length }, () => this.#next()).join('')
    if (!/^[0-9a-fA-F]+$/.test(text)) throw this.#refusal('hexadecimal digits')
    const value = Number.parseInt(text, 16)
    return [value, value]
  }

  #refusal(expected: string): HeddleError {
    return new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: this.place,
      expected,
      got: `"${this.pattern}"`,
      hint: 'Supported: literals, ".", classes, groups, "|", quantifiers, and anchors at the ends',
    })
  }
}

const point = (character: string): Range => [character.codePointAt(0)!, character.codePointAt(0)!]

function complement(ranges: readonly Range[]): readonly Range[] {
  const sorted = [...ranges].sort(([a], [b]) => a - b)
  const found: Range[] = []
  let from = 0
  for (const [first, last] of sorted) {
    if (first > from) found.push([from, first - 1])
    from = Math.max(from, last + 1)
  }
  if (from <= lastCodePoint) found.push([from, lastCodePoint])
  return found
}
