/** Bodies of requests, checked by zod; what is wrong with one is said as OpenAI says it, with the field's name. */
import { z } from 'zod'
import { pause } from '../../graph/pause.js'
import { invalidRequest, type OpenAiError } from './error.js'

/** The body with defaults filled in. @throws OpenAiError 400 */
export function readBody<S extends z.ZodType>(schema: S, body: unknown): z.output<S> {
  const parsed = schema.safeParse(body ?? {}, { reportInput: true })
  if (parsed.success) return parsed.data
  throw refusal(parsed.error.issues[0]!)
}

/** A field that OpenAI has and this server does not: anything but null is refused. */
export const unsupported = z
  .custom<undefined>((value) => value === undefined || value === null, { params: { code: 'unsupported_parameter' } })
  .optional()

/** A field that changes nothing about the answer, e.g. what OpenAI stores with it. */
export const ignored = z.unknown().optional()

/** A field that may be absent or null, which means the same. */
export const maybe = <S extends z.ZodType>(schema: S) =>
  schema.nullish().transform((value): z.output<S> | undefined => (value === null ? undefined : value))

/** A value whose type is told by its words, where a union of types would be told by none. */
export const oneOf = <const S extends readonly [z.ZodType, ...z.ZodType[]]>(words: string, schemas: S) =>
  z.union(schemas, { error: words })

/** An integer within bounds. */
export const integer = (least: number, most: number = Number.MAX_SAFE_INTEGER) =>
  z.int().min(least, { error: integerKind }).max(most, { error: integerKind })

/** An integer in a query, where it is a text. */
export const queryInteger = (least: number, most: number) =>
  maybe(z.string().regex(/^\d+$/).transform(Number).pipe(integer(least, most)))

/** An array of up to `most`, checked up to the first that is wrong: a fault for each of them would hold the event loop. */
export const list = <S extends z.ZodType>(schema: S, most: number) =>
  z
    .array(z.unknown())
    .min(1)
    .max(most)
    .transform((items, { issues }): z.output<S>[] => {
      const read: z.output<S>[] = []
      for (const [index, item] of items.entries()) {
        const parsed = schema.safeParse(item, { reportInput: true })
        if (!parsed.success) {
          const issue = parsed.error.issues[0]!
          issues.push({ ...issue, path: [index, ...issue.path] } as z.core.$ZodRawIssue)
          return z.NEVER
        }
        read.push(parsed.data)
      }
      return read
    })

/** An array of up to `most` that {@link readItems} reads. */
export const items = (most: number) => z.array(z.unknown()).min(1).max(most)

/** The elements of an array that may be long, with turns of the event loop in between. @throws OpenAiError 400 */
export async function readItems<S extends z.ZodType>(
  schema: S,
  given: readonly unknown[],
  field: string,
): Promise<z.output<S>[]> {
  const read: z.output<S>[] = []
  for (const [index, item] of given.entries()) {
    await pause()
    const parsed = schema.safeParse(item, { reportInput: true })
    if (!parsed.success) {
      const issue = parsed.error.issues[0]!
      throw refusal({ ...issue, path: [field, index, ...issue.path] })
    }
    read.push(parsed.data)
  }
  return read
}

/** How the bounds of integers are told from others. */
const integerKind = 'integer'

type Issue = z.core.$ZodIssue

function refusal(issue: Issue): OpenAiError {
  const name = pathText(issue.path)
  const invalid = (message: string, code: string): OpenAiError => invalidRequest(message, name || null, code)
  switch (issue.code) {
    case 'unrecognized_keys': {
      const key = pathText([...issue.path, issue.keys[0]!])
      return invalidRequest(`Unknown parameter: '${key}'.`, key, 'unknown_parameter')
    }
    case 'invalid_type':
      return issue.input === undefined ? missing(name) : wrongType(name, phrase(issue.expected), issue.input)
    case 'invalid_union':
      return ofUnion(issue, name)
    case 'invalid_value':
      return issue.input === undefined ? missing(name) : unknownValue(name, issue.values, issue.input)
    case 'invalid_key':
      return invalid(
        `Invalid key in '${pathText(issue.path.slice(0, -1))}': expected ${issue.issues[0]?.message}, but got ${textOf(issue.input)} instead.`,
        'invalid_key',
      )
    case 'invalid_format':
      return invalid(
        `Invalid '${name}': string does not match pattern. Expected a string that matches the pattern '${issue.pattern?.slice(1, -1)}'.`,
        'invalid_value',
      )
    case 'too_big':
    case 'too_small':
      return outOfBounds(issue, name)
    case 'custom':
      return issue.params?.code === 'unsupported_parameter'
        ? invalid(`Unsupported parameter: '${name}' is not supported by this server.`, 'unsupported_parameter')
        : invalid(`Invalid '${name}': ${issue.message}.`, 'invalid_value')
    default:
      return invalid(`Invalid '${name}': ${issue.message}.`, 'invalid_value')
  }
}

const missing = (name: string): OpenAiError =>
  invalidRequest(`Missing required parameter: '${name}'.`, name, 'missing_required_parameter')

const wrongType = (name: string, expected: string, input: unknown): OpenAiError =>
  invalidRequest(
    name === ''
      ? `Invalid body: expected ${expected}, but got ${typeOf(input)} instead.`
      : `Invalid type for '${name}': expected ${expected}, but got ${typeOf(input)} instead.`,
    name || null,
    'invalid_type',
  )

function unknownValue(name: string, values: readonly unknown[], input: unknown): OpenAiError {
  const known = values.map((value) => `'${value}'`)
  const words = known.length > 1 ? `${known.slice(0, -1).join(', ')} and ${known.at(-1)}` : known[0]
  return invalidRequest(
    `Invalid value: ${textOf(input)}. Supported values are: ${words}.`,
    name || null,
    'invalid_value',
  )
}

/** A union fails where the branch that came furthest does; where none came further than its type, all are named. */
function ofUnion(issue: Extract<Issue, { readonly code: 'invalid_union' }>, name: string): OpenAiError {
  if (issue.discriminator !== undefined) {
    const field = pathText(issue.path)
    const value = (issue.input as Readonly<Record<string, unknown>> | undefined)?.[issue.discriminator]
    if (value === undefined) return missing(field)
    return unknownValue(field, 'options' in issue ? (issue.options ?? []) : [], value)
  }
  if (issue.input === undefined) return missing(name)
  const deepest = issue.errors
    .flat()
    .filter(({ path, code }) => path.length > 0 || code !== 'invalid_type')
    .toSorted((a, b) => b.path.length - a.path.length)[0]
  if (deepest) return refusal({ ...deepest, path: [...issue.path, ...deepest.path] } as Issue)
  return wrongType(name, issue.message, issue.input)
}

function outOfBounds(issue: Extract<Issue, { readonly code: 'too_big' | 'too_small' }>, name: string): OpenAiError {
  const isBig = issue.code === 'too_big'
  const bound = String(isBig ? issue.maximum : issue.minimum)
  const sign = isBig ? '<=' : '>='
  const side = isBig ? 'above_max' : 'below_min'
  const refuse = (message: string, code: string): OpenAiError => invalidRequest(message, name, code)
  if (issue.origin === 'array' || issue.origin === 'string') {
    const { length } = issue.input as string | readonly unknown[]
    const what = `${issue.origin} with ${isBig ? 'maximum' : 'minimum'} length ${bound}`
    if (length === 0)
      return refuse(
        `Invalid '${name}': empty ${issue.origin}. Expected ${articled(what)}, but got an empty ${issue.origin} instead.`,
        `empty_${issue.origin}`,
      )
    return refuse(
      `Invalid '${name}': ${issue.origin} too ${isBig ? 'long' : 'short'}. Expected ${articled(what)}, but got ${articled(issue.origin)} with length ${length} instead.`,
      `${issue.origin}_${side}_length`,
    )
  }
  const kind = issue.message === integerKind ? 'integer' : 'decimal'
  return refuse(
    `Invalid '${name}': ${kind} ${side.replace('_', ' ')}imum value. Expected a value ${sign} ${bound}, but got ${textOf(issue.input)} instead.`,
    `${kind}_${side}_value`,
  )
}

/** `messages[0].role` */
const pathText = (path: readonly PropertyKey[]): string =>
  path.reduce<string>((text, key) => {
    if (typeof key === 'number') return `${text}[${key}]`
    return text === '' ? String(key) : `${text}.${String(key)}`
  }, '')

const articled = (noun: string): string => `${/^[aeiou]/.test(noun) ? 'an' : 'a'} ${noun}`

const phrase = (type: string): string => articled(type === 'int' ? 'integer' : type === 'record' ? 'object' : type)

function typeOf(value: unknown): string {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'number') return Number.isInteger(value) ? 'an integer' : 'a decimal number'
  return articled(typeof value)
}

/** Short enough for a message. */
function textOf(value: unknown): string {
  const text = typeof value === 'string' ? `'${value}'` : (JSON.stringify(value) ?? 'nothing')
  return text.length > 100 ? `${text.slice(0, 100)}…` : text
}
