/** RandLoRA against LoRA at equal budgets, for a flat and for a falling spectrum of the change. */
import { lora } from '../../../lib/adapters/methods/lora.js'
import { randlora } from '../../../lib/adapters/methods/randlora.js'
import { computed } from '../../../lib/graph/computed.js'
import { mul } from '../../../lib/graph/ops/elementwise.js'
import { read } from '../../../lib/graph/sym.js'
import type { Tensor } from '../../../lib/tensor/tensor.js'
import type { Finding } from '../experiment.js'
import { adapt, digits, normal, orthonormal, shifted } from '../toy.js'

export const setting =
  'A linear module [64, 64] learns a change (512 normal inputs, Adam 1e-2, 2000 steps): mean squared errors at 512 / 1,024 / 2,048 numbers (RandLoRA 576 / 1,088 / 2,112).'

const target_modules = ['proj']

export async function* run(): AsyncGenerator<Finding> {
  const w = await normal([64, 64], 1, 1 / 8)
  const q = await orthonormal(64, 64, 3)
  const flat = await both(w, await computed(() => mul(read(q), 0.5)))
  yield {
    statement: 'an orthogonal change (flat spectrum): RandLoRA wins at every budget',
    measured: `${text(flat)}; the sheet has LoRA 0.224 / 0.199 / 0.157 and RandLoRA 0.199 / 0.163 / 0.11`,
    held: flat.random.every((error, i) => error < flat.plain[i]!),
  }
  yield {
    statement: '… and is about as good as LoRA with twice its numbers (within a tenth)',
    measured: `${flat.random.slice(0, 2).map(digits).join(' / ')} against ${flat.plain.slice(1).map(digits).join(' / ')}`,
    held: flat.random.slice(0, 2).every((error, i) => error < 1.1 * flat.plain[i + 1]!),
  }
  const gaussian = await both(w, await normal([64, 64], 2, 1 / 16))
  yield {
    statement: 'a Gaussian change (falling spectrum): LoRA wins at every budget',
    measured: `${text(gaussian)}; the sheet has LoRA 0.195 / 0.151 / 0.086 and RandLoRA 0.202 / 0.165 / 0.114`,
    held: gaussian.plain.every((error, i) => error < gaussian.random[i]!),
  }
}

interface Both {
  readonly plain: readonly number[]
  readonly random: readonly number[]
}

const text = ({ plain, random }: Both): string =>
  `LoRA ${plain.map(digits).join(' / ')}, RandLoRA ${random.map(digits).join(' / ')}`

async function both(w: Tensor, t: Tensor): Promise<Both> {
  const task = await shifted(w, t)
  const training = { lr: 1e-2, steps: 2000 }
  const [plain, random]: [number[], number[]] = [[], []]
  for (const r of [4, 8, 16]) plain.push((await adapt(task, lora({ r, lora_alpha: r, target_modules }), training)).loss)
  for (const r of [8, 4, 2])
    random.push((await adapt(task, randlora({ r, randlora_alpha: r, target_modules }), training)).loss)
  return { plain, random }
}
