/** JSON schemas as grammars: JSON without insignificant white space but for a space after ":" and ",". */
import { HeddleError } from '../../errors.js'
import {
  characters,
  choice,
  decimals,
  type Expression,
  type Grammar,
  integers,
  literal,
  nothing,
  optional,
  type Range,
  repeat,
  rule,
  sequence,
} from './expression.js'
import { regexExpression } from './regex.js'

type Schema = boolean | { readonly [keyword: string]: unknown }
type JsonType = 'object' | 'array' | 'string' | 'number' | 'integer' | 'boolean' | 'null'

const types: readonly JsonType[] = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null']
/** Say nothing about which values are valid. */
const annotations = [
  'title',
  'description',
  'default',
  'examples',
  'deprecated',
  'readOnly',
  'writeOnly',
  '$schema',
  '$id',
  '$comment',
  '$defs',
  'definitions',
]
const keywordsOf: Readonly<Record<JsonType, readonly string[]>> = {
  object: ['properties', 'required', 'additionalProperties'],
  array: ['items', 'minItems', 'maxItems'],
  string: ['minLength', 'maxLength', 'pattern'],
  number: ['minimum', 'maximum'],
  integer: ['minimum', 'maximum'],
  boolean: [],
  null: [],
}
/** Beyond it not every integer is a number of JavaScript. */
const largestInteger = Number.MAX_SAFE_INTEGER

const spaced = (text: string): Expression => sequence(literal(text), optional(literal(' ')))
const comma = spaced(',')
const hex: Range[] = [
  [0x30, 0x39],
  [0x41, 0x46],
  [0x61, 0x66],
]
const digit = characters([[0x30, 0x39]])
/** No surrogates: half a character is no text. */
const unicodeEscape = choice([
  sequence(
    characters([
      [0x30, 0x39],
      [0x41, 0x43],
      [0x45, 0x46],
      [0x61, 0x63],
      [0x65, 0x66],
    ]),
    repeat(characters(hex), 3, 3),
  ),
  sequence(
    characters([
      [0x44, 0x44],
      [0x64, 0x64],
    ]),
    characters([[0x30, 0x37]]),
    repeat(characters(hex), 2, 2),
  ),
])
const plainRanges: readonly Range[] = [
  [0x20, 0x21],
  [0x23, 0x5b],
  [0x5d, 0x10ffff],
]
const escapes: Readonly<Record<number, string>> = {
  8: '\\b',
  9: '\\t',
  10: '\\n',
  12: '\\f',
  13: '\\r',
  34: '\\"',
  92: '\\\\',
}
const character = choice([
  characters(plainRanges),
  sequence(literal('\\'), choice([...'"\\/bfnrt'].map(literal))),
  sequence(literal('\\u'), unicodeEscape),
])
const text = (least = 0, most = Number.POSITIVE_INFINITY): Expression =>
  sequence(literal('"'), repeat(character, least, most), literal('"'))
/** At most 15 digits and a small exponent: always finite. */
const number = sequence(
  optional(literal('-')),
  choice([literal('0'), sequence(characters([[0x31, 0x39]]), repeat(digit, 0, 14))]),
  optional(sequence(literal('.'), repeat(digit, 1, 15))),
  optional(
    sequence(choice([literal('e'), literal('E')]), optional(choice([literal('+'), literal('-')])), repeat(digit, 1, 2)),
  ),
)

const integer = integers(-largestInteger, largestInteger)

const listOf = (item: Expression, least = 0, most = Number.POSITIVE_INFINITY): Expression => {
  if (most === 0) return nothing
  return sequence(item, repeat(sequence(comma, item), Math.max(0, least - 1), most - 1))
}
const enclosed = (open: string, inside: Expression, close: string): Expression =>
  sequence(literal(open), inside, literal(close))
const mapOf = (value: Expression): Expression =>
  enclosed('{', optional(listOf(sequence(text(), spaced(':'), value))), '}')
const arrayOf = (item: Expression, least: number, most: number): Expression => {
  const items = listOf(item, Math.max(1, least), most)
  return enclosed('[', least > 0 ? items : optional(items), ']')
}

const anyValue = rule('value')
const anyObject = mapOf(anyValue)
const valueRule = choice([
  anyObject,
  arrayOf(anyValue, 0, Number.POSITIVE_INFINITY),
  text(),
  number,
  ...['true', 'false', 'null'].map(literal),
])

/** Any JSON object. */
export const anyObjectGrammar: Grammar = { root: anyObject, rules: new Map([['value', valueRule]]) }

/** The JSON texts that a schema allows. @throws ERR_HEDDLE_ARGUMENT naming the keyword that is not supported */
export function jsonSchemaGrammar(schema: Schema): Grammar {
  const compiler = new Compiler(schema)
  const root = compiler.expression(schema, '#')
  return { root, rules: compiler.rules }
}

class Compiler {
  readonly rules = new Map<string, Expression>([['value', valueRule]])

  constructor(readonly document: Schema) {}

  expression(schema: unknown, path: string): Expression {
    if (schema === true) return anyValue
    if (schema === false) return nothing
    if (!isObject(schema)) throw refusal(path, 'a schema', JSON.stringify(schema))
    if (schema.$ref !== undefined) return this.#reference(only(schema, ['$ref'], path).$ref, path)
    if (schema.anyOf !== undefined) return this.#anyOf(only(schema, ['anyOf'], path).anyOf, path)
    const allowed = typesOf(schema, path)
    if (schema.const !== undefined) return values([only(schema, ['const', 'type'], path).const], allowed)
    if (schema.enum !== undefined) return this.#enumeration(only(schema, ['enum', 'type'], path).enum, allowed, path)
    only(schema, ['type', ...allowed.flatMap((type) => keywordsOf[type])], path)
    const keywords = Object.keys(schema).filter((key) => !annotations.includes(key))
    if (keywords.length === 0) return anyValue
    return choice(allowed.map((type) => this.#typed(type, schema, path)))
  }

  #typed(type: JsonType, schema: Record<string, unknown>, path: string): Expression {
    switch (type) {
      case 'object':
        return this.#object(schema, path)
      case 'array': {
        const [least, most] = bounds(schema, 'minItems', 'maxItems', path)
        return arrayOf(this.expression(schema.items ?? true, `${path}/items`), least, most)
      }
      case 'string':
        return stringOf(schema, path)
      case 'number':
        return schema.minimum === undefined && schema.maximum === undefined ? number : decimals(...range(schema, path))
      case 'integer':
        return schema.minimum === undefined && schema.maximum === undefined ? integer : integers(...range(schema, path))
      case 'boolean':
        return choice([literal('true'), literal('false')])
      case 'null':
        return literal('null')
    }
  }

  /** Members in the order of `properties`; optional ones may be left out. */
  #object(schema: Record<string, unknown>, path: string): Expression {
    const { properties = {}, required = [], additionalProperties = true } = schema
    if (!isObject(properties)) throw refusal(`${path}/properties`, 'schemas by name', JSON.stringify(properties))
    if (!Array.isArray(required) || !required.every((name) => typeof name === 'string'))
      throw refusal(`${path}/required`, 'names', JSON.stringify(required))
    const others = this.expression(additionalProperties, `${path}/additionalProperties`)
    const members = Object.entries(properties).map(([name, value]) => ({
      name,
      value: this.expression(value, `${path}/properties/${name}`),
    }))
    const undeclared = required.filter((name: string) => !Object.hasOwn(properties, name))
    members.push(...undeclared.map((name: string) => ({ name, value: others })))
    if (members.length === 0) return additionalProperties === false ? literal('{}') : mapOf(others)
    return enclosed('{', membersOf(members, new Set(required)), '}')
  }

  #anyOf(options: unknown, path: string): Expression {
    if (!Array.isArray(options)) throw refusal(`${path}/anyOf`, 'schemas', JSON.stringify(options))
    return choice(options.map((option, index) => this.expression(option, `${path}/anyOf/${index}`)))
  }

  #enumeration(list: unknown, allowed: readonly JsonType[], path: string): Expression {
    if (!Array.isArray(list)) throw refusal(`${path}/enum`, 'values', JSON.stringify(list))
    return values(list, allowed)
  }

  #reference(target: unknown, path: string): Expression {
    if (typeof target !== 'string' || !/^#($|\/)/.test(target))
      throw refusal(`${path}/$ref`, 'a reference within the schema, such as "#/$defs/name"', JSON.stringify(target))
    if (!this.rules.has(target)) {
      // Known before it is made: it may refer to itself.
      this.rules.set(target, nothing)
      this.rules.set(target, this.expression(this.#lookUp(target, path), target))
    }
    return rule(target)
  }

  #lookUp(target: string, path: string): unknown {
    const steps = target.split('/').slice(1)
    const found = steps.reduce<unknown>((value, step) => {
      const key = decodeURIComponent(step).replaceAll('~1', '/').replaceAll('~0', '~')
      return (isObject(value) || Array.isArray(value)) && Object.hasOwn(value, key)
        ? Reflect.get(value, key)
        : undefined
    }, this.document)
    if (found === undefined) throw refusal(`${path}/$ref`, 'something that is there', `"${target}"`)
    return found
  }
}

interface Member {
  readonly name: string
  readonly value: Expression
}

/** Members from the last to the first: what may follow each, with and without an earlier one to be set apart from. */
function membersOf(members: readonly Member[], required: ReadonlySet<string>): Expression {
  let first: Expression = sequence()
  let later: Expression = sequence()
  for (const { name, value } of members.toReversed()) {
    const member = sequence(literal(JSON.stringify(name)), spaced(':'), value)
    const [asFirst, asLater] = [sequence(member, later), sequence(comma, member, later)]
    const isOptional = !required.has(name)
    first = isOptional ? choice([asFirst, first]) : asFirst
    later = isOptional ? choice([asLater, later]) : asLater
  }
  return first
}

function typesOf(schema: Record<string, unknown>, path: string): readonly JsonType[] {
  const { type = types } = schema
  const list = (Array.isArray(type) ? type : [type]) as JsonType[]
  if (!list.every((each) => types.includes(each)))
    throw refusal(`${path}/type`, `one of ${types.join(', ')}`, JSON.stringify(type))
  return list
}

const values = (list: readonly unknown[], allowed: readonly JsonType[]): Expression =>
  choice(
    list.filter((value) => allowed.some((type) => isOf(value, type))).map((value) => literal(JSON.stringify(value))),
  )

function isOf(value: unknown, type: JsonType): boolean {
  if (type === 'null') return value === null
  if (type === 'array') return Array.isArray(value)
  if (type === 'object') return isObject(value)
  if (type === 'integer') return Number.isInteger(value)
  return typeof value === type
}

function stringOf(schema: Record<string, unknown>, path: string): Expression {
  const { pattern } = schema
  if (pattern === undefined) return text(...bounds(schema, 'minLength', 'maxLength', path))
  if (schema.minLength !== undefined || schema.maxLength !== undefined)
    throw refusal(path, 'either a pattern or lengths', 'both', 'Put the lengths into the pattern: {m,n}')
  if (typeof pattern !== 'string') throw refusal(`${path}/pattern`, 'a string', JSON.stringify(pattern))
  const inside = regexExpression(pattern, {
    whole: false,
    spelling: spelled,
    place: `responseFormat.schema ${path}/pattern`,
  })
  return enclosed('"', inside, '"')
}

/** Characters as they stand in a JSON string. */
const spelled = (ranges: readonly Range[]): Expression => {
  const plain = ranges.flatMap(([first, last]) =>
    plainRanges.map(([low, high]): Range => [Math.max(first, low), Math.min(last, high)]).filter(([a, b]) => a <= b),
  )
  const escaped = [...Array(0x20).keys(), 0x22, 0x5c].filter((code) => ranges.some(([a, b]) => code >= a && code <= b))
  const codes = escaped.map((code) => escapes[code] ?? `\\u${code.toString(16).padStart(4, '0')}`)
  return choice([characters(plain), ...codes.map(literal)])
}

/** From the least to the largest integer that is allowed; a number's fraction stays between them. */
function range(schema: Record<string, unknown>, path: string): [number, number] {
  const { minimum = -largestInteger, maximum = largestInteger } = schema
  if (typeof minimum !== 'number' || typeof maximum !== 'number')
    throw refusal(path, 'numbers as minimum and maximum', JSON.stringify({ minimum, maximum }))
  const within = (value: number): number => Math.min(largestInteger, Math.max(-largestInteger, value))
  return [within(Math.ceil(minimum)), within(Math.floor(maximum))]
}

function bounds(schema: Record<string, unknown>, low: string, high: string, path: string): [number, number] {
  const { [low]: least = 0, [high]: most = Number.POSITIVE_INFINITY } = schema
  const isCount = (value: unknown): value is number => typeof value === 'number' && value >= 0
  if (!isCount(least) || !isCount(most))
    throw refusal(path, `counts as ${low} and ${high}`, JSON.stringify({ least, most }))
  return [Math.ceil(least), Math.floor(most)]
}

/** The schema itself, when it has no keywords but these and annotations. */
function only<T extends Record<string, unknown>>(schema: T, known: readonly string[], path: string): T {
  const other = Object.keys(schema).find((key) => !known.includes(key) && !annotations.includes(key))
  if (other !== undefined) throw refusal(path, `no other keywords here than ${known.join(', ')}`, `"${other}"`)
  return schema
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const refusal = (path: string, expected: string, got: string, hint?: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: `responseFormat.schema ${path}`,
    expected,
    got,
    ...(hint === undefined ? {} : { hint }),
  })
