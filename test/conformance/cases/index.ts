/** Every method's cases: one line for each file. */
import type { MethodCase } from '../method_case.js'
import { cases as adalora } from './adalora.js'
import { cases as boft } from './boft.js'
import { cases as ia3 } from './ia3.js'
import { cases as lora } from './lora.js'
import { cases as miss } from './miss.js'
import { cases as oft } from './oft.js'

export const methodCases: readonly MethodCase[] = [...lora, ...ia3, ...miss, ...oft, ...boft, ...adalora]
