/** Every method's cases: one line for each file. */
import type { MethodCase } from '../method_case.js'
import { cases as adalora } from './adalora.js'
import { cases as boft } from './boft.js'
import { cases as compacter } from './compacter.js'
import { cases as diffora } from './diffora.js'
import { cases as dsee } from './dsee.js'
import { cases as eva } from './eva.js'
import { cases as flora } from './flora.js'
import { cases as ia3 } from './ia3.js'
import { cases as lamda } from './lamda.js'
import { cases as loldu } from './loldu.js'
import { cases as lora } from './lora.js'
import { cases as loraXs } from './lora_xs.js'
import { cases as lqLora } from './lq_lora.js'
import { cases as miss } from './miss.js'
import { cases as monarchAdapter } from './monarch_adapter.js'
import { cases as oft } from './oft.js'
import { cases as randlora } from './randlora.js'
import { cases as s2ft } from './s2ft.js'
import { cases as salt } from './salt.js'
import { cases as svfit } from './svfit.js'
import { cases as vera } from './vera.js'

export const methodCases: readonly MethodCase[] = [
  ...adalora,
  ...boft,
  ...compacter,
  ...diffora,
  ...dsee,
  ...eva,
  ...flora,
  ...ia3,
  ...lamda,
  ...loldu,
  ...lora,
  ...loraXs,
  ...lqLora,
  ...miss,
  ...monarchAdapter,
  ...oft,
  ...randlora,
  ...s2ft,
  ...salt,
  ...svfit,
  ...vera,
]
