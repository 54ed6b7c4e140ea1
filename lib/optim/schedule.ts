/**
 * Learning-rate schedules: a factor on the base rate, by step, under the names and with the formulas of transformers.
 * The warm-up ends with a whole step of factor 1, and the decay's first step is whole too, so that even a single step
 * learns: after the warm-up, step k has the factor that transformers gives to k − 1.
 */

/** Factor on the base learning rate for step 1, 2, … of `total`. */
export type Schedule = (step: number, total: number) => number

/** Course after the warm-up: factor by steps since, and by the number of steps that the decay has. */
type Decay = (since: number, steps: number) => number

const afterWarmup =
  (warmupSteps: number, decay: Decay): Schedule =>
  (step, total) =>
    step <= warmupSteps ? step / warmupSteps : decay(step - 1 - warmupSteps, Math.max(1, total - warmupSteps))

const share = (since: number, steps: number): number => Math.min(1, Math.max(0, since) / steps)
const halfCosine = (progress: number): number => 0.5 * (1 + Math.cos(Math.PI * progress))

/** Always 1 after a linear warm-up of `warmupSteps`. */
export const constantSchedule = (warmupSteps = 0): Schedule => afterWarmup(warmupSteps, () => 1)

/** Linear warm-up, then a straight line from 1 towards 0. */
export const linearSchedule = (warmupSteps = 0): Schedule =>
  afterWarmup(warmupSteps, (since, steps) => 1 - share(since, steps))

/** Linear warm-up, then half a cosine from 1 towards `final`: `cosine`, and `cosine_with_min_lr` where that is not 0. */
export const cosineSchedule = (warmupSteps = 0, final = 0): Schedule =>
  afterWarmup(warmupSteps, (since, steps) => final + (1 - final) * halfCosine(share(since, steps)))

/** Linear warm-up, then `cycles` half cosines from 1 towards 0, each jumping back to 1 (SGDR, arXiv 1608.03983). */
export const cosineWithRestartsSchedule = (warmupSteps = 0, cycles = 1): Schedule =>
  afterWarmup(warmupSteps, (since, steps) => {
    const progress = share(since, steps)
    return progress >= 1 ? 0 : halfCosine((cycles * progress) % 1)
  })

/** Linear warm-up, then (1 − final) (1 − progress)^power + final. */
export const polynomialSchedule = (warmupSteps = 0, power = 1, final = 0): Schedule =>
  afterWarmup(warmupSteps, (since, steps) => (1 - final) * (1 - share(since, steps)) ** power + final)

/** Linear warm-up, then 1/√(1 + steps since / timescale); `timescale` defaults to the warm-up, or 10,000 without one. */
export const inverseSqrtSchedule = (warmupSteps = 0, timescale = warmupSteps || 10_000): Schedule =>
  afterWarmup(warmupSteps, (since) => 1 / Math.sqrt((since + timescale) / timescale))

/**
 * Linear warm-up, a plateau of 1, then half a cosine to `final` over the last `decaySteps` (Hu et al. 2024, arXiv
 * 2404.06395).
 */
export const warmupStableDecaySchedule =
  (warmupSteps = 0, decaySteps = 1, final = 0): Schedule =>
  (step, total) => {
    const stable = Math.max(0, total - warmupSteps - decaySteps)
    const decay: Decay = (since) => final + (1 - final) * halfCosine(share(since - stable, decaySteps))
    return afterWarmup(warmupSteps, decay)(step, total)
  }

/** Named courses of the learning rate, with transformers' names. */
export const scheduleNames = [
  'constant',
  'linear',
  'cosine',
  'cosine_with_restarts',
  'cosine_with_min_lr',
  'polynomial',
  'inverse_sqrt',
  'warmup_stable_decay',
] as const

/** One of {@link scheduleNames}. */
export type ScheduleName = (typeof scheduleNames)[number]

/** What some schedules ask for besides the warm-up: transformers' `lr_scheduler_kwargs`. */
export interface SchedulerOptions {
  /** `cosine_with_restarts`: number of half cosines; default 1. */
  readonly numCycles?: number | undefined
  /** `polynomial`: exponent; default 1. */
  readonly power?: number | undefined
  /** `cosine_with_min_lr`, `polynomial`, `warmup_stable_decay`: last factor on the base rate, 0 to 1; default 0. */
  readonly minLrRate?: number | undefined
  /** `inverse_sqrt`: steps after which the rate has fallen by √2; default: the warm-up's, or 10,000 without one. */
  readonly timescale?: number | undefined
  /** `warmup_stable_decay`: steps of the decay; default a tenth of the run. */
  readonly numDecaySteps?: number | undefined
}

/** The schedule of that name for a run of `total` steps. */
export function namedSchedule(
  name: ScheduleName,
  warmupSteps: number,
  total: number,
  { numCycles, power, minLrRate, timescale, numDecaySteps }: SchedulerOptions = {},
): Schedule {
  switch (name) {
    case 'constant':
      return constantSchedule(warmupSteps)
    case 'linear':
      return linearSchedule(warmupSteps)
    case 'cosine':
      return cosineSchedule(warmupSteps)
    case 'cosine_with_restarts':
      return cosineWithRestartsSchedule(warmupSteps, numCycles)
    case 'cosine_with_min_lr':
      return cosineSchedule(warmupSteps, minLrRate)
    case 'polynomial':
      return polynomialSchedule(warmupSteps, power, minLrRate)
    case 'inverse_sqrt':
      return inverseSqrtSchedule(warmupSteps, timescale)
    case 'warmup_stable_decay':
      return warmupStableDecaySchedule(warmupSteps, numDecaySteps ?? Math.ceil(total / 10), minLrRate)
  }
}
