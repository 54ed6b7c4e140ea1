/** Numbers as people read them. */

const count = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })

/** 1234567 → 1.2M */
export const short = (value: number): string => count.format(value)

/** 1 → 1 adapter, 2 → 2 adapters */
export const counted = (value: number, word: string): string => `${value} ${word}${value === 1 ? '' : 's'}`

/** 1234.5 → 1,235 and 1.25 → 1.3 */
export const rate = (value: number): string => (value < 10 && value > 0 ? value.toFixed(1) : whole.format(value))

/** 1536 → 1.5 kB */
export function bytes(value: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(value) / 3))
  const scaled = value / 1000 ** power
  return `${scaled >= 100 || power === 0 ? scaled.toFixed(0) : scaled.toFixed(1)} ${units[power]}`
}

/** 75 → 1 min 15 s */
export function duration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 60) return `${Math.round(seconds)} s`
  const minutes = Math.floor(seconds / 60)
  return minutes < 60
    ? `${minutes} min ${Math.round(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

/** Seconds since 1970 → 14:03, with the date where it is not today's. */
export function clock(seconds: number): string {
  const date = new Date(1000 * seconds)
  const time = date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString()} ${time}`
}
