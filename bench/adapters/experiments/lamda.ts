/** LaMDA's three beginnings and its freezing, for changes inside and outside of the input directions that A keeps. */
import { lamda } from '../../../lib/adapters/methods/lamda.js'
import { lora } from '../../../lib/adapters/methods/lora.js'
import type { Parametrization } from '../../../lib/adapters/parametrization.js'
import { computed } from '../../../lib/graph/computed.js'
import { slice } from '../../../lib/graph/ops/index.js'
import { read } from '../../../lib/graph/sym.js'
import type { Finding } from '../experiment.js'
import { adapt, digits, lossOf, normal, outer, shifted, type Task, withSpectrum } from '../toy.js'

export const setting =
  'A linear module [64, 64] with singular values 3 exp(−i / 16) learns a change of rank 8 (512 normal inputs, r = 16, Adam 1e-2, 2000 steps): mean squared errors.'

const target_modules = ['proj']
const r = 16

/** By name. `frozen` freezes B in the first of its steps, `free` in the last. */
const arms: Readonly<Record<string, Parametrization>> = {
  spectral: lamda({ r, target_modules }),
  free: lamda({ r, eta: 1, target_modules }),
  zero: lamda({ r, init: 'spectral_zero', target_modules }),
  code: lamda({ r, init: 'code', target_modules }),
  frozen: lamda({ r, eta: 1e-3, target_modules }),
  lora: lora({ r, lora_alpha: r, target_modules }),
}

export async function* run(): AsyncGenerator<Finding> {
  const { v, w } = await withSpectrum(64, 3, 16, 1)
  const leading = await computed(() => slice(read(v), [{ axis: 1, start: 0, end: 8 }]))
  const m = await normal([64, 8], 5, 0.1125)
  const inside = await shifted(w, await outer(m, leading))
  const a = await errors(inside, ['spectral', 'free', 'zero', 'code', 'frozen', 'lora'])
  const start = await lossOf(inside)
  yield {
    statement:
      'a change of inputs that A keeps: freezing B column by column costs next to nothing (below 1 % of the start)',
    measured: `from ${digits(start)}: gradual ${digits(a.spectral!)}, B free to the end ${digits(a.free!)}, spectral_zero ${digits(a.zero!)}, LoRA ${digits(a.lora!)}; the sheet has 0.1013 and 2.9e-5, 2e-6, 1e-6, 1.6e-9`,
    held: Math.max(a.spectral!, a.zero!) < 0.01 * start,
  }
  yield {
    statement: '… with B frozen from the beginning most is lost',
    measured: `${digits(a.frozen!)}; the sheet has 0.0786`,
    held: a.frozen! > 0.5 * start,
  }
  yield {
    statement: '… and an A of singular vectors beats a random one',
    measured: `${digits(a.spectral!)} against ${digits(a.code!)} (init code); the sheet has 2.9e-5 and 0.071`,
    held: a.spectral! < 0.1 * a.code!,
  }
  const outside = await shifted(w, await outer(await normal([64, 8], 6, 0.0283), await normal([64, 8], 8, 1)))
  const b = await errors(outside, ['spectral', 'code', 'lora'])
  const begin = await lossOf(outside)
  yield {
    statement: 'a change of random inputs: every LaMDA fails, since A stays as it is; LoRA does not',
    measured: `from ${digits(begin)}: spectral ${digits(b.spectral!)}, code ${digits(b.code!)}, LoRA ${digits(b.lora!)}; the sheet has 0.4164 and 0.301, 0.309, 8e-8`,
    held: Math.min(b.spectral!, b.code!) > 0.5 * begin && b.lora! < 0.01 * begin,
  }
}

async function errors(task: Task, names: readonly string[]): Promise<Record<string, number>> {
  const found: Record<string, number> = {}
  for (const name of names) found[name] = (await adapt(task, arms[name]!, { lr: 1e-2, steps: 2000 })).loss
  return found
}
