// Methods that PEFT does not have, written as plain LoRAs: PEFT computes with them what the method computes here.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { golden, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { logits } from './support/adapter_goldens.js'
import { plainFormSource, variants } from './support/plain_forms.js'

const expected = await goldenTensors('plain-forms-heddle.golden.safetensors')

for (const [name, { base, ids }] of Object.entries(variants)) {
  test(`${name}: the method's logits are those that PEFT gives for its plain form`, async (t) => {
    const model = await goldenLlama(base)
    const wanted = expected.get(`${name}.logits`)!
    t.true((await relativeError(await logits(model, ids, await plainFormSource(name, model)), wanted)) < 1e-4)
    t.true((await relativeError(await logits(model, ids), wanted)) > 1e-3, 'the adapter does something')
  })

  test(`${name}: so are those of the folder, read here`, async (t) => {
    const model = await goldenLlama(base)
    const adapter = await Adapter.load(model, golden(`plain-forms-heddle/${name}`))
    t.true((await relativeError(await logits(model, ids, adapter), expected.get(`${name}.logits`)!)) < 1e-4)
  })
}
