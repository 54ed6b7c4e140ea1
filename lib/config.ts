/** Checks options given by a user and says what is wrong with them in one line. */
import type { z } from 'zod'
import { HeddleError } from './errors.js'
import { nearest } from './nearest.js'

type Issue = Parameters<Exclude<NonNullable<Parameters<z.ZodType['safeParse']>[1]>['error'], undefined | string>>[0]

/**
 * The options with defaults filled in.
 * @param place what the options belong to, for messages
 * @throws ERR_HEDDLE_ARGUMENT naming the option, and the nearest known name for an unknown one
 */
export function parseConfig<S extends z.ZodObject>(place: string, schema: S, options: unknown): z.infer<S> {
  const parsed = schema.safeParse(options, { error: expectation })
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  if (issue.code === 'unrecognized_keys') {
    const known = knownKeys(schema, issue.path)
    const key = issue.keys[0]!
    throw unknownName([place, ...issue.path].join('.'), key, known)
  }
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: [place, ...issue.path].join('.'),
    expected: issue.message,
    got: textOf(valueAt(options, issue.path)),
  })
}

/** A name that is none of the known ones, with the nearest. */
export const unknownName = (place: string, name: string, known: readonly string[]): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place,
    expected: `one of ${known.join(', ')}`,
    got: `"${name}"`,
    hint: `Did you mean "${nearest(name, known)}"?`,
  })

/** Names of the fields that the schema has at a path. */
function knownKeys(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  const [first, ...rest] = path
  const { shape, element, innerType } = schema.def as unknown as {
    readonly shape?: Readonly<Record<PropertyKey, z.ZodType>>
    readonly element?: z.ZodType
    readonly innerType?: z.ZodType
  }
  if (innerType) return knownKeys(innerType, path)
  if (first === undefined) return Object.keys(shape ?? {})
  const next = shape?.[first] ?? element
  return next ? knownKeys(next, rest) : []
}

/** What the schema wanted, as the object of "expected …"; schemas may carry their own words. */
export function expectation(issue: Issue): string | undefined {
  switch (issue.code) {
    case 'too_small':
      return `${issue.inclusive ? 'at least' : 'more than'} ${issue.minimum}`
    case 'too_big':
      return `${issue.inclusive ? 'at most' : 'less than'} ${issue.maximum}`
    case 'invalid_type':
      return `a value of type ${issue.expected}`
    case 'invalid_value':
      return `one of ${issue.values.map((value) => JSON.stringify(value)).join(', ')}`
    default:
      return undefined
  }
}

function valueAt(options: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], options)
}

/** As JSON, but for the numbers that JSON does not know. */
const textOf = (value: unknown): string =>
  typeof value === 'number' ? String(value) : (JSON.stringify(value) ?? 'nothing')
