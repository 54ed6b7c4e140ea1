/** Sequences to the rectangular inputs of a training program. */

/** Token ids; one that is not to be learned is stored as its complement `~id`. */
export type Sequence = Int32Array

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
 * may hold several sequences, or none.
 */
export function collate(
  packed: readonly (readonly Sequence[])[],
  { maxLength, padId }: { readonly maxLength: number; readonly padId: number },
): Batch {
  const rows = packed.length
  const inputsOf = (row: readonly Sequence[]): number => row.reduce((sum, { length }) => sum + length - 1, 0)
  const length = bucketLength(Math.max(...packed.map(inputsOf)), maxLength)
  const inputIds = new Int32Array(rows * length).fill(padId)
  const targets = new Int32Array(rows * length).fill(ignoredTarget)
  const segments = new Int32Array(rows * length).fill(-1)
  const positions = new Int32Array(rows * length)
  let tokens = 0
  for (const [index, row] of packed.entries()) {
    let start = index * length
    for (const [segment, sequence] of row.entries()) {
      for (let i = 0; i + 1 < sequence.length; i++) {
        const [input, target] = [sequence[i]!, sequence[i + 1]!]
        inputIds[start + i] = input < 0 ? ~input : input
        segments[start + i] = segment
        positions[start + i] = i
        if (target < 0) continue
        targets[start + i] = target
        tokens++
      }
      start += sequence.length - 1
    }
  }
  return { rows, length, inputIds, targets, segments, positions, tokens }
}

const shortest = 32

/** The next of 32, 48, 64, 96, 128, …: few distinct lengths, so few programs, and at most a third of padding. */
export function bucketLength(length: number, maxLength: number): number {
  let power = shortest
  while (power < length) power *= 2
  const between = (power / 4) * 3
  return Math.min(maxLength, between >= shortest && between >= length ? between : power)
}
