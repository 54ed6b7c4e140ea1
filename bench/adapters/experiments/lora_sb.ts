/** LoRA-SB against LoRA-XS and LoRA at equal and at larger budgets (its sheet's smallest honest experiment). */
import { lora } from '../../../lib/adapters/methods/lora.js'
import { loraSb, loraXs } from '../../../lib/adapters/methods/lora_xs.js'
import type { Finding } from '../experiment.js'
import { adapt, digits, lossOf, normal, shifted } from '../toy.js'

export const setting =
  'A linear module [64, 64] learns a Gaussian change (512 normal inputs, Adam 1e-2, 2000 steps): mean squared errors.'

const target_modules = ['proj']
const ranks = [8, 16, 32]

export async function* run(): AsyncGenerator<Finding> {
  const task = await shifted(await normal([64, 64], 1, 1 / 8), await normal([64, 64], 2, 1 / 16))
  const training = { lr: 1e-2, steps: 2000 }
  const errors = async (
    method: (r: number) => Parameters<typeof adapt>[1],
    all: readonly number[],
  ): Promise<number[]> => {
    const losses: number[] = []
    for (const r of all) losses.push((await adapt(task, method(r), training)).loss)
    return losses
  }
  const start = await lossOf(task)
  const xs = await errors((r) => loraXs({ r, target_modules }), ranks)
  const sb = await errors((r) => loraSb({ r, eta1: 1e-3, target_modules }), ranks)
  const raw = await errors((r) => loraSb({ r, eta1: 1e-3, gradient: 'raw', target_modules }), ranks)
  const [plain] = (await errors((r) => lora({ r, lora_alpha: r, target_modules }), [4])) as [number]
  const list = (values: readonly number[]): string => values.map(digits).join(' / ')
  yield {
    statement: 'LoRA-SB is below LoRA-XS at ranks 8, 16 and 32 (64, 256 and 1,024 numbers)',
    measured: `from ${digits(start)}: XS ${list(xs)}, SB ${list(sb)}; the sheet has 0.248 / 0.235 / 0.183 and 0.184 / 0.141 / 0.084`,
    held: sb.every((error, i) => error < xs[i]!),
  }
  yield {
    statement: 'LoRA-SB with 64 numbers is not above LoRA with 512',
    measured: `${digits(sb[0]!)} against ${digits(plain)}; the sheet has 0.184 and 0.195`,
    held: sb[0]! <= plain,
  }
  yield {
    statement: 'on this quadratic loss the gradient itself is a better guide than its signs',
    measured: `${list(raw)} against ${list(sb)}; the sheet has 0.158 / 0.096 / 0.033`,
    held: raw.every((error, i) => error < sb[i]!),
  }
}
