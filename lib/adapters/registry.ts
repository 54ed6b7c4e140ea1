/** Every adapter method by name. A new method is one file and one line here. */
import { HeddleError } from '../errors.js'
import { adaloraType } from './adalora.js'
import { boftType } from './boft.js'
import { compacterType } from './compacter.js'
import { difforaType } from './diffora.js'
import { dseeType } from './dsee.js'
import { evaType } from './eva.js'
import { floraType } from './flora.js'
import { ia3Type } from './ia3.js'
import { lamdaType } from './lamda.js'
import { lolduType } from './loldu.js'
import { loraType } from './lora.js'
import { loraSbType, loraXsType } from './lora_xs.js'
import { lqLoraType } from './lq_lora.js'
import { missType } from './miss.js'
import { monarchAdapterType } from './monarch_adapter.js'
import { oftType } from './oft.js'
import type { ParametrizationType } from './parametrization.js'
import { randloraType } from './randlora.js'
import { s2ftType } from './s2ft.js'
import { saltType } from './salt.js'
import { svfitType } from './svfit.js'
import { veraType } from './vera.js'

/** Registered adapter methods; where several share PEFT's type, the first is the one that reads its folders. */
export const parametrizations: readonly ParametrizationType[] = [
  loraType,
  ia3Type,
  veraType,
  randloraType,
  adaloraType,
  missType,
  oftType,
  boftType,
  evaType,
  compacterType,
  difforaType,
  dseeType,
  floraType,
  lamdaType,
  lolduType,
  loraXsType,
  loraSbType,
  lqLoraType,
  monarchAdapterType,
  s2ftType,
  saltType,
  svfitType,
]

/** @throws ERR_HEDDLE_FORMAT for a `peft_type` that no method here reads */
export function byPeftType(peftType: unknown, place: string): ParametrizationType {
  const type =
    parametrizations.find((candidate) => candidate.peftType === peftType) ??
    parametrizations.find(({ formerly }) => formerly?.peftType === peftType)
  if (type) return type
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: `${place}: peft_type`,
    expected: [...new Set(parametrizations.map((candidate) => candidate.peftType))].join(' or '),
    got: JSON.stringify(peftType) ?? 'nothing',
  })
}
