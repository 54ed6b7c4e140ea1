// SALT: the sheet's numbers by hand, with and without the element-wise relu.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { type SaltOptions, salt } from '../lib/adapters/methods/salt.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { computed } from '../lib/graph/computed.js'
import { tensor } from '../lib/tensor/tensor.js'
import {
  gradientsAt,
  mergedWeight,
  near,
  networkOf,
  type OneSite,
  oneSite,
  outputOf,
  setTensors,
} from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'

const weight = [
  [4, 0, 0],
  [0, 3, 0],
  [0, 0, 2],
]
const identity = [
  [1, 0, 0],
  [0, 1, 0],
  [0, 0, 1],
]
const ones = identity.map((row) => row.map(() => 1))

const attach = ({ network }: OneSite, options: SaltOptions = {}): Promise<Adapter> =>
  Adapter.attach(network, salt({ target_modules: ['proj'], rank: 1, r_lora: 1, ...options }))

const values = { trainable_scale_A: [1.5], trainable_shift_B: [-1], trainable_X: [1, 2], trainable_Y: [0.5, -0.25] }

test('a scales, b shifts, X Y is added to the rest of the spectrum', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one)
  await setTensors(one, adapter, values)
  t.true(near(await mergedWeight(one, adapter), [5, 0, 0, 0, 3.5, -0.25, 0, 1, 1.5]))
  t.true(near(await outputOf(one, [[1, 2, 4]], adapter), [5, 6, 8]))
})

test('relu cuts every negative element off, also those beside the diagonal', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { activation: 'relu' })
  await setTensors(one, adapter, values)
  t.true(near(await mergedWeight(one, adapter), [5, 0, 0, 0, 3.5, 0, 0, 1, 1.5]))
  t.true(near(await outputOf(one, [[1, 2, 4]], adapter), [5, 7, 8]))
})

test('gradients at the start: with relu none reaches what is exactly 0', async (t) => {
  for (const [activation, expected] of [
    ['none', [3, 3]],
    ['relu', [1, 2]],
  ] as const) {
    const one = oneSite(weight)
    const adapter = await attach(one, { activation })
    await setTensors(one, adapter, { trainable_X: [1, 2] })
    const found = await gradientsAt(one, adapter, identity, ones)
    t.true(near(found.trainable_scale_A!, [4]))
    t.true(near(found.trainable_shift_B!, [1]))
    t.true(near(found.trainable_X!, [0, 0]))
    t.true(near(found.trainable_Y!, expected))
  }
})

test('the regulariser is a sum of lengths, and its gradient at the start is 0, not NaN', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { reg_multiplier: 0.1 })
  const penalty = async (): Promise<number> => {
    using value = await computed(() => adapter.penalty()!)
    return value.item()
  }
  t.true((await penalty()) < 1e-12)
  const { gradients } = await import('../lib/graph/grad.js')
  const { read } = await import('../lib/graph/sym.js')
  const found = await computed(() => gradients(adapter.penalty()!, [...adapter.parameters().values()].map(read)))
  for (const each of found) t.true(((await each.data()) as Float32Array).every((value) => value === 0))
  await setTensors(one, adapter, values)
  // |4 · 1.5 − 1 − 4| + ‖[[0.5, −0.25], [1, −0.5]]‖
  t.true(Math.abs((await penalty()) - 0.1 * (1 + 1.25)) < 1e-6)
})

test('weights that are wide, tall or stored [in, out] change by U (M − diag s) Vᵀ', async (t) => {
  const rows = [
    [1, 2, 0.5],
    [-1, 3, 2],
  ]
  const turned = [0, 1, 2].map((column) => rows.map((row) => row[column]!))
  const own = { trainable_scale_A: [2], trainable_shift_B: [1], trainable_X: [2], trainable_Y: [0.5] }
  const merged: number[][] = []
  for (const one of [oneSite(rows), oneSite(turned, { transposed: true })]) {
    const adapter = await attach(one)
    await setTensors(one, adapter, own)
    merged.push(await mergedWeight(one, adapter))
  }
  const [plain, stored] = merged as [number[], number[]]
  t.true(
    near(
      stored,
      [0, 1, 2].flatMap((column) => [plain[column]!, plain[3 + column]!]),
    ),
  )
  const { svdvals } = await import('../lib/linalg/factorise.js')
  using before = await svdvals(tensor(Float32Array.from(rows.flat()), [2, 3]))
  using after = await svdvals(tensor(Float32Array.from(plain), [2, 3]))
  const [s, changed] = [[...((await before.data()) as Float32Array)], [...((await after.data()) as Float32Array)]]
  t.true(near(changed, [2 * s[0]! + 1, s[1]! + 1]))
})

test('at full rank there is no rest, and the adapter scales and shifts alone', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { rank: 3 })
  t.is(adapter.parameterCount, 6)
  await setTensors(one, adapter, { trainable_scale_A: [1, 2, 1], trainable_shift_B: [0, 0, 3] })
  t.true(near(await mergedWeight(one, adapter), [4, 0, 0, 0, 6, 0, 0, 0, 5]))
})

test('a ratio is of the smaller side, rounded down', async (t) => {
  const method = salt({ target_modules: ['proj'], ratio_salt: 0.5, r_lora: 1 })
  const adapter = await Adapter.attach(oneSite(weight).network, method)
  t.is(adapter.parameterCount, 2 * 1 + 2 * 2)
})

test('a convolution is changed as the matrix [out, in · kh · kw]', async (t) => {
  const flat = [
    [1, 2, 4, 3],
    [4, 4, 8, 1],
  ]
  const own = { trainable_scale_A: [2], trainable_shift_B: [1], trainable_X: [2], trainable_Y: [0.5] }
  const site = {
    path: 'model.proj',
    kind: 'conv2d' as const,
    weight: tensor(Float32Array.from(flat.flat()), [2, 1, 2, 2]),
  }
  const merged: number[][] = []
  for (const one of [{ site, network: networkOf([site]) }, oneSite(flat)]) {
    const adapter = await attach(one)
    await setTensors(one, adapter, own)
    merged.push(await mergedWeight(one, adapter))
  }
  t.true(near(merged[0]!, merged[1]!))
})

test('without relu it is a LoRA of rank r + l; with it, it is not of low rank', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one)
  await setTensors(one, adapter, values)
  const plain = await asLora(adapter)
  t.is(plain.method.config.r, 2)
  t.true(near(await outputOf(one, [[1, 2, 4]], plain), [5, 6, 8]))
  await t.throwsAsync(asLora(await attach(oneSite(weight), { activation: 'relu' })), { message: /low-rank factors/ })
})

test('a file knows its weight by the singular values and by the vectors', async (t) => {
  const folder = temporaryFolder()
  const adapter = await attach(oneSite(weight))
  await adapter.save(folder)
  const archive = await openSafetensors(`${folder}/adapter_model.safetensors`)
  t.deepEqual([...archive.tensors.keys()].map((name) => name.split('.').at(-1)).sort(), [
    'salt_probe',
    'salt_s',
    'trainable_X',
    'trainable_Y',
    'trainable_scale_A',
    'trainable_shift_B',
  ])
  archive.close()
  const stretched = weight.map((row) => row.map((value) => 1.1 * value))
  await t.throwsAsync(Adapter.load(oneSite(stretched).network, folder), { message: /salt_s: expected that of this/ })
  const reversed = weight.map((row) => row.toReversed())
  await t.throwsAsync(Adapter.load(oneSite(reversed).network, folder), { message: /salt_probe: expected that of this/ })
})
