/** Every method's cases: one line for each file. */
import type { MethodCase } from '../method_case.js'
import { cases as ia3 } from './ia3.js'
import { cases as loldu } from './loldu.js'
import { cases as lora } from './lora.js'
import { cases as svfit } from './svfit.js'

export const methodCases: readonly MethodCase[] = [...lora, ...ia3, ...loldu, ...svfit]
