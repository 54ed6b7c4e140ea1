/** Which of its configurations every matrix gets under a budget of memory: the multiple-choice knapsack problem, exactly. */
import { HeddleError } from '../errors.js'
import { pause } from '../graph/pause.js'

/** What a matrix costs with one of its configurations. */
export interface Choice {
  readonly error: number
  readonly bits: number
}

/** An optimum. */
export interface BitAllocation {
  /** For every matrix, the index of its configuration. */
  readonly chosen: readonly number[]
  readonly error: number
  readonly bits: number
}

/**
 * Minimises Σ error subject to Σ bits ≤ budget, one choice for every matrix. Branch and bound: without integrality the
 * optimum takes the steps of every matrix's lower convex hull in the order of their slopes, and at most the last one in
 * part. That is a bound, and without the last step a solution; the matrix of that step is what is branched on.
 * @param choices of every matrix, at least one
 * @param tolerance how far above the optimum the result's error may be, relative to it; default 1e-6
 * @throws ERR_HEDDLE_ARGUMENT when even the smallest choices do not fit
 */
export async function allocateBits(
  choices: readonly (readonly Choice[])[],
  budget: number,
  tolerance = 1e-6,
): Promise<BitAllocation> {
  const useful = choices.map(undominated)
  let best: BitAllocation | undefined
  const open: Range[][] = [useful.map((list) => ({ from: 0, to: list.length }))]
  for (let ranges = open.pop(); ranges; ranges = open.pop()) {
    await pause()
    const found = relaxed(useful, ranges, budget)
    if (!found || (best && found.bound >= best.error * (1 - tolerance))) continue
    if (!best || found.error < best.error) best = { ...found, chosen: found.chosen.map((k, i) => useful[i]![k]!.index) }
    if (!found.partial) continue
    const { matrix, to } = found.partial
    const range = ranges[matrix]!
    open.push(ranges.with(matrix, { from: range.from, to }), ranges.with(matrix, { from: to, to: range.to }))
  }
  if (best) return best
  const least = useful.reduce((total, list) => total + list[0]!.bits, 0)
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'allocateBits: budget',
    expected: `at least ${least} bits, what the smallest configurations take`,
    got: `${budget}`,
  })
}

/** Choices from … to, the end not included. */
interface Range {
  readonly from: number
  readonly to: number
}

interface Indexed extends Choice {
  readonly index: number
}

/** Ascending in bits and descending in error. */
function undominated(choices: readonly Choice[]): Indexed[] {
  const sorted = choices
    .map((choice, index) => ({ ...choice, index }))
    .sort((a, b) => a.bits - b.bits || a.error - b.error)
  const kept: Indexed[] = []
  for (const choice of sorted) if (kept.length === 0 || choice.error < kept.at(-1)!.error) kept.push(choice)
  return kept
}

interface Step {
  readonly matrix: number
  readonly to: number
  readonly bits: number
  readonly gain: number
}

interface Relaxation extends BitAllocation {
  readonly bound: number
  /** The step that fits in part. */
  readonly partial?: Step
}

function relaxed(
  choices: readonly (readonly Indexed[])[],
  ranges: readonly Range[],
  budget: number,
): Relaxation | undefined {
  const chosen = ranges.map(({ from }) => from)
  let bits = chosen.reduce((total, k, i) => total + choices[i]![k]!.bits, 0)
  let error = chosen.reduce((total, k, i) => total + choices[i]![k]!.error, 0)
  if (bits > budget) return undefined
  const steps = ranges.flatMap((range, matrix) => hullSteps(choices[matrix]!, range, matrix))
  steps.sort((a, b) => b.gain / b.bits - a.gain / a.bits)
  for (const step of steps) {
    if (bits + step.bits > budget)
      return { chosen, bits, error, bound: error - (step.gain * (budget - bits)) / step.bits, partial: step }
    bits += step.bits
    error -= step.gain
    chosen[step.matrix] = step.to
  }
  return { chosen, bits, error, bound: error }
}

/** From one corner of the lower convex hull to the next; their slopes fall. */
function hullSteps(list: readonly Indexed[], { from, to }: Range, matrix: number): Step[] {
  const corners: number[] = []
  const slope = (a: number, b: number): number => (list[a]!.error - list[b]!.error) / (list[b]!.bits - list[a]!.bits)
  for (let k = from; k < to; k += 1) {
    while (corners.length > 1 && slope(corners.at(-1)!, k) >= slope(corners.at(-2)!, corners.at(-1)!)) corners.pop()
    corners.push(k)
  }
  return corners.slice(1).map((corner, i) => ({
    matrix,
    to: corner,
    bits: list[corner]!.bits - list[corners[i]!]!.bits,
    gain: list[corners[i]!]!.error - list[corner]!.error,
  }))
}
