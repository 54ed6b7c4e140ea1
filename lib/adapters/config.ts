/** Checks a method's config and says what is wrong with it in one line. */
import type { z } from 'zod'
import { HeddleError } from '../errors.js'
import { nearest } from '../nearest.js'

/** @throws ERR_HEDDLE_ARGUMENT naming the field, and the nearest known name for an unknown one */
export function parseConfig<S extends z.ZodObject>(method: string, schema: S, options: unknown): z.infer<S> {
  const parsed = schema.safeParse(options)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  const known = Object.keys(schema.shape)
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: method,
      expected: `one of ${known.join(', ')}`,
      got: `"${key}"`,
      hint: `Did you mean "${nearest(key, known)}"?`,
    })
  }
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: [method, ...issue.path].join('.'),
    expected: issue.message,
    got: JSON.stringify(valueAt(options, issue.path)) ?? 'nothing',
  })
}

function valueAt(options: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], options)
}
