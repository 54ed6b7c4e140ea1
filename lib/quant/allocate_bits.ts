/** Which of its configurations every matrix gets under a budget of memory: the multiple-choice knapsack problem, exactly. */
import { HeddleError } from '../errors.js'
import { pause } from '../graph/pause.js'

/** What a matrix costs with one of its configurations. */
export interface Choice {
  readonly error: number
  readonly bits: number
}

/** The best allocation that was found. */
export interface BitAllocation {
  /** For every matrix, the index of its configuration. */
  readonly chosen: readonly number[]
  readonly error: number
  readonly bits: number
  /** No allocation has less error: where it is not the error itself, the search has stopped before it was sure. */
  readonly bound: number
}

/** Options of {@link allocateBits}. */
export interface AllocationOptions {
  /** How far above the optimum the result's error may be, relative to it; default 1e-6. */
  readonly tolerance?: number
  /** Most relaxations that are solved. Hundreds of matrices alike have more allocations alike than can be told apart. Default 1024. */
  readonly relaxations?: number
}

/**
 * Minimises Σ error subject to Σ bits ≤ budget, one choice for every matrix. Branch and bound: without integrality the
 * optimum takes the steps of every matrix's lower convex hull in the order of their slopes, and at most the last one in
 * part. That is a bound; without that step, and with the later ones that still fit, it is a solution. The step's matrix is
 * what is branched on, the least bound first.
 * @param choices of every matrix, at least one
 * @throws ERR_HEDDLE_ARGUMENT when even the smallest choices do not fit
 */
export async function allocateBits(
  choices: readonly (readonly Choice[])[],
  budget: number,
  { tolerance = 1e-6, relaxations = 1024 }: AllocationOptions = {},
): Promise<BitAllocation> {
  const useful = choices.map(undominated)
  const root = relaxed(
    useful,
    useful.map((list) => ({ from: 0, to: list.length })),
    budget,
  )
  if (!root) throw tooLittle(useful, budget)
  let best = root
  const open = [root]
  for (let solved = 1; solved < relaxations; ) {
    const least = open.reduce((found, { bound }, i) => (bound < open[found]!.bound ? i : found), 0)
    if (!(open[least]!.bound < best.error * (1 - tolerance))) break
    const [parent] = open.splice(least, 1)
    for (const ranges of branches(parent!)) {
      const found = relaxed(useful, ranges, budget)
      solved += 1
      if (!found) continue
      if (found.error < best.error) best = found
      if (found.partial) open.push(found)
    }
    if (open.length === 0) break
    await pause()
  }
  const { error, bits } = best
  return {
    chosen: best.chosen.map((k, i) => useful[i]![k]!.index),
    error,
    bits,
    bound: open.reduce((least, { bound }) => Math.min(least, bound), error),
  }
}

function tooLittle(choices: readonly (readonly Indexed[])[], budget: number): HeddleError {
  const least = choices.reduce((total, list) => total + list[0]!.bits, 0)
  return new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'allocateBits: budget',
    expected: `at least ${least} bits, what the smallest configurations take`,
    got: `${budget}`,
  })
}

/** The matrix of the step that fits in part stays below it, or goes beyond. */
function branches({ ranges, partial }: Relaxation): Range[][] {
  if (!partial) return []
  const { matrix, to } = partial
  const range = ranges[matrix]!
  return [ranges.with(matrix, { from: range.from, to }), ranges.with(matrix, { from: to, to: range.to })]
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
  readonly from: number
  readonly to: number
  readonly bits: number
  readonly gain: number
}

interface Relaxation extends BitAllocation {
  readonly ranges: readonly Range[]
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
  let partial: Step | undefined
  let bound = 0
  for (const step of steps) {
    if (bits + step.bits > budget) {
      if (!partial) bound = error - (step.gain * (budget - bits)) / step.bits
      partial ??= step
      continue
    }
    // A matrix whose earlier step did not fit stays where it is.
    if (chosen[step.matrix] !== step.from) continue
    bits += step.bits
    error -= step.gain
    chosen[step.matrix] = step.to
  }
  return { ranges, chosen, bits, error, bound: partial ? bound : error, ...(partial ? { partial } : {}) }
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
    from: corners[i]!,
    to: corner,
    bits: list[corner]!.bits - list[corners[i]!]!.bits,
    gain: list[corners[i]!]!.error - list[corner]!.error,
  }))
}
