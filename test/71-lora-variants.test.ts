// Every variant of LoRA against PEFT: its files, its numbers, its training; numbers by test/golden/make_adapters.py.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { golden, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { goldens, logits, shared, trainFiveSteps } from './support/adapter_goldens.js'
import { temporaryFolder } from './support/temporary_folder.js'

/** PEFT starts these from the factors of the weight; the others from a file. */
const startsFromWeight = (init: unknown): boolean => init === 'pissa' || init === 'olora'

for (const [name, variant] of Object.entries(goldens.variants)) {
  const { base, options, ids } = variant
  const isFresh = startsFromWeight(options.init_lora_weights)

  test(`${name}: PEFT's adapter gives PEFT's logits to 1e-4, with as many parameters`, async (t) => {
    const model = await goldenLlama(base)
    const adapter = await Adapter.load(model, golden(`adapters/${name}`))
    const expected = (await goldenTensors('adapters.golden.safetensors')).get(
      `${name}.${isFresh ? 'trained' : 'logits'}`,
    )!
    t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-4)
    t.is(adapter.parameterCount, variant.trainable)
  })

  test(`${name}: five AdamW steps give PEFT's losses, gradient norms and logits`, async (t) => {
    const model = await goldenLlama(base)
    const adapter = isFresh
      ? await Adapter.attach(model, lora({ ...shared, ...options }))
      : await Adapter.load(model, golden(`adapters/${name}`))
    const results = await trainFiveSteps(model, adapter, variant)
    for (const [i, { loss, gradientNorm }] of results.entries()) {
      t.true(Math.abs(loss / variant.losses[i]! - 1) < 1e-4, `loss ${loss}, PEFT has ${variant.losses[i]}`)
      const norm = variant.gradient_norms[i]!
      t.true(Math.abs(gradientNorm / norm - 1) < 1e-3, `gradient norm ${gradientNorm}, PEFT has ${norm}`)
    }
    const expected = (await goldenTensors('adapters.golden.safetensors')).get(`${name}.trained`)!
    t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-3)
  })

  // PEFT's conversion forgets DoRA's magnitudes.
  if (isFresh && !options.use_dora)
    test(`${name}: PEFT's conversion to a plain LoRA gives the same logits on the original weights`, async (t) => {
      const model = await goldenLlama(base)
      const adapter = await Adapter.load(model, golden(`adapters/${name}-converted`))
      const expected = (await goldenTensors('adapters.golden.safetensors')).get(`${name}.trained`)!
      t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-4)
    })

  test(`${name}: what Heddle writes, PEFT computes, and Heddle writes it again byte for byte`, async (t) => {
    const model = await goldenLlama(base)
    const from = golden(`adapters-heddle/${name}`)
    const adapter = await Adapter.load(model, from, { baseModel: base.split('/').at(-1)! })
    const expected = (await goldenTensors('adapters-heddle.golden.safetensors')).get(`${name}.logits`)!
    t.true((await relativeError(await logits(model, ids, adapter), expected)) < 1e-4)
    const folder = temporaryFolder()
    await adapter.save(folder)
    for (const file of ['adapter_config.json', 'adapter_model.safetensors'])
      t.deepEqual(await readFile(join(folder, file)), await readFile(join(from, file)))
  })
}
