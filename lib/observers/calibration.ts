/** Data by which a method learns about a network before it changes it. */
import type { Precision } from '../graph/ops/matmul.js'
import type { Network } from '../nn/network.js'
import type { Objective, TrainingData } from '../objectives/objective.js'

/** Batches of a task, to be run through a network as often as a method needs them. */
export interface Calibration<N extends Network = Network, B = unknown> {
  readonly objective: Objective<N, B>
  /** The same batches in the same order at every call. */
  readonly batches: () => AsyncIterable<B>
  /** How many there are, for progress; default: not known. */
  readonly batchCount?: number
  /** Default `f32`. */
  readonly precision?: Precision
}

/** What goes along with running batches. */
export interface Watch {
  /** Stops between two instructions: ERR_HEDDLE_ABORTED. */
  readonly signal?: AbortSignal | undefined
  /** Called after each batch; `total` is 0 where it is not known. */
  readonly onBatch?: ((done: number, total: number) => void) | undefined
}

/** Options of {@link calibrationOf}. */
export interface CalibrationOptions {
  /** Most batches. Default 16. */
  readonly batches?: number
  /** Default 4. */
  readonly batchSize?: number
  /** Which examples they are. Default 0. */
  readonly seed?: number
  readonly precision?: Precision
}

/** The first batches of a shuffled epoch of the data that {@link Objective.open} gave. */
export function calibrationOf<N extends Network, B>(
  objective: Objective<N, B>,
  data: TrainingData<B>,
  { batches = 16, batchSize = 4, seed = 0, precision }: CalibrationOptions = {},
): Calibration<N, B> {
  return {
    objective,
    batches: () => first(data.batches({ batchSize, seed }), batches),
    batchCount: Math.min(batches, data.batchCount(batchSize)),
    ...(precision ? { precision } : {}),
  }
}

async function* first<T>(all: AsyncGenerator<T>, count: number): AsyncGenerator<T> {
  let given = 0
  if (count === 0) return
  for await (const each of all) {
    yield each
    given += 1
    if (given === count) return
  }
}
