/**
 * Makes `<made>-heddle/<variant>/`: every variant of <made>.golden.json attached, trained for five steps and written by
 * Heddle. Then real PEFT says what they compute:
 *
 *   node dist/test/golden/make_peft_methods_heddle.js peft-methods
 *   python test/golden/check_adapters_in_peft.py
 */
import { rm } from 'node:fs/promises'
import { Adapter } from '../../lib/adapters/adapter.js'
import { parametrizations } from '../../lib/adapters/registry.js'
import { golden, goldenLlama } from '../golden.js'
import { trainFiveSteps } from '../support/adapter_goldens.js'
import { methodGoldensOf } from '../support/peft_method_goldens.js'

const made = process.argv[2] ?? 'peft-methods'
await rm(golden(`${made}-heddle`), { recursive: true, force: true })
for (const [name, variant] of Object.entries(methodGoldensOf(made))) {
  const type = parametrizations.find((each) => each.name === variant.method)
  if (!type) throw new Error(`no method ${variant.method}`)
  const model = await goldenLlama(variant.base)
  const options = { seed: 5, baseModel: variant.base.split('/').at(-1)! }
  const adapter = await Adapter.attach(model, type.create(variant.options), options)
  await trainFiveSteps(model, adapter, variant)
  await adapter.save(golden(`${made}-heddle/${name}`))
}
