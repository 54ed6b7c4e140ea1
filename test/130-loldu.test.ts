// LoLDU: the sheet's numbers by hand, zero pivots, and which weight a file belongs to.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { loldu } from '../lib/adapters/methods/loldu.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
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
  [1, 2, 4],
  [4, 4, 8],
  [2, 6, 2],
]

/** σ = 1. */
const attach = ({ network }: OneSite, rank: number): Promise<Adapter> =>
  Adapter.attach(network, loldu({ target_modules: ['proj'], rank, lora_alpha: rank }))

const buffer = async (adapter: Adapter, name: string): Promise<number[]> => [
  ...((await adapter.buffers().get(`model.proj.${name}`)!.data()) as Float32Array | Int32Array),
]

test('P L, D and U are those of [[1, 2, 4], [4, 4, 8], [2, 6, 2]]', async (t) => {
  const adapter = await attach(oneSite(weight), 3)
  t.deepEqual(await buffer(adapter, 'loldu_d'), [4, 4, 2.5])
  t.deepEqual(await buffer(adapter, 'loldu_pivots'), [1, 2, 0])
  t.deepEqual(await buffer(adapter, 'loldu_l'), [0.25, 0.25, 1, 1, 0, 0, 0.5, 1, 0])
  t.deepEqual(await buffer(adapter, 'loldu_u'), [1, 1, 2, 0, 1, -0.5, 0, 0, 1])
})

test('dz = [4, 0] takes [1, 0, 0] to [2, 8, 4], and the merged weight does too', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, 2)
  await setTensors(one, adapter, { loldu_dz: [4, 0] })
  t.true(near(await outputOf(one, [[1, 0, 0]], adapter), [2, 8, 4]))
  t.true(near(await mergedWeight(one, adapter), [2, 3, 6, 8, 8, 16, 4, 8, 6]))
})

test('the scale is lora_alpha / rank', async (t) => {
  const one = oneSite(weight)
  const adapter = await Adapter.attach(one.network, loldu({ target_modules: ['proj'], rank: 2 }))
  await setTensors(one, adapter, { loldu_dz: [8, 0] })
  t.true(near(await mergedWeight(one, adapter), [2, 3, 6, 8, 8, 16, 4, 8, 6]))
})

test('the gradient of dzⱼ is gᵀ (P L)ⱼ · Uⱼ x', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, 2)
  const { loldu_dz: found } = await gradientsAt(one, adapter, [[1, 0, 0]], [[1, 1, 1]])
  t.true(near(found!, [1.75, 0]))
})

test('tall and wide weights, also stored [in, out], take the whole change of all pivots', async (t) => {
  const tall = [
    [1, -2, 0.5],
    [3, 1, 1],
    [0.2, 4, -1],
    [2, 2, 5],
    [-3, 0, 1],
  ]
  const wide = tall[0]!.map((_, column) => tall.map((row) => row[column]!))
  for (const [rows, isTransposed] of [
    [tall, false],
    [wide, false],
    [tall, true],
  ] as const) {
    const one = oneSite(rows, { transposed: isTransposed })
    const adapter = await attach(one, 3)
    // dz = D doubles the weight.
    await setTensors(one, adapter, { loldu_dz: await buffer(adapter, 'loldu_d') })
    t.true(
      near(
        await mergedWeight(one, adapter),
        rows.flat().map((value) => 2 * value),
      ),
    )
  }
})

test('a pivot of zero is left out: no effect, no gradient', async (t) => {
  const one = oneSite([
    [1, 2],
    [2, 4],
  ])
  const adapter = await attach(one, 2)
  t.deepEqual(await buffer(adapter, 'loldu_d'), [2, 0])
  await setTensors(one, adapter, { loldu_dz: [2, 7] })
  t.true(near(await mergedWeight(one, adapter), [2, 4, 4, 8]))
  const { loldu_dz: found } = await gradientsAt(one, adapter, [[1, 1]], [[1, 1]])
  t.is(found![1], 0)
})

test('a convolution is changed as the matrix [out, in · kh · kw]', async (t) => {
  const flat = [
    [1, 2, 4, 3],
    [4, 4, 8, 1],
  ]
  const kernel = tensor(Float32Array.from(flat.flat()), [2, 1, 2, 2])
  const site = { path: 'model.proj', kind: 'conv2d', weight: kernel } as const
  const conv = { site: { ...site }, network: networkOf([{ ...site }]) }
  const adapter = await attach(conv, 2)
  const matrix = oneSite(flat)
  const other = await attach(matrix, 2)
  for (const [one, each] of [
    [{ ...conv, site: adapter.attachedSites[0]!.site }, adapter],
    [matrix, other],
  ] as const)
    await setTensors(one, each, { loldu_dz: [1, -2] })
  const merged = await mergedWeight({ ...conv, site: adapter.attachedSites[0]!.site }, adapter)
  t.true(near(merged, await mergedWeight(matrix, other)))
})

test('the file has three numbers a pivot; a weight with other pivots refuses it', async (t) => {
  const folder = temporaryFolder()
  const adapter = await attach(oneSite(weight), 2)
  await adapter.save(folder)
  const archive = await openSafetensors(`${folder}/adapter_model.safetensors`)
  t.deepEqual(
    [...archive.tensors.values()].map(({ shape }) => shape),
    [[2], [2], [2]],
  )
  archive.close()
  t.is((await Adapter.load(oneSite(weight).network, folder)).parameterCount, 2)
  const swapped = [weight[1]!, weight[0]!, weight[2]!]
  await t.throwsAsync(Adapter.load(oneSite(swapped).network, folder), {
    message: /loldu_pivots: expected that of this/,
  })
})

test('more pivots than the weight has, and weights that are not finite, are refused by name', async (t) => {
  await t.throwsAsync(attach(oneSite(weight), 4), { message: /model\.proj: expected rank of at most 3, got 4/ })
  await t.throwsAsync(attach(oneSite([[Number.NaN, 1]]), 1), { message: /weight of model\.proj: expected .*finite/ })
})
