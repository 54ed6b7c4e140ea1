/** The batches that test/golden/make_eva.py shows PEFT's EVA, as a calibration. */
import type { Batch } from '../../lib/data/dataset.js'
import { causalLm } from '../../lib/objectives/causal_lm.js'
import type { Calibration } from '../../lib/observers/calibration.js'
import { goldenJson } from '../golden.js'

type Rows = readonly (readonly number[])[]

interface EvaGoldens {
  readonly base: string
  readonly targets: readonly string[]
  readonly batches: readonly { readonly input_ids: Rows; readonly attention_mask: Rows; readonly labels: Rows }[]
  readonly cases: Readonly<
    Record<
      string,
      {
        readonly eva_config: Readonly<Record<string, number | boolean>>
        readonly ranks: Readonly<Record<string, number>>
        readonly alpha_pattern: Readonly<Record<string, number>>
      }
    >
  >
}

export const evaGoldens = goldenJson<EvaGoldens>('eva.golden.json')

const batchOf = ({ input_ids: ids, attention_mask: mask, labels }: EvaGoldens['batches'][number]): Batch => {
  const targets = Int32Array.from(labels.flatMap((row) => [...row.slice(1), -100]))
  return {
    rows: ids.length,
    length: ids[0]!.length,
    inputIds: Int32Array.from(ids.flat()),
    targets,
    segments: Int32Array.from(mask.flat(), (value) => value - 1),
    tokens: targets.filter((target) => target >= 0).length,
  }
}

/** Those batches, or the first of them. */
export const evaCalibration = (count = evaGoldens.batches.length): Calibration =>
  ({
    objective: causalLm(),
    async *batches() {
      yield* evaGoldens.batches.slice(0, count).map(batchOf)
    },
  }) as Calibration
