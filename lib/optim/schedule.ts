/** Learning-rate schedules: a factor on the base rate, by step. */

/** Factor on the base learning rate for step 1, 2, … of `total`. */
export type Schedule = (step: number, total: number) => number

/** Always 1 after a linear warm-up of `warmupSteps`. */
export const constantSchedule =
  (warmupSteps = 0): Schedule =>
  (step) =>
    warmupFactor(step, warmupSteps)

/** Linear warm-up, then half a cosine from 1 towards `final` (transformers' `cosine` has final 0). */
export const cosineSchedule =
  (warmupSteps = 0, final = 0): Schedule =>
  (step, total) => {
    const progress = decayProgress(step, total, warmupSteps)
    return warmupFactor(step, warmupSteps) * (final + (1 - final) * 0.5 * (1 + Math.cos(Math.PI * progress)))
  }

/** Linear warm-up, then a straight line from 1 towards 0, as transformers' `linear`. */
export const linearSchedule =
  (warmupSteps = 0): Schedule =>
  (step, total) =>
    warmupFactor(step, warmupSteps) * (1 - decayProgress(step, total, warmupSteps))

const warmupFactor = (step: number, warmupSteps: number): number => Math.min(1, step / Math.max(1, warmupSteps))

/** Share of the decay before this step: 0 at the first one after the warm-up, so that even a single step learns. */
const decayProgress = (step: number, total: number, warmupSteps: number): number =>
  Math.min(1, Math.max(0, step - 1 - warmupSteps) / Math.max(1, total - warmupSteps))
