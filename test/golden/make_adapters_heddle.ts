/**
 * Makes `adapters-heddle/<variant>/`: every variant of adapters.golden.json attached, trained for five steps and written
 * by Heddle. Then real PEFT says what they compute:
 *
 *   node dist/test/golden/make_adapters_heddle.js
 *   python test/golden/check_adapters_in_peft.py
 */
import { rm } from 'node:fs/promises'
import { Adapter } from '../../lib/adapters/adapter.js'
import { lora } from '../../lib/adapters/methods/lora.js'
import { golden, goldenLlama } from '../golden.js'
import { goldens, shared, trainFiveSteps } from '../support/adapter_goldens.js'

await rm(golden('adapters-heddle'), { recursive: true, force: true })
for (const [name, variant] of Object.entries(goldens.variants)) {
  const model = await goldenLlama(variant.base)
  const baseModel = variant.base.split('/').at(-1)!
  const adapter = await Adapter.attach(model, lora({ ...shared, ...variant.options }), { seed: 5, baseModel })
  await trainFiveSteps(model, adapter, variant)
  await adapter.save(golden(`adapters-heddle/${name}`))
}
