/** The known name that a mistyped one most likely stood for. */
export function nearest(name: string, known: readonly string[]): string {
  const ranked = known.map((candidate) => [editDistance(name, candidate), candidate] as const)
  return ranked.sort(([a], [b]) => a - b)[0]?.[1] ?? ''
}

/** Levenshtein distance. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i]
    for (let j = 1; j <= b.length; j += 1)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    row = next
  }
  return row[b.length]!
}
