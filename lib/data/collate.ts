/** Sequences to the rectangular inputs of a training program. */

/** Token ids, and which of them are to be learned. */
export interface Sequence {
  readonly ids: Int32Array
  readonly loss: Uint8Array
}

/** One batch; all arrays are row-major [rows, length]. */
export interface Batch {
  readonly rows: number
  readonly length: number
  readonly inputIds: Int32Array
  /** The id that follows each input, or -100 where nothing is learned. */
  readonly targets: Int32Array
  /** 0 for tokens, -1 for padding. */
  readonly segments: Int32Array
  /** Number of targets that count. */
  readonly tokens: number
}

/** A target without loss. */
export const ignoredTarget = -100

/**
 * Lays sequences out as rows, shifted by one between inputs and targets and padded to a common length. An absent
 * sequence gives a row of padding.
 */
export function collate(
  sequences: readonly (Sequence | undefined)[],
  { maxLength, padId }: { readonly maxLength: number; readonly padId: number },
): Batch {
  const rows = sequences.length
  const longest = Math.max(...sequences.map((sequence) => (sequence ? sequence.ids.length - 1 : 0)))
  const length = bucketLength(longest, maxLength)
  const inputIds = new Int32Array(rows * length).fill(padId)
  const targets = new Int32Array(rows * length).fill(ignoredTarget)
  const segments = new Int32Array(rows * length).fill(-1)
  let tokens = 0
  for (const [row, sequence] of sequences.entries()) {
    if (!sequence) continue
    const { ids, loss } = sequence
    const start = row * length
    inputIds.set(ids.subarray(0, -1), start)
    segments.fill(0, start, start + ids.length - 1)
    for (let i = 1; i < ids.length; i++) {
      if (!loss[i]) continue
      targets[start + i - 1] = ids[i]!
      tokens++
    }
  }
  return { rows, length, inputIds, targets, segments, tokens }
}

const shortest = 32

/** The next of 32, 48, 64, 96, 128, …: few distinct lengths, so few programs, and at most a third of padding. */
export function bucketLength(length: number, maxLength: number): number {
  let power = shortest
  while (power < length) power *= 2
  const between = (power / 4) * 3
  return Math.min(maxLength, between >= shortest && between >= length ? between : power)
}
