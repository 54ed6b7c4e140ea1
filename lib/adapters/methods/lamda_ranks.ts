/** LaMDA++: how ranks are shared out between modules by what their spectra leave uncovered. */
import { HeddleError } from '../../errors.js'

/** A module and the singular values of its weight, descending. */
export interface Allocation {
  readonly path: string
  readonly spectrum: readonly number[]
}

/** Options of {@link allocateRanks}. */
export interface AllocationOptions {
  /** The ranks there are; a module has those that its weight allows. */
  readonly candidates: readonly number[]
  /** Most that the ranks may be on average. */
  readonly budget: number
}

/**
 * Ranks by path. All begin with the smallest candidate; then, as long as the budget allows, the next larger one goes to the
 * modules whose rank covers the smallest part of their energy, Σⱼ≤ᵣ sⱼ² / Σⱼ sⱼ². Modules that are equally covered get it
 * together or not at all, so that equal spectra have equal ranks. What is left of the budget is less than such a step.
 * @throws ERR_HEDDLE_ARGUMENT when the smallest candidate is above the budget, or above what a weight allows
 */
export function allocateRanks(
  modules: readonly Allocation[],
  { candidates, budget }: AllocationOptions,
): ReadonlyMap<string, number> {
  const ladder = [...new Set(candidates)].sort((a, b) => a - b)
  const lowest = ladder[0]!
  if (lowest > budget) throw misuse('budget', `a mean of at least ${lowest}, the smallest candidate`, `${budget}`)
  const small = modules.find(({ spectrum }) => spectrum.length < lowest)
  if (small) throw misuse(small.path, `a rank of at most ${small.spectrum.length}`, `${lowest}`)
  const ranks = new Map(modules.map(({ path }) => [path, lowest]))
  const covered = new Map(modules.map((each) => [each.path, coverage(each.spectrum)]))
  let left = budget * modules.length - lowest * modules.length
  const isStuck = new Set<string>()
  const nextOf = ({ path, spectrum }: Allocation): number | undefined =>
    ladder.find((rank) => rank > ranks.get(path)! && rank <= spectrum.length)
  const energyOf = ({ path }: Allocation): number => covered.get(path)![ranks.get(path)! - 1]!
  for (;;) {
    const open = modules.filter((each) => !isStuck.has(each.path) && nextOf(each) !== undefined && energyOf(each) < 1)
    if (open.length === 0) return ranks
    const least = Math.min(...open.map(energyOf))
    const group = open.filter((each) => energyOf(each) - least < 1e-6)
    const cost = group.reduce((total, each) => total + nextOf(each)! - ranks.get(each.path)!, 0)
    if (cost > left) for (const { path } of group) isStuck.add(path)
    else {
      left -= cost
      for (const each of group) ranks.set(each.path, nextOf(each)!)
    }
  }
}

/** The part of the energy that the first 1, 2, … singular values are; all of it where there is none. */
function coverage(spectrum: readonly number[]): number[] {
  const total = spectrum.reduce((sum, s) => sum + s * s, 0)
  let sum = 0
  return spectrum.map((s) => {
    sum += s * s
    return total === 0 ? 1 : Math.min(1, sum / total)
  })
}

const misuse = (what: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: `lamda: ${what}`, expected, got })
