/**
 * Makes `plain-forms-heddle/<method>/`: adapters of methods that PEFT does not have, written as plain LoRAs. Then real
 * PEFT says what they compute:
 *
 *   node dist/test/golden/make_plain_forms_heddle.js
 *   python test/golden/check_adapters_in_peft.py
 */
import { rm } from 'node:fs/promises'
import { asLora } from '../../lib/adapters/as_lora.js'
import { golden, goldenLlama } from '../golden.js'
import { plainFormSource, variants } from '../support/plain_forms.js'

await rm(golden('plain-forms-heddle'), { recursive: true, force: true })
for (const [name, { base }] of Object.entries(variants)) {
  const model = await goldenLlama(base)
  const plain = await asLora(await plainFormSource(name, model))
  await plain.save(golden(`plain-forms-heddle/${name}`))
}
