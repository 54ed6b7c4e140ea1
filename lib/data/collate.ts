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
  /** Number of the sequence within its row, -1 for padding: attention stays inside a sequence. */
  readonly segments: Int32Array
  /** Position of each token within its sequence, 0 for padding. */
  readonly positions?: Int32Array
  /** Number of targets that count. */
  readonly tokens: number
}

/** A target without loss. */
export const ignoredTarget = -100

/**
 * Lays sequences out in rows, shifted by one between inputs and targets, and pads the rows to a common length. A row
 * may hold several sequences, or none: then it is padding.
 */
export function collate(
  given: readonly (Sequence | readonly Sequence[] | undefined)[],
  { maxLength, padId }: { readonly maxLength: number; readonly padId: number },
): Batch {
  const packed = given.map((row) => [row ?? []].flat())
  const rows = packed.length
  const inputsOf = (row: readonly Sequence[]): number => row.reduce((sum, { ids }) => sum + ids.length - 1, 0)
  const length = bucketLength(Math.max(...packed.map(inputsOf)), maxLength)
  const inputIds = new Int32Array(rows * length).fill(padId)
  const targets = new Int32Array(rows * length).fill(ignoredTarget)
  const segments = new Int32Array(rows * length).fill(-1)
  let tokens = 0
  for (const [index, row] of packed.entries()) {
    let start = index * length
    for (const [segment, { ids, loss }] of row.entries()) {
      const end = start + ids.length - 1
      inputIds.set(ids.subarray(0, -1), start)
      segments.fill(segment, start, end)
      for (let i = 1; i < ids.length; i++) {
        if (!loss[i]) continue
        targets[start + i - 1] = ids[i]!
        tokens++
      }
      start = end
    }
  }
  return { rows, length, inputIds, targets, segments, positions: positionsOf(segments, length), tokens }
}

/** Places of tokens within their own segments, from `segments [rows, length]`; 0 for padding. */
export function positionsOf(segments: Int32Array, length: number): Int32Array {
  const positions = new Int32Array(segments.length)
  for (let i = 1; i < segments.length; i++)
    if (i % length > 0 && segments[i]! >= 0 && segments[i] === segments[i - 1]) positions[i] = positions[i - 1]! + 1
  return positions
}

const shortest = 32

/** The next of 32, 48, 64, 96, 128, …: few distinct lengths, so few programs, and at most a third of padding. */
export function bucketLength(length: number, maxLength: number): number {
  let power = shortest
  while (power < length) power *= 2
  const between = (power / 4) * 3
  return Math.min(maxLength, between >= shortest && between >= length ? between : power)
}
