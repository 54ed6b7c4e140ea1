/** The variants of LoRA that test/golden/make_adapters.py makes, and running a tiny model with them. */

import type { Adapter } from '../../lib/adapters/adapter.js'
import type { LoraOptions } from '../../lib/adapters/methods/lora_config.js'
import type { Batch } from '../../lib/data/dataset.js'
import { slice } from '../../lib/graph/ops/index.js'
import { reshape } from '../../lib/graph/ops/reduce.js'
import { program } from '../../lib/graph/program.js'
import type { CausalLm } from '../../lib/models/causal_lm.js'
import type { SiteHook } from '../../lib/nn/site.js'
import { causalLm } from '../../lib/objectives/causal_lm.js'
import { adamw } from '../../lib/optim/adamw.js'
import { clipByGlobalNorm } from '../../lib/optim/clip.js'
import { chain, type GradientTransform } from '../../lib/optim/gradient_transform.js'
import { type StepResult, type TrainingStep, trainingStep } from '../../lib/optim/training_step.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import { goldenJson } from '../golden.js'

export interface Variant {
  /** Folder of the base model in test/golden. */
  readonly base: string
  readonly options: LoraOptions & { readonly target_modules: string | readonly string[] }
  readonly trainable: number
  readonly ids: readonly (readonly number[])[]
  readonly labels: readonly (readonly number[])[]
  /** Before each of five steps, and after the last. */
  readonly losses: readonly number[]
  readonly gradient_norms: readonly number[]
}

interface AdapterGoldens {
  readonly clip: number
  readonly optimizer: { readonly lr: number; readonly eps: number; readonly weight_decay: number }
  readonly variants: Readonly<Record<string, Variant>>
}

export const goldens = goldenJson<AdapterGoldens>('adapters.golden.json')

/** What every adapter of the goldens begins with. */
export const shared: LoraOptions = { r: 4, lora_alpha: 6 }

export const idsTensor = (rows: readonly (readonly number[])[]): Tensor =>
  tensor(Int32Array.from(rows.flat()), [rows.length, rows[0]!.length])

/** Logits of every eighth position, `[b, ⌈t/8⌉, vocabulary]`. */
export async function logits(
  model: CausalLm,
  rows: readonly (readonly number[])[],
  adapter?: { readonly hook: SiteHook },
): Promise<Tensor> {
  const forward = { precision: 'f32' as const, training: false, hook: adapter?.hook }
  const step = program(async (ids) => {
    const [b, t] = ids!.shape as [number, number]
    const hidden = await model.hidden({ ids: ids! }, forward)
    const all = reshape(model.logits(hidden, forward), [b, t, model.vocabularySize])
    return slice(all, [{ axis: 1, start: 0, end: t, step: 8 }])
  })
  const result = await step(idsTensor(rows))
  step.dispose()
  return result
}

/** Next-token targets of unshifted labels. */
export function batchOf({ ids, labels }: Pick<Variant, 'ids' | 'labels'>): Batch {
  const length = ids[0]!.length
  const targets = Int32Array.from(labels.flatMap((row) => [...row.slice(1), -100]))
  return {
    rows: ids.length,
    length,
    inputIds: Int32Array.from(ids.flat()),
    targets,
    segments: new Int32Array(ids.length * length),
    tokens: targets.filter((target) => target >= 0).length,
  }
}

/** Steps of an adapter, with what its method does around an update. */
export function stepOf(
  model: CausalLm,
  adapter: Adapter,
  rule: GradientTransform,
  totalSteps: number,
): Promise<TrainingStep<Batch>> {
  const parameters = adapter.parameters()
  return trainingStep({
    network: model,
    objective: causalLm(),
    hook: adapter.hook,
    penalty: () => adapter.penalty(),
    parameters: [...parameters.values()],
    optimizer: adapter.method.optimizer?.(rule, { names: [...parameters.keys()], totalSteps }) ?? rule,
  })
}

/** Five AdamW steps as make_adapters.py takes them. */
export async function trainFiveSteps(
  model: CausalLm,
  adapter: Adapter,
  variant: Pick<Variant, 'ids' | 'labels'>,
): Promise<StepResult[]> {
  const { lr, eps, weight_decay: weightDecay } = goldens.optimizer
  const rule = chain(clipByGlobalNorm(goldens.clip), adamw({ lr, eps, weightDecay }))
  const step = await stepOf(model, adapter, rule, 5)
  const batch = batchOf(variant)
  const results: StepResult[] = []
  for (let index = 1; index <= 5; index += 1)
    results.push(await step.run({ batches: [batch], step: index, learningRate: lr }))
  step.dispose()
  return results
}
