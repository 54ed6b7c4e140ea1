/** Texts as completions and embeddings take them: as text or as tokens, one or several. */
import { z } from 'zod'
import { integer, oneOf } from './request.js'

const token = integer(0, 2 ** 31 - 1)
const most = 2048

/** The field. */
export const texts = oneOf('a string, an array of strings, an array of integers or an array of arrays of integers', [
  z.string(),
  z.array(z.string()).min(1).max(most),
  z.array(token).min(1),
  z.array(z.array(token).min(1)).min(1).max(most),
] as const)

/** What the field says, text by text. */
export const eachText = (given: z.output<typeof texts>): (string | Int32Array)[] => {
  if (typeof given === 'string') return [given]
  if (typeof given[0] === 'number') return [Int32Array.from(given as number[])]
  return (given as (string | number[])[]).map((text) => (typeof text === 'string' ? text : Int32Array.from(text)))
}
