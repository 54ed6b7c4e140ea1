/**
 * JSON whose numbers keep their texts. 3.0 and 3 are the same number here and of different types elsewhere: transformers
 * refuses a config.json whose softcap is 3.
 */

/** JSON's values with a number's text, as a string, in the place of every number; strings are in it too. */
export type NumberTexts = unknown

/** @param text valid JSON */
export const numberTexts = (text: string): NumberTexts =>
  JSON.parse(text.replace(stringOrNumber, (token) => (token.startsWith('"') ? token : `"${token}"`)))

const stringOrNumber = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g

/** A number's text as a float. */
export const floatText = (value: number): string => (Number.isSafeInteger(value) ? value.toFixed(1) : `${value}`)

/** As `JSON.stringify(value, null, 2)`, with the known text of a number wherever it is still the same number. */
export function jsonText(value: unknown, texts: NumberTexts, indent = ''): string {
  if (typeof value === 'number' && typeof texts === 'string' && Number(texts) === value) return texts
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const inner = `${indent}  `
  const textOf = (key: string | number, child: unknown): string => jsonText(child, memberOf(texts, key), inner)
  const [open, close, members] = Array.isArray(value)
    ? ['[', ']', value.map((child, i) => textOf(i, child ?? null))]
    : ['{', '}', definedEntries(value).map(([key, child]) => `${JSON.stringify(key)}: ${textOf(key, child)}`)]
  return members.length === 0 ? `${open}${close}` : `${open}\n${inner}${members.join(`,\n${inner}`)}\n${indent}${close}`
}

const definedEntries = (value: object): [string, unknown][] =>
  Object.entries(value).filter(([, child]) => child !== undefined)

const memberOf = (texts: NumberTexts, key: string | number): NumberTexts =>
  typeof texts === 'object' && texts !== null ? (texts as Record<string | number, unknown>)[key] : undefined
