// Encoders and image classifiers against transformers, on tiny random checkpoints (test/golden/make_models.py).
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { gradients } from '../lib/graph/grad.js'
import { cast, cos, mul } from '../lib/graph/ops/elementwise.js'
import { reshape, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { loadImageClassifier } from '../lib/image_model.js'
import { buildNetwork } from '../lib/models/build.js'
import type { Encoder } from '../lib/models/encoder.js'
import { encoders, imageClassifiers } from '../lib/models/registry.js'
import type { Network } from '../lib/nn/network.js'
import type { Forward } from '../lib/nn/site.js'
import { type Tensor, tensor, write } from '../lib/tensor/tensor.js'
import { golden, goldenJson, goldenTensors, probes, relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { temporaryFolder } from './support/temporary_folder.js'

const plain: Forward = { precision: 'f32', training: false }
const open = (name: string) => openCheckpoint(golden(`models/${name}`))

/** Σ yᵢ cos(0.7 i) over the elements of y. */
function probeOf(y: Sym): Sym {
  const steps = tensor(Float32Array.from({ length: y.shape.reduce((a, b) => a * b, 1) }, (_, i) => 0.7 * i))
  return sum(mul(reshape(y, [-1]), cos(read(steps))))
}

test('there is a golden model of every architecture', (t) => {
  const names = ['bert', 'roberta', 'xlm-roberta', 'distilbert']
  t.deepEqual(
    names,
    encoders.map(({ modelType }) => modelType),
  )
})

for (const { modelType: name } of encoders) {
  const errorOf = async (model: Encoder, forward: Forward, key: string): Promise<number> => {
    const goldens = await goldenTensors(`models/${name}/golden.safetensors`)
    const ofTokens = (y: Sym, mask: Sym): Sym => mul(y, reshape(cast(mask, 'f32'), [2, 24, 1]))
    const run = program(async (ids, mask, expected) => ({
      found: ofTokens(await model.hidden({ ids: ids!, mask: mask! }, forward), mask!),
      expected: ofTokens(expected!, mask!),
    }))
    const { found, expected } = await run(goldens.get('ids')!, goldens.get('mask')!, goldens.get(key)!)
    return relativeError(found, expected)
  }

  test(`${name}: hidden states of tokens agree with transformers to 1e-5; padding has no part in them`, async (t) => {
    const error = await errorOf(buildNetwork(encoders, await open(name)), plain, 'hidden')
    t.log(error)
    t.true(error < 1e-5, `${error}`)
  })

  test(`${name}: PEFT's adapter on all linear modules finds its sites and gives PEFT's hidden states`, async (t) => {
    const model = buildNetwork(encoders, await open(name))
    const adapter = await Adapter.load(model, golden(`models/${name}/adapter`))
    t.true((await errorOf(model, { ...plain, hook: adapter.hook }, 'adapted')) < 1e-5)
  })

  test(`${name}: gradients of all parameters agree with torch`, async (t) => {
    const goldens = await goldenTensors(`models/${name}/golden.safetensors`)
    const model = buildNetwork(encoders, await open(name))
    await checkGradients(t, name, model, [goldens.get('ids')!, goldens.get('mask')!], async ([ids, mask]) => {
      const hidden = await model.hidden({ ids: ids!, mask: mask! }, plain)
      return probeOf(mul(hidden, reshape(cast(mask!, 'f32'), [2, 24, 1])))
    })
  })
}

test('vit: logits agree with transformers to 1e-5', async (t) => {
  const goldens = await goldenTensors('models/vit/golden.safetensors')
  const model = await loadImageClassifier(golden('models/vit'))
  const scores = await model.logits((await goldens.get('pixels')!.data()) as Float32Array)
  t.deepEqual(model.labels, ['LABEL_0', 'LABEL_1', 'LABEL_2', 'LABEL_3', 'LABEL_4'])
  const found = tensor(Float32Array.of(...scores[0]!, ...scores[1]!), [2, 5])
  const error = await relativeError(found, goldens.get('logits')!)
  t.log(error)
  t.true(error < 1e-5, `${error}`)
  await model.dispose()
})

test('vit: gradients of all parameters agree with torch', async (t) => {
  const goldens = await goldenTensors('models/vit/golden.safetensors')
  const model = buildNetwork(imageClassifiers, await open('vit'))
  await checkGradients(t, 'vit', model, [goldens.get('pixels')!], async ([pixels]) =>
    probeOf(model.logits(await model.hidden(pixels!, plain), plain)),
  )
})

test('an image classifier is adapted, merged, saved and loaded as other models are', async (t) => {
  const model = await loadImageClassifier(golden('models/vit'))
  const pixels = (await (await goldenTensors('models/vit/golden.safetensors')).get('pixels')!.data()) as Float32Array
  const adapter = await model.attach(lora({ r: 2, target_modules: ['query', 'value'] }))
  t.is(adapter.sitePaths[0], 'vit.encoder.layer.0.attention.attention.query')
  for (const [i, value] of [...adapter.parameters().values()].entries()) write(value, randomNumbers(value.size, i))
  const [adapted] = await model.logits(pixels, { adapter })
  await model.merge(adapter)
  const folder = temporaryFolder()
  await model.save(folder)
  const again = await loadImageClassifier(folder)
  const [loaded] = await again.logits(pixels)
  for (const [i, score] of adapted!.entries()) t.true(Math.abs(score - loaded![i]!) < 1e-4)
  await t.throwsAsync(model.logits(pixels.subarray(1)), { code: 'ERR_HEDDLE_ARGUMENT', message: /3×16×12/ })
  await model.dispose()
  await again.dispose()
})

async function checkGradients(
  t: { true(value: boolean, message?: string): void; deepEqual(a: unknown, b: unknown): void },
  name: string,
  model: Network,
  inputs: readonly Tensor[],
  objective: (inputs: readonly Sym[]) => Promise<Sym>,
): Promise<void> {
  const expected = goldenJson<Record<string, [number, number]>>(`models/${name}/gradients.json`)
  const weights = model.weights().filter((weight) => !weight.name.startsWith('pooler.'))
  t.deepEqual(weights.map((weight) => weight.name).sort(), Object.keys(expected).sort())
  const step = program(async (...given) =>
    gradients(
      await objective(given),
      weights.map((weight) => read(weight.tensor)),
    ),
  )
  const found = await step(...inputs)
  // A key's bias has no influence: its gradient is rounding noise, here and there.
  const largest = Math.max(...Object.values(expected).map(([norm]) => norm))
  for (const [i, { name: key }] of weights.entries()) {
    const [norm, probe] = probes((await found[i]!.data()) as Float32Array)
    const [expectedNorm, expectedProbe] = expected[key]!
    const bound = 1e-4 * expectedNorm + 1e-5 * largest
    t.true(Math.abs(norm - expectedNorm) < bound && Math.abs(probe - expectedProbe) < bound, key)
  }
}
