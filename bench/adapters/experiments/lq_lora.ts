/** LQ-LoRA on SmolLM2: what the low-rank part gives back of what quantising takes, and what its bits under a budget are worth. */
import { Adapter } from '../../../lib/adapters/adapter.js'
import type { Attachment } from '../../../lib/adapters/attachment.js'
import { lora } from '../../../lib/adapters/methods/lora.js'
import { lqLora } from '../../../lib/adapters/methods/lq_lora.js'
import { configOf, type LqLoraCandidate, type LqLoraConfig } from '../../../lib/adapters/methods/lq_lora_config.js'
import { choicesAt } from '../../../lib/adapters/methods/lq_lora_data.js'
import type { Parametrization } from '../../../lib/adapters/parametrization.js'
import { computed } from '../../../lib/graph/computed.js'
import { square, sub } from '../../../lib/graph/ops/elementwise.js'
import { sum } from '../../../lib/graph/ops/reduce.js'
import { read } from '../../../lib/graph/sym.js'
import { loadModel, type Model } from '../../../lib/model.js'
import type { Site } from '../../../lib/nn/site.js'
import { causalLm } from '../../../lib/objectives/causal_lm.js'
import { adamw } from '../../../lib/optim/adamw.js'
import { allocateBits, type Choice } from '../../../lib/quant/allocate_bits.js'
import { dequantised, quantised } from '../../../lib/quant/normal_float.js'
import { evaluate } from '../../../lib/train/evaluate.js'
import { train } from '../../../lib/train/train.js'
import { type Finding, mean } from '../experiment.js'
import { type Files, textFiles } from '../files.js'
import { digits } from '../toy.js'

export const setting =
  'SmolLM2-135M, all 210 modules of its blocks, r = 16, 2 iterations: relative error of the weights, and loss on 12 mails of people (128 tokens a row), (a) quantised to NF3 alone, (c) LQ with the same bits everywhere, (b) LQ with a budget of 3 bits, 6 candidates judged by 1 iteration. Then 20 steps of 2 x 64 tokens, Adam 2e-4, from (a) with a LoRA that begins at 0, and from (c).'

const nf3: LqLoraCandidate = [3, 8, 'fp32', 64, 64]
const candidates = ([2, 3, 4] as const).flatMap((bits) =>
  [16, 64].map((block): LqLoraCandidate => [bits, 8, 'fp32', block, 64]),
)
const options = { num_ranks: 16, lora_alpha: 16, num_iterations: 2 } as const

export async function* run(): AsyncGenerator<Finding> {
  const files = await textFiles([160, 184, 196])
  const model = await loadModel(files.model)
  const original = await lossOf(model, files)
  const uniform = { ...configOf(nf3), ...options }
  const alone = await measured(model, files, nf3Lora())
  const everywhere = await measured(model, files, lqLora(uniform))
  yield {
    statement: '(c) is nearer to the model than (a), in weights and in loss',
    measured: `errors ${digits(alone.error)} (a) and ${digits(everywhere.error)} (c); losses ${text(original)} (the model), ${text(alone.loss)} (a), ${text(everywhere.loss)} (c)`,
    held: everywhere.error < alone.error && everywhere.loss < alone.loss,
  }
  yield* budgets(model, files, { everywhere: everywhere.loss })
  yield* training(model, files)
  await model.dispose()
}

/** What is known of a module: what each candidate costs, and ‖W‖². */
interface Module {
  readonly site: Site
  readonly choices: readonly Choice[]
  readonly size: number
}

async function* budgets(model: Model, files: Files, losses: { readonly everywhere: number }): AsyncGenerator<Finding> {
  const modules: Module[] = []
  const method = lqLora({ ...options, num_iterations: 1 })
  for (const site of model.network.sites.values())
    if (site.kind === 'linear' && !site.isOutput)
      modules.push({
        site,
        choices: await choicesAt(site, method.config as LqLoraConfig, { candidates }),
        size: await norm(site),
      })
  const errors: number[] = []
  for (const budget of [2.5, 3, 3.5, 4]) errors.push(errorOf(modules, await allocated(modules, budget, () => 1)))
  yield {
    statement: 'the error falls with the budget: 2.5, 3, 3.5 and 4 bits',
    measured: errors.map(digits).join(', '),
    held: errors.every((error, i) => i === 0 || error < errors[i - 1]!),
  }
  const plain = await allocated(modules, 3, () => 1)
  const relative = await allocated(modules, 3, ({ size }) => 1 / size)
  const [own, other] = [
    await measured(model, files, ofChoice(modules, plain)),
    await measured(model, files, ofChoice(modules, relative)),
  ]
  const [few, otherFew] = [plain, relative].map((chosen) =>
    modules.filter((_, i) => candidates[chosen[i]!]![0] === 2),
  ) as [Module[], Module[]]
  const [poorest, all] = [few, modules].map((some) => mean(some.map(({ site, size }) => size / site.weight.size)))
  yield {
    statement: '(b), with 3 bits for 3.13, loses no more than a twentieth more than (c)',
    measured: `losses ${text(own.loss)} (b) and ${text(losses.everywhere)} (c), errors of the weights ${digits(own.error)} (b); ${few.length} modules get 2 bits: ${kindsOf(few)}; their mean squared weight is ${digits(poorest! / all!)} times that of all`,
    held: own.loss < 1.05 * losses.everywhere,
  }
  yield {
    statement:
      'errors relative to each weight’s norm choose otherwise: a smaller loss than (b) from a larger error of the weights',
    measured: `loss ${text(other.loss)}, error of the weights ${digits(other.error)}; ${otherFew.length} modules get 2 bits: ${kindsOf(otherFew)}`,
    held: other.loss < own.loss && other.error > own.error,
  }
}

/** The candidate of every module under a budget, its errors counted so many times. */
const allocated = async (
  modules: readonly Module[],
  budget: number,
  weightOf: (module: Module) => number,
): Promise<readonly number[]> => {
  const weighted = modules.map((each) =>
    each.choices.map(({ error, bits }) => ({ bits, error: error * weightOf(each) })),
  )
  const total = modules.reduce((count, { site }) => count + site.weight.size, 0)
  return (await allocateBits(weighted, budget * total)).chosen
}

const errorOf = (modules: readonly Module[], chosen: readonly number[]): number =>
  Math.sqrt(
    modules.reduce((total, { choices }, i) => total + choices[chosen[i]!]!.error, 0) /
      modules.reduce((total, { size }) => total + size, 0),
  )

const ofChoice = (modules: readonly Module[], chosen: readonly number[]): Parametrization =>
  lqLora({
    ...options,
    configurations: Object.fromEntries(modules.map(({ site }, i) => [site.path, candidates[chosen[i]!]!])),
  })

/** How many modules of which names. */
function kindsOf(modules: readonly Module[]): string {
  const counts = new Map<string, number>()
  for (const { site } of modules) {
    const name = site.path.split('.').at(-1)!
    counts.set(name, (counts.get(name) ?? 0) + 1)
  }
  return [...counts].map(([name, count]) => `${count} ${name}`).join(', ')
}

async function* training(model: Model, files: Files): AsyncGenerator<Finding> {
  const curves: number[][] = []
  const after: number[] = []
  for (const method of [nf3Lora(), lqLora({ ...configOf(nf3), ...options })]) {
    const losses: number[] = []
    const steps = train(model, {
      method,
      data: files.training,
      optimizer: adamw({ lr: 2e-4, weightDecay: 0 }),
      batchSize: 2,
      maxLength: 64,
      maxSteps: 20,
      seed: 0,
    })
    for await (const { loss } of steps) losses.push(loss)
    const adapter = model.adapters.at(-1)!
    after.push(await lossOf(model, files, adapter))
    curves.push(losses)
    adapter.dispose()
  }
  const [from, lq] = curves.map((losses) => mean(losses.slice(0, 5)))
  yield {
    statement: 'LQ starts at a lower loss than NF3 with a LoRA that begins at 0, and is still below it after 20 steps',
    measured: `first five steps ${text(lq!)} against ${text(from!)}; held-out loss after 20 ${text(after[1]!)} against ${text(after[0]!)}`,
    held: lq! < from! && after[1]! < after[0]!,
  }
}

/** A LoRA that begins at 0 on weights that are quantised to NF3: QLoRA's beginning. */
function nf3Lora(): Parametrization {
  const inner = lora({ r: 16, lora_alpha: 16, target_modules: 'all-linear' })
  const code = configOf(nf3)
  return {
    ...inner,
    plan: (site) => ({
      ...inner.plan(site),
      prepare: async ({ weight }) => ({
        values: {},
        weight: await computed(() => dequantised(quantised(read(weight), code), code, weight.shape)),
      }),
    }),
  }
}

const text = (loss: number): string => loss.toFixed(3)

/** A fresh adapter's distance from the model. */
async function measured(
  model: Model,
  files: Files,
  method: Parametrization,
): Promise<{ readonly error: number; readonly loss: number }> {
  const adapter = await Adapter.attach(model.network, method)
  try {
    let [missed, size] = [0, 0]
    for (const attachment of adapter.attachments.values()) {
      missed += await missedAt(attachment)
      size += await norm(attachment.site)
    }
    return { error: Math.sqrt(missed / size), loss: await lossOf(model, files, adapter) }
  } finally {
    adapter.dispose()
  }
}

/** ‖W − W'‖², W' the weight with which the module computes. */
async function missedAt({ site, plan, parameters, buffers, weight }: Attachment): Promise<number> {
  using missed = await computed(() => {
    const own = plan!.merged!({ weight: read(weight!), bias: undefined, parameters, buffers }).weight
    return sum(square(sub(read(site.weight), own)))
  })
  return missed.item()
}

/** ‖W‖² */
async function norm({ weight }: Site): Promise<number> {
  using found = await computed(() => sum(square(read(weight))))
  return found.item()
}

async function lossOf(model: Model, { test }: Files, adapter?: Adapter): Promise<number> {
  const objective = causalLm()
  const { tokenizer, network } = model
  const data = await objective.open(test, { tokenizer, network, maxLength: 128, evaluationFraction: 0, seed: 0 })
  return (await evaluate(model, data, { objective, adapter, batchSize: 4 })).loss
}
