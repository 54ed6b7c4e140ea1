/** Every method's cases: one line for each file. */
import type { MethodCase } from '../method_case.js'
import { cases as compacter } from './compacter.js'
import { cases as diffora } from './diffora.js'
import { cases as flora } from './flora.js'
import { cases as ia3 } from './ia3.js'
import { cases as loldu } from './loldu.js'
import { cases as lora } from './lora.js'
import { cases as svfit } from './svfit.js'

export const methodCases: readonly MethodCase[] = [...lora, ...ia3]
export const methodCases: readonly MethodCase[] = [...lora, ...svfit, ...loldu]
import { cases as monarch } from './monarch_adapter.js'
import { cases as s2ft } from './s2ft.js'

export const methodCases: readonly MethodCase[] = [
  ...lora,
  ...ia3,
  ...flora,
  ...monarch,
  ...compacter,
  ...s2ft,
  ...diffora,
]
