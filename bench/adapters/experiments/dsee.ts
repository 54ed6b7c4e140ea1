/** What DSEE's sparse part is good for, and what its scores say of heads that are left out. */
import type { Adapter } from '../../../lib/adapters/adapter.js'
import { type DseeOptions, dsee } from '../../../lib/adapters/methods/dsee.js'
import { dseeSave } from '../../../lib/adapters/methods/dsee_save.js'
import { dseePruneStructured } from '../../../lib/adapters/methods/dsee_structured.js'
import { computed } from '../../../lib/graph/computed.js'
import { add } from '../../../lib/graph/ops/elementwise.js'
import { program } from '../../../lib/graph/program.js'
import { read } from '../../../lib/graph/sym.js'
import { loadSequenceClassifier, type SequenceClassifier } from '../../../lib/sequence_classifier.js'
import { type Tensor, tensor } from '../../../lib/tensor/tensor.js'
import { randomNumbers } from '../../../test/random_numbers.js'
import { temporaryFolder } from '../../../test/support/temporary_folder.js'
import { type Finding, mean } from '../experiment.js'
import { type Files, mailFiles } from '../files.js'
import { mailAccuracy, mailModel, percent, trainOnMails } from '../mail_task.js'
import { adapt, digits, lossOf, normal, outer, scaledTo, shifted, type Task } from '../toy.js'

export const setting = `(1) A linear module [64, 64] with 16 spikes learns a change of rank 2 and 16 single numbers, of equal norms (512 normal inputs, Adam 1e-2, 1500 steps, three seeds): relative errors of the change. (2) Spam or ham with MiniLM: 40 steps of 16 mails, 3 of 12 heads of each layer pruned, 15 steps more; accuracy on 256 others, two seeds.`

export async function* run(): AsyncGenerator<Finding> {
  yield* updates()
  yield* heads()
}

const seeds = [1, 2, 3]

async function* updates(): AsyncGenerator<Finding> {
  const errors = new Map<string, number[]>()
  const note = async (name: string, task: Task, options: DseeOptions, seed: number): Promise<void> => {
    const { lora_r: r = 2 } = options
    const method = dsee({ lora_r: r, lora_alpha: r, num_sparse: 16, target_modules: ['proj'], ...options })
    const { loss } = await adapt(task, method, { lr: 1e-2, steps: 1500 }, seed)
    errors.set(name, [...(errors.get(name) ?? []), Math.sqrt(loss / (await lossOf(task)))])
  }
  for (const seed of seeds) {
    const shared = await spiked(100 * seed, true)
    const apart = await spiked(100 * seed, false)
    for (const r of [2, 3, 4]) await note(`rank ${r}`, shared, { lora_r: r, num_sparse: 0 }, seed)
    await note('found by omp', shared, { sparse_method: 'omp' }, seed)
    await note('found by grebsmo', shared, { sparse_method: 'grebsmo', outer: 2 }, seed)
    await note('random', shared, { sparse_method: 'rp' }, seed)
    await note('spikes elsewhere', apart, { sparse_method: 'omp' }, seed)
  }
  const of = (name: string): number => mean(errors.get(name)!)
  const text = (...names: readonly string[]): string => names.map((name) => `${name} ${digits(of(name))}`).join(', ')
  yield {
    statement: 'higher ranks help little: 2, 3 and 4 come in this order, and none below 0.5',
    measured: `${text('rank 2', 'rank 3', 'rank 4')}; the sheet has 0.68, 0.59 to 0.63 and 0.52 to 0.58`,
    held: of('rank 2') > of('rank 3') && of('rank 3') > of('rank 4') && of('rank 4') > 0.5,
  }
  yield {
    statement:
      'rank 2 with 16 numbers at the largest of the weight (omp) learns nearly everything, if the change has its own there',
    measured: `${text('found by omp')}; the sheet has 0.000`,
    held: of('found by omp') < 0.05,
  }
  yield {
    statement: '… and so it does at those of the decomposition (grebsmo, to rank 6)',
    measured: text('found by grebsmo'),
    held: of('found by grebsmo') < 0.05,
  }
  yield {
    statement: '… and nothing more than rank 2 if it has them elsewhere, or at random places',
    measured: `${text('spikes elsewhere', 'random')}; the sheet has 0.68`,
    held: Math.min(of('spikes elsewhere'), of('random')) > 0.95 * of('rank 2'),
  }
}

/** A weight with 16 large numbers, and a change with 16 single numbers at the same places or at others. */
async function spiked(seed: number, areShared: boolean): Promise<Task> {
  const places = Array.from(randomNumbers(32, seed), (value) => Math.floor(((value + 1) / 2) * 4096))
  const at = (from: number, size: number): Tensor => {
    const values = new Float32Array(4096)
    for (const [i, place] of places.slice(from, from + 16).entries()) values[place] = i % 2 === 0 ? size : -size
    return tensor(values, [64, 64])
  }
  const dense = await normal([64, 64], seed + 1, 1 / 8)
  const w = await computed(() => add(read(dense), read(at(0, 2))))
  const low = await scaledTo(await outer(await normal([64, 2], seed + 2), await normal([64, 2], seed + 3)), 1)
  const t = await computed(() => add(read(low), read(at(areShared ? 0 : 16, 0.25))))
  return await shifted(w, t)
}

const modes = ['ABS', 'WABS', 'random'] as const

async function* heads(): AsyncGenerator<Finding> {
  const files = await mailFiles([640, 768, 1024])
  const accuracies: Record<(typeof modes)[number] | 'whole', number[]> = { whole: [], ABS: [], WABS: [], random: [] }
  let last: Speed | undefined
  for (const seed of [1, 2]) {
    const model = await mailModel(files, seed)
    const method = dsee({ lora_r: 16, num_sparse: 16, sparse_method: 'omp', target_modules: ['query', 'value'] })
    const first = await trainOnMails(model, files, { method }, { lr: 2e-3, steps: 40, seed })
    accuracies.whole.push(await mailAccuracy(model, files, first))
    for (const mode of modes) {
      const { adapter } = await dseePruneStructured(first, { prune_heads_num: 3, prune_mode: mode, seed })
      await trainOnMails(model, files, { adapter }, { lr: 1e-3, steps: 15, seed })
      accuracies[mode].push(await mailAccuracy(model, files, adapter))
      if (mode === 'ABS' && seed === 2) last = await speedOf(model, adapter, files)
      adapter.dispose()
    }
    await model.dispose()
  }
  const text = (mode: keyof typeof accuracies): string =>
    `${mode} ${percent(mean(accuracies[mode]))} (${accuracies[mode].map(percent).join(', ')})`
  yield {
    statement: 'heads chosen by ABS or WABS are not worse than random ones, on average',
    measured: [...modes, 'whole' as const].map(text).join('; '),
    held:
      mean(accuracies.whole) > 0.8 && Math.min(mean(accuracies.ABS), mean(accuracies.WABS)) >= mean(accuracies.random),
  }
  const { before, after, same } = last!
  yield {
    statement:
      'the model that dseeSave writes has a quarter fewer flops in attention’s projections and answers as the masked one does',
    measured: `${Math.round(100 * (1 - after.flops / before.flops))} % fewer of all flops (16 × 64 tokens: ${digits(before.flops / 1e9)} and ${digits(after.flops / 1e9)} · 10⁹), ${before.milliseconds.toFixed(0)} and ${after.milliseconds.toFixed(0)} ms a batch (median of 11, in turns); the same accuracy: ${same}`,
    held: same && after.flops < 0.95 * before.flops,
  }
}

interface Cost {
  readonly flops: number
  readonly milliseconds: number
}

interface Speed {
  readonly before: Cost
  readonly after: Cost
  readonly same: boolean
}

async function speedOf(model: SequenceClassifier, adapter: Adapter, files: Files): Promise<Speed> {
  const folder = temporaryFolder()
  await dseeSave(adapter, folder, { tokenizer: model.tokenizer })
  const smaller = await loadSequenceClassifier(folder)
  const [wanted, got] = [await mailAccuracy(model, files, adapter), await mailAccuracy(smaller, files)]
  const ids = tensor(new Int32Array(1024).fill(1000), [16, 64])
  const mask = tensor(new Int32Array(1024).fill(1), [16, 64])
  const programs = [model, smaller].map(({ network }) =>
    program((given, all) => network.logits({ ids: given!, mask: all! }, { precision: 'f32', training: false })),
  )
  const times: [number[], number[]] = [[], []]
  for (let i = 0; i < 12; i += 1)
    for (const [k, each] of programs.entries()) {
      const start = performance.now()
      ;(await each.run([ids, mask])).dispose()
      if (i > 0) times[k]!.push(performance.now() - start)
    }
  const costs: Cost[] = []
  for (const [k, each] of programs.entries()) {
    const { flops } = await each.plan([ids, mask])
    costs.push({ flops, milliseconds: times[k]!.sort((a, b) => a - b)[5]! })
    each.dispose()
  }
  await smaller.dispose()
  return { before: costs[0]!, after: costs[1]!, same: wanted === got }
}
