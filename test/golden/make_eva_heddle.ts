/**
 * Makes `eva-heddle/`: the first case of eva.golden.json attached and written by Heddle. Then real PEFT says what it
 * computes: python test/golden/check_adapters_in_peft.py
 */
import { Adapter } from '../../lib/adapters/adapter.js'
import { eva } from '../../lib/adapters/methods/eva.js'
import { golden, goldenLlama } from '../golden.js'
import { evaCalibration, evaGoldens } from '../support/eva_goldens.js'
import { disturb } from '../support/one_site.js'

const { base, targets, cases } = evaGoldens
const method = eva({ r: 4, lora_alpha: 8, target_modules: targets, eva_config: cases.redistributed!.eva_config })
const options = { baseModel: base, calibration: evaCalibration() }
const adapter = await Adapter.attach(await goldenLlama(base), method, options)
await disturb(adapter)
await adapter.save(golden('eva-heddle'))
