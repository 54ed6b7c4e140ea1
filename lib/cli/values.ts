/** Option values from text, refused by commander with the flag's name and a sentence. */
import { InvalidArgumentError } from 'commander'

export const integerFrom =
  (least: number) =>
  (text: string): number => {
    const value = Number(text)
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= least) return value
    throw new InvalidArgumentError(`Expected an integer of at least ${least}.`)
  }

export const numberFrom =
  (least: number, most = Number.POSITIVE_INFINITY) =>
  (text: string): number => {
    const value = Number(text)
    if (text.trim() !== '' && value >= least && value <= most) return value
    const range = most === Number.POSITIVE_INFINITY ? `of at least ${least}` : `from ${least} to ${most}`
    throw new InvalidArgumentError(`Expected a number ${range}.`)
  }

/** Bytes, such as 4096, 512M or 4G (powers of 1024). */
export function bytesFrom(text: string): number {
  const [, number, unit = ''] = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim()) ?? []
  const bytes = Math.round(Number(number) * 1024 ** ' KMGT'.indexOf(unit.toUpperCase() || ' '))
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes
  throw new InvalidArgumentError('Expected bytes, such as 4096, 512M or 4G.')
}

/** An option that may be given several times. */
export const repeated = (text: string, earlier: readonly string[] = []): readonly string[] => [...earlier, text]
