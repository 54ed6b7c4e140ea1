/**
 * Makes `adalora/heddle/`: an AdaLoRA trained by Heddle down to one rank per module on average, so that some modules have
 * none. Then real PEFT says what it computes:
 *
 *   node dist/test/golden/make_adalora_heddle.js
 *   python test/golden/check_adapters_in_peft.py
 */
import { rm } from 'node:fs/promises'
import { adalora } from '../../lib/adapters/methods/adalora.js'
import { Adapter } from '../../lib/adapters/adapter.js'
import { adamw } from '../../lib/optim/adamw.js'
import { golden, goldenJson, goldenLlama } from '../golden.js'
import { batchOf, stepOf, type Variant } from '../support/adapter_goldens.js'

const { base, ...variant } = goldenJson<Pick<Variant, 'base' | 'ids' | 'labels'>>('adalora.golden.json')
const model = await goldenLlama(base)
const method = adalora({ init_r: 3, target_r: 1, tfinal: 2, target_modules: ['q_proj', 'v_proj', 'down_proj'] })
const adapter = await Adapter.attach(model, method, { seed: 5, baseModel: base })
const totalSteps = 10
const learningRate = 0.01
const step = await stepOf(model, adapter, adamw({ lr: learningRate }), totalSteps)
for (let index = 1; index <= totalSteps; index += 1)
  await step.run({ batches: [batchOf(variant)], step: index, learningRate })
step.dispose()
await rm(golden('adalora/heddle'), { recursive: true, force: true })
await adapter.save(golden('adalora/heddle'))
