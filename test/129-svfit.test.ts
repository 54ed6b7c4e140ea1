// SVFit: the sheet's numbers by hand, and what a file of r numbers a module must not be loaded onto.
import { rm } from 'node:fs/promises'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { changePath } from '../lib/adapters/low_rank_change.js'
import { svfit } from '../lib/adapters/methods/svfit.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import {
  gradientsAt,
  mergedWeight,
  near,
  numbers,
  type OneSite,
  oneSite,
  outputOf,
  setTensors,
} from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'

const weight = [
  [3, 0],
  [4, 5],
]
const transposed = [
  [3, 4],
  [0, 5],
]

const attach = ({ network }: OneSite, options: Parameters<typeof svfit>[0]): Promise<Adapter> =>
  Adapter.attach(network, svfit({ target_modules: ['proj'], ...options }))

test('theta + 1 on the first singular value of [[3, 0], [4, 5]] adds its u vᵀ', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 2 })
  t.true(near(await numbers(adapter.buffers().get('model.proj.svfit_s')!), [6.7082039, 2.236068]))
  await setTensors(one, adapter, { svfit_d: [1, 0] })
  t.true(near(await mergedWeight(one, adapter), [3.2236068, 0.2236068, 4.6708204, 5.6708204]))
})

test('the gradient of θᵢ is uᵢᵀ G vᵢ', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 2 })
  const { svfit_d: found } = await gradientsAt(one, adapter, [[1, 2]], [[3, 14]])
  t.true(near(found!, [30.1869177, 1.118034]), `${found}`)
})

test('a weight stored [in, out] and a bias give the same numbers', async (t) => {
  const [plain, turned] = [oneSite(weight), oneSite(transposed, { transposed: true })]
  const outputs: number[][] = []
  for (const one of [plain, turned]) {
    const adapter = await attach(one, { r: 2 })
    await setTensors(one, adapter, { svfit_d: [1, -2] })
    outputs.push(await outputOf(one, [[1, 2]], adapter))
    await adapter.merge()
    outputs.push(await outputOf(one, [[1, 2]]))
  }
  for (const other of outputs.slice(1)) t.true(near(other, outputs[0]!))
})

test('‖ΔW‖ is ‖d‖, whatever the weight', async (t) => {
  const one = oneSite([
    [1, 2, 3],
    [0.5, -1, 4],
    [2, 2, -0.3],
  ])
  const before = await numbers(one.site.weight)
  const adapter = await attach(one, { r: 3 })
  await setTensors(one, adapter, { svfit_d: [0.3, -0.4, 1.2] })
  const after = await mergedWeight(one, adapter)
  const length = Math.hypot(...after.map((value, i) => value - before[i]!))
  t.true(Math.abs(length - 1.3) < 1e-5)
})

test('the energy is that of the squared singular values', async (t) => {
  const diagonal = [
    [10, 0, 0],
    [0, 1, 0],
    [0, 0, 0.1],
  ]
  for (const [energy, r] of [
    [0.99, 1],
    [0.9901, 2],
    [1, 3],
  ] as const)
    t.is((await attach(oneSite(diagonal), { energy })).parameterCount, r)
})

test('nonnegative stops a singular value at 0', async (t) => {
  const one = oneSite([
    [2, 0],
    [0, 1],
  ])
  const adapter = await attach(one, { r: 2, nonnegative: true })
  await setTensors(one, adapter, { svfit_d: [0.5, -3] })
  t.true(near(await mergedWeight(one, adapter), [2.5, 0, 0, 0]))
})

test('decay_delta is the penalty decay · ‖d‖², not ‖θ‖²', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 2, decay_delta: 0.5 })
  await setTensors(one, adapter, { svfit_d: [1, -2] })
  const { computed } = await import('../lib/graph/computed.js')
  using penalty = await computed(() => adapter.penalty()!)
  t.is(penalty.item(), 2.5)
})

test('for many rows and a high rank the weight is made, otherwise it is not', (t) => {
  const square = { out: 768, inner: 768 }
  t.is(changePath(4096, 768, square), 'weight')
  t.is(changePath(4096, 64, square), 'products')
  t.is(changePath(1, 768, square), 'products')
})

test('both ways to compute give the same output and gradients', async (t) => {
  const rows = Array.from({ length: 64 }, (_, i) => [Math.sin(i), Math.cos(2 * i)])
  const g = Array.from({ length: 64 }, (_, i) => [Math.cos(3 * i), Math.sin(i / 2)])
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 2 })
  await setTensors(one, adapter, { svfit_d: [1, -2] })
  t.is(changePath(64, 2, { out: 2, inner: 2 }), 'weight')
  t.is(changePath(1, 2, { out: 2, inner: 2 }), 'products')
  const whole = await gradientsAt(one, adapter, rows, g)
  const each = await Promise.all(rows.map((row, i) => gradientsAt(one, adapter, [row], [g[i]!])))
  t.true(
    near(
      whole.x!,
      each.flatMap(({ x }) => x!),
    ),
  )
  t.true(
    near(
      whole.svfit_d!,
      each.map(({ svfit_d: d }) => d!).reduce((a, b) => a.map((value, i) => value + b[i]!)),
      1e-4,
    ),
  )
})

test('the file has r singular values and their changes, and is refused by another weight', async (t) => {
  const folder = temporaryFolder()
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 1 })
  await setTensors(one, adapter, { svfit_d: [2] })
  await adapter.save(folder)
  const archive = await openSafetensors(`${folder}/adapter_model.safetensors`)
  t.deepEqual(
    [...archive.tensors.keys()].sort(),
    ['svfit_d', 'svfit_s'].map((name) => `base_model.model.model.proj.${name}`),
  )
  archive.close()
  const again = await Adapter.load(oneSite(weight).network, folder)
  t.deepEqual(
    await mergedWeight({ ...one, site: again.attachedSites[0]!.site }, again),
    await mergedWeight(one, adapter),
  )
  const other = oneSite([
    [3, 0],
    [4, 5.1],
  ])
  await t.throwsAsync(Adapter.load(other.network, folder), {
    message: /svfit_s: expected that of this model's weight, got another weight's/,
  })
  await rm(folder, { recursive: true })
})

test('save_projection writes the singular vectors too', async (t) => {
  const folder = temporaryFolder()
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 1, save_projection: true })
  await adapter.save(folder)
  const archive = await openSafetensors(`${folder}/adapter_model.safetensors`)
  t.deepEqual(archive.tensors.get('base_model.model.model.proj.svfit_u')!.shape, [2, 1])
  archive.close()
})

test('as a LoRA it has rank r and scale 1', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 1 })
  await setTensors(one, adapter, { svfit_d: [2] })
  const plain = await asLora(adapter)
  t.is(plain.method.config.r, 1)
  t.true(near(await outputOf(one, [[1, 2]], plain), await outputOf(one, [[1, 2]], adapter)))
})

test('what has no singular values is refused by name', async (t) => {
  await t.throwsAsync(attach(oneSite([[Number.NaN, 1]]), { r: 1 }), {
    message: /weight of model\.proj: expected .*finite/,
  })
  await t.throwsAsync(attach(oneSite([[0, 0]]), {}), {
    message: /svfit\.energy: model\.proj: expected a weight that is not zero/,
  })
  await t.throwsAsync(attach(oneSite(weight), { r: 3 }), { message: /model\.proj: expected r of at most 2, got 3/ })
})
