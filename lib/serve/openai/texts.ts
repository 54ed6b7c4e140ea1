/** Texts as completions and embeddings take them: as text or as tokens, one or several. */
import { z } from 'zod'

const most = 2048

/** The field, text by text. Checked by hand: tokens may be so many that zod would hold the event loop. */
export const texts = z.unknown().transform((given, { issues }): (string | Int32Array)[] => {
  if (typeof given === 'string') return [given]
  if (isTokens(given)) return [Int32Array.from(given)]
  const fault = faultOf(given)
  if (fault === undefined) return (given as (string | number[])[]).map(asText)
  issues.push(fault)
  return z.NEVER
})

/** What is wrong with a value that is neither a text nor tokens. */
function faultOf(given: unknown): z.core.$ZodRawIssue | undefined {
  const fault = (message: string, path: PropertyKey[] = []): z.core.$ZodRawIssue => ({
    code: 'custom',
    message,
    input: given,
    path,
  })
  if (given === undefined) return { code: 'invalid_type', expected: 'string', input: given }
  if (!Array.isArray(given)) return fault('expected a string, token ids, or an array of these')
  if (given.length === 0) return { code: 'too_small', origin: 'array', minimum: 1, input: given }
  const areTokens = typeof given[0] === 'number'
  const wrong = given.findIndex((each) => (areTokens ? !isToken(each) : !isText(each)))
  if (wrong >= 0) return fault(`expected ${areTokens ? 'a token id' : 'a string or token ids'}`, [wrong])
  if (given.length > most) return { code: 'too_big', origin: 'array', maximum: most, input: given }
  return undefined
}

const isToken = (value: unknown): boolean =>
  Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31
const isTokens = (value: unknown): value is number[] => Array.isArray(value) && value.length > 0 && value.every(isToken)
const isText = (value: unknown): boolean => typeof value === 'string' || isTokens(value)
const asText = (value: string | number[]): string | Int32Array =>
  typeof value === 'string' ? value : Int32Array.from(value)
