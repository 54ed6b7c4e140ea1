/** Which evaluation was the best so far, and when to stop looking for a better one: as transformers' Trainer decides. */
import { HeddleError } from '../errors.js'
import type { EvaluationResult } from '../objectives/objective.js'
import type { TrainSettings } from './options.js'

/** What a run remembers of its evaluations; part of its checkpoints. */
export interface BestSoFar {
  readonly best?: { readonly step: number; readonly value: number } | undefined
  /** Evaluations in a row that were no improvement. */
  readonly stale: number
}

type BestSettings = Pick<TrainSettings, 'metricForBestModel' | 'greaterIsBetter' | 'earlyStoppingThreshold'>

/** The memory after one more evaluation. @throws ERR_HEDDLE_ARGUMENT when it has no such metric */
export function judged(
  memory: BestSoFar,
  { step, evaluation }: { readonly step: number; readonly evaluation: EvaluationResult },
  settings: BestSettings,
): BestSoFar {
  const { metricForBestModel: name, earlyStoppingThreshold: threshold } = settings
  const value: unknown = Reflect.get(evaluation, name)
  if (typeof value !== 'number') throw unknownMetric(name, evaluation)
  const greater = settings.greaterIsBetter ?? !['loss', 'perplexity'].includes(name)
  const { best } = memory
  const gain = best === undefined ? Number.POSITIVE_INFINITY : greater ? value - best.value : best.value - value
  const isBetter = !Number.isNaN(value) && gain > 0
  return {
    best: isBetter ? { step, value } : best,
    stale: isBetter && gain > threshold ? 0 : memory.stale + 1,
  }
}

function unknownMetric(name: string, evaluation: EvaluationResult): HeddleError {
  const known = Object.entries(evaluation).flatMap(([key, value]) => (typeof value === 'number' ? [key] : []))
  return new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'train.metricForBestModel',
    expected: `one of ${known.join(', ')}`,
    got: `"${name}"`,
  })
}
