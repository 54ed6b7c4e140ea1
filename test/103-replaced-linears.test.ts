// A model whose linear weights are structured matrices computes, trains, generates, and is saved and loaded as such.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { lora } from '../lib/adapters/methods/lora.js'
import type { Parametrization } from '../lib/adapters/parametrization.js'
import { parametrizations } from '../lib/adapters/registry.js'
import { HeddleError } from '../lib/errors.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { loadModel, type Model } from '../lib/model.js'
import type { SiteHook } from '../lib/nn/site.js'
import { causalLm } from '../lib/objectives/causal_lm.js'
import { type Calibration, calibrationOf } from '../lib/observers/calibration.js'
import { sgd } from '../lib/optim/sgd.js'
import { denseMatrix } from '../lib/structured/dense_matrix.js'
import { kroneckerMatrix } from '../lib/structured/kronecker_matrix.js'
import { lowRankMatrix } from '../lib/structured/low_rank_matrix.js'
import { monarchMatrix } from '../lib/structured/monarch_matrix.js'
import { densifyLinear, replaceLinear } from '../lib/structured/replace_linear.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { evaluate } from '../lib/train/evaluate.js'
import { train } from '../lib/train/train.js'
import { methodCases } from './conformance/cases/index.js'
import type { MethodCase } from './conformance/method_case.js'
import { disturb } from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyDataset, tinyModel } from './tiny_model.js'

const numbers = async (value: Tensor): Promise<number[]> => [...(await value.data())].map(Number)

/** Logits of a few tokens. */
async function logitsOf(model: Model, hook?: SiteHook): Promise<number[]> {
  const ids = tensor(Int32Array.of(5, 9, 70, 33, 8, 101), [1, 6])
  const run = program(async (given) => {
    const hidden = await model.network.hidden({ ids: given! }, { precision: 'f32', training: false, hook })
    return matmul(hidden, read(model.network.outputSite.weight), { transposeB: true })
  })
  return numbers(await run(ids))
}
const furthest = (a: readonly number[], b: readonly number[]): number =>
  Math.max(...a.map((value, i) => Math.abs(value - b[i]!)))

test('a replacement that is the same matrix gives the same logits', async (t) => {
  const model = await tinyModel()
  const before = await logitsOf(model)
  const whole = (weight: Tensor): number => Math.min(...(weight.shape as [number, number]))
  await replaceLinear(model, ['q_proj', 'o_proj'], (weight) => lowRankMatrix.fromDense(weight, { rank: whole(weight) }))
  await replaceLinear(model, ['v_proj'], (weight) => denseMatrix.fromDense(weight, {}))
  t.true(furthest(await logitsOf(model), before) < 1e-4)
})

test('every replaced site says its matrix and the error of its projection', async (t) => {
  const model = await tinyModel()
  const replaced = await replaceLinear(model, 'all-linear', (weight) => monarchMatrix.fromDense(weight, { nblocks: 4 }))
  t.is(replaced.size, 14)
  for (const [path, { matrix, relativeError }] of replaced) {
    const site = model.network.sites.get(path)!
    t.is(site.structure, matrix)
    t.deepEqual(matrix.shape as readonly number[], site.weight.shape)
    t.true(relativeError! > 0 && relativeError! < 1)
  }
})

test('training the whole model trains the matrices, reduces the loss, and they stay what they say', async (t) => {
  const model = await tinyModel()
  const data = await tinyDataset(model)
  await replaceLinear(model, ['gate_proj', 'up_proj', 'down_proj'], (weight) => monarchMatrix.fromDense(weight, {}))
  await replaceLinear(model, ['q_proj'], ({ shape: [out, inner] }) =>
    kroneckerMatrix.random([out!, inner!], {
      factors: [
        [4, 4],
        [out! / 4, inner! / 4],
      ],
      terms: 2,
    }),
  )
  const site = [...model.network.sites.values()].find(({ structure }) => structure?.kind === 'monarch')!
  const before = await numbers(site.structure!.parameters().get('blkdiag1')!)
  const first = (await evaluate(model, data)).loss
  for await (const _ of train(model, { full: true, data, epochs: 3, optimizer: sgd({ lr: 0.05 }), seed: 1 })) void _
  const last = (await evaluate(model, data)).loss
  t.true(last < first - 0.1, `${first} to ${last}`)
  const matrix = site.structure!
  t.true(furthest(await numbers(matrix.parameters().get('blkdiag1')!), before) > 1e-4)
  const x = tensor(
    Float32Array.from({ length: matrix.shape[1] }, (_, i) => Math.sin(i)),
    [1, matrix.shape[1]],
  )
  const dense = await matrix.dense()
  const direct = await numbers(await program((v) => matrix.matmul(v!))(x))
  const expected = await numbers(await program((v) => matmul(v!, read(dense), { transposeB: true }))(x))
  t.true(furthest(direct, expected) < 1e-5)
})

test('a saved model comes back with its matrices, under documented names', async (t) => {
  const model = await tinyModel()
  await replaceLinear(model, ['up_proj'], (weight) => monarchMatrix.fromDense(weight, { nblocks: 2 }))
  const expected = await logitsOf(model)
  const folder = join(temporaryFolder(), 'saved')
  await model.save(folder)
  const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))
  const saved = config.heddle_structures['model.layers.0.mlp.up_proj']
  t.is(saved.kind, 'monarch')
  t.deepEqual(Object.keys(saved.config), ['blkdiag1', 'blkdiag2'])
  const again = await loadModel(folder)
  t.deepEqual(await logitsOf(again), expected)
  t.is(again.network.sites.get('model.layers.1.mlp.up_proj')!.structure!.kind, 'monarch')
  // And once more, through the trained form.
  for await (const _ of train(again, { full: true, data: await tinyDataset(again), maxSteps: 1 })) void _
  await again.save(join(folder, 'again'))
  t.deepEqual(await logitsOf(await loadModel(join(folder, 'again'))), await logitsOf(again))
})

test('generation goes on with the replaced weights', async (t) => {
  const model = await tinyModel()
  const text = async (): Promise<string> => {
    let all = ''
    for await (const part of model.generate('Still', { maxTokens: 8 })) all += part
    return all
  }
  const before = await text()
  await replaceLinear(model, 'all-linear', ({ shape }) =>
    lowRankMatrix.random([shape[0]!, shape[1]!], { rank: 2, seed: 3 }),
  )
  const after = await text()
  t.not(after, before)
  t.is(await text(), after)
})

test('an adapter works on top of a replaced weight', async (t) => {
  const model = await tinyModel()
  await replaceLinear(model, ['q_proj'], (weight) => monarchMatrix.fromDense(weight, {}))
  const data = await tinyDataset(model)
  const adapter = await model.attach(lora({ r: 4, target_modules: ['q_proj'] }))
  const first = (await evaluate(model, data, { adapter })).loss
  for await (const _ of train(model, { adapter, data, epochs: 2, optimizer: sgd({ lr: 0.5 }) })) void _
  t.true((await evaluate(model, data, { adapter })).loss < first)
})

test('merging puts a dense weight in the place of the matrix, unmerging brings the matrix back bit for bit', async (t) => {
  const model = await tinyModel()
  await replaceLinear(model, ['q_proj', 'up_proj'], (weight) => monarchMatrix.fromDense(weight, {}))
  const adapter = await model.attach(lora({ r: 4, target_modules: ['q_proj', 'v_proj'] }))
  const data = await tinyDataset(model)
  for await (const _ of train(model, { adapter, data, maxSteps: 3, optimizer: sgd({ lr: 0.5 }) })) void _
  const site = model.network.sites.get('model.layers.0.self_attn.q_proj')!
  const [matrix, plain, adapted] = [site.structure, await logitsOf(model), await logitsOf(model, adapter.hook)]
  t.true(furthest(adapted, plain) > 1e-3)
  await model.merge(adapter)
  t.is(site.structure, undefined)
  t.is(model.network.sites.get('model.layers.0.mlp.up_proj')!.structure!.kind, 'monarch')
  t.true(furthest(await logitsOf(model), adapted) < 1e-4)
  const folder = join(temporaryFolder(), 'merged')
  await model.save(folder)
  t.deepEqual(await logitsOf(await loadModel(folder)), await logitsOf(model))
  model.unmerge(adapter)
  t.is(site.structure, matrix)
  t.deepEqual(await logitsOf(model), plain)
})

/** The cases whose methods want the numbers of a weight: its factors, its norm, its gradient, or a copy. */
const wantsWeight = [
  'lora (DoRA)',
  'lora (PiSSA)',
  'lora (OLoRA)',
  'miss (bat)',
  'dsee',
  'dsee (coefficients)',
  'svfit',
  'svfit (by energy, nonnegative)',
  'loldu',
  'salt',
  'salt (relu, gaussian)',
  'lamda',
  'lamda (random, LaMDA++)',
  'lamda (spectral_zero)',
  'lora_xs',
  'lora_sb',
  'lq_lora',
  'lq_lora (data-aware, by budget)',
  's2ft (by gradients)',
]
const structuredTargets = ['q_proj', 'v_proj', 'o_proj', 'up_proj', 'down_proj']

for (const given of methodCases) {
  const title = given.variant ? `${given.method} (${given.variant})` : given.method
  test(`${title} at structured sites: ${wantsWeight.includes(title) ? 'refused by name' : 'works as on the dense weight'}`, async (t) => {
    const model = await tinyModel()
    await replaceLinear(model, structuredTargets, (weight) => monarchMatrix.fromDense(weight, { nblocks: 4 }))
    const method = methodOf(given)
    const calibration = await calibrated(model)
    if (wantsWeight.includes(title)) {
      const error = await t.throwsAsync(model.attach(method, { calibration }), { instanceOf: HeddleError })
      t.is(error.code, 'ERR_HEDDLE_ARGUMENT')
      const place = new RegExp(`^${given.method}\\S*: model\\.layers\\.0\\.\\S+: expected a dense weight`)
      t.regex(error.message, place)
      t.regex(error.message, /monarch/)
      t.regex(error.message, /densifyLinear|for gradient/)
      t.is(model.adapters.length, 0)
      await densifyLinear(model, structuredTargets)
      await t.notThrowsAsync(model.attach(methodOf(given), { calibration }))
      return
    }
    const adapter = await model.attach(method, { calibration, seed: 1 })
    await disturb(adapter, 0.02)
    const adapted = await logitsOf(model, adapter.hook)
    t.true(furthest(adapted, await logitsOf(model)) > 1e-4)
    await densifyLinear(model, structuredTargets)
    t.true(furthest(await logitsOf(model, adapter.hook), adapted) < 1e-3)
  })
}

const methodOf = ({ method, make, config, targets = ['q_proj', 'down_proj'] }: MethodCase): Parametrization =>
  (make ?? parametrizations.find(({ name }) => name === method)!.create)({ ...config, target_modules: targets })

const calibrated = async (model: Model): Promise<Calibration> =>
  calibrationOf(causalLm(), await tinyDataset(model), { batches: 4, batchSize: 4 }) as Calibration

test('modules_to_save at a structured site is refused by name; its bias alone can be trained', async (t) => {
  const model = await tinyModel()
  await replaceLinear(model, ['up_proj'], (weight) => monarchMatrix.fromDense(weight, {}))
  const saved = lora({ r: 4, target_modules: ['q_proj'], modules_to_save: ['up_proj'] })
  await t.throwsAsync(model.attach(saved), {
    message: /^lora: model\.layers\.0\.mlp\.up_proj: expected a dense weight, got a monarch one\. .*densifyLinear/,
  })
})

test('an adapter with a weight of its own computes with that, whatever structure its site gets later', async (t) => {
  const model = await tinyModel()
  const adapter = await model.attach(lora({ r: 4, target_modules: ['q_proj'], init_lora_weights: 'pissa' }))
  const before = await logitsOf(model, adapter.hook)
  await replaceLinear(model, ['q_proj'], ({ shape }) => lowRankMatrix.random([shape[0]!, shape[1]!], { rank: 2 }))
  t.deepEqual(await logitsOf(model, adapter.hook), before)
  const dora = await tinyModel()
  const scaled = await dora.attach(lora({ r: 4, target_modules: ['q_proj'], use_dora: true }))
  await replaceLinear(dora, ['q_proj'], (weight) => monarchMatrix.fromDense(weight, {}))
  await t.throwsAsync(logitsOf(dora, scaled.hook), {
    message: /q_proj\.weight: expected a dense weight, got a monarch/,
  })
})

test('densified weights are those of the matrices, also where they are stored the other way round', async (t) => {
  const model = await tinyModel()
  await replaceLinear(model, ['q_proj'], (weight) => monarchMatrix.fromDense(weight, { nblocks: 2 }))
  const site = model.network.sites.get('model.layers.0.self_attn.q_proj')!
  const expected = await numbers(await site.structure!.dense())
  const logits = await logitsOf(model)
  await densifyLinear(model, 'all-linear')
  t.is(site.structure, undefined)
  t.deepEqual(await numbers(site.weight), expected)
  t.true(furthest(await logitsOf(model), logits) < 1e-4)
  await t.throwsAsync(densifyLinear(model, ['q_proj']), { message: /a site with a structured weight/ })
})

test('what cannot be replaced is refused and named', async (t) => {
  const model = await tinyModel()
  const monarch = (weight: Tensor) => monarchMatrix.fromDense(weight, {})
  await t.throwsAsync(() => replaceLinear(model, ['embed_tokens'], monarch), { message: /a linear site with a dense/ })
  await t.throwsAsync(() => replaceLinear(model, ['nowhere'], monarch), { code: 'ERR_HEDDLE_ARGUMENT' })
  await t.throwsAsync(() => replaceLinear(model, ['q_proj'], () => monarchMatrix.random([4, 4], {})), {
    code: 'ERR_HEDDLE_SHAPE',
  })
  await replaceLinear(model, ['q_proj'], monarch)
  await t.throwsAsync(() => replaceLinear(model, ['q_proj'], monarch), { message: /one that is monarch/ })
})
