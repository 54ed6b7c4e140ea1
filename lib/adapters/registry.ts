/** Every adapter method by name. A new method is one file and one line here. */
import { unknownName } from '../config.js'
import { HeddleError } from '../errors.js'
import { adaloraType } from './methods/adalora.js'
import { boftType } from './methods/boft.js'
import { compacterType } from './methods/compacter.js'
import { difforaType } from './methods/diffora.js'
import { dseeType } from './methods/dsee.js'
import { evaType } from './methods/eva.js'
import { floraType } from './methods/flora.js'
import { ia3Type } from './methods/ia3.js'
import { lamdaType } from './methods/lamda.js'
import { lolduType } from './methods/loldu.js'
import { loraType } from './methods/lora.js'
import { loraSbType, loraXsType } from './methods/lora_xs.js'
import { lqLoraType } from './methods/lq_lora.js'
import { missType } from './methods/miss.js'
import { monarchAdapterType } from './methods/monarch_adapter.js'
import { oftType } from './methods/oft.js'
import { randloraType } from './methods/randlora.js'
import { s2ftType } from './methods/s2ft.js'
import { saltType } from './methods/salt.js'
import { svfitType } from './methods/svfit.js'
import { veraType } from './methods/vera.js'
import type { Parametrization, ParametrizationType } from './parametrization.js'

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

/**
 * A method by its name, with the fields of its config. LoRA is like PEFT's, but with the rank and scale that suit small
 * data: r 16, alpha twice the rank, all linear layers.
 * @throws ERR_HEDDLE_ARGUMENT naming the field, with the nearest known name for an unknown one
 */
export function methodOf({
  method,
  ...fields
}: Readonly<Record<string, unknown>> & { readonly method: string }): Parametrization {
  const type = parametrizations.find(({ name }) => name === method)
  if (!type)
    throw unknownName(
      'adapter.method',
      method,
      parametrizations.map(({ name }) => name),
    )
  if (method !== 'lora') return type.create(fields)
  const { r = 16, target_modules = 'all-linear', ...others } = fields
  const lora_alpha = typeof r === 'number' ? 2 * r : undefined
  return type.create({ lora_alpha, ...others, r, target_modules })
}
