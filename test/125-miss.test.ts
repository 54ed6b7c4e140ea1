// MiSS and Bone by hand: what is folded, what is tiled, and what happens at the edges.
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { type MissOptions, miss } from '../lib/adapters/methods/miss.js'
import type { Parametrization } from '../lib/adapters/parametrization.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { computed } from '../lib/graph/computed.js'
import { add } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { assign, read } from '../lib/graph/sym.js'
import { matrixRank } from '../lib/linalg/solve.js'
import { addon } from '../lib/native.js'
import { linear, type Site } from '../lib/nn/site.js'
import { tensor } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { randomNumbers } from './random_numbers.js'
import {
  gradientsAt,
  matrix,
  mergedWeight,
  near,
  networkOf,
  numbers,
  type OneSite,
  oneSite,
  outputOf,
  type Rows,
  setTensors,
} from './support/one_site.js'
import { testGoldens } from './support/peft_method_goldens.js'
import { fitted, normal } from './support/regression.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModel } from './tiny_model.js'

const seeded = (count: number, seed: number): number[] => [...randomNumbers(count, seed)]

const attached = (one: OneSite, options: MissOptions): Promise<Adapter> =>
  Adapter.attach(one.network, miss({ target_modules: ['proj'], ...options }))

const zeroBase = (out: number, inner: number): OneSite =>
  oneSite(Array.from({ length: out }, () => new Array<number>(inner).fill(0)))

const counting = [
  [0, 1, 2, 3],
  [4, 5, 6, 7],
]
const d = [1, 10, 2, 20]

test('inputs that are r apart share a row of D', async (t) => {
  const one = oneSite(counting)
  const adapter = await attached(one, { r: 2 })
  await setTensors(one, adapter, { miss_block: d })
  t.deepEqual(await outputOf(one, [[1, 2, 3, 4]], adapter), [36, 220])
  t.deepEqual(await mergedWeight(one, adapter), [1, 3, 3, 5, 14, 25, 16, 27])
  t.deepEqual(await numbers(one.site.weight), counting.flat())
})

test('a weight stored [in, out] with a bias computes the same', async (t) => {
  const one = oneSite(
    [
      [0, 4],
      [1, 5],
      [2, 6],
      [3, 7],
    ],
    { transposed: true, bias: tensor([1, -1], [2]) },
  )
  const adapter = await attached(one, { r: 2 })
  await setTensors(one, adapter, { miss_block: d })
  t.deepEqual(await outputOf(one, [[1, 2, 3, 4]], adapter), [37, 219])
  t.deepEqual(await mergedWeight(one, adapter), [1, 14, 3, 25, 3, 16, 5, 27])
})

test('where r does not divide the inputs, the last group is a short one', async (t) => {
  const one = zeroBase(2, 5)
  const adapter = await attached(one, { r: 2 })
  await setTensors(one, adapter, { miss_block: d })
  t.deepEqual(await outputOf(one, [[1, 2, 3, 4, 5]], adapter), [21, 210])
  t.deepEqual(await mergedWeight(one, adapter), [1, 2, 1, 2, 1, 10, 20, 10, 20, 10])
})

test('mini: outputs share columns of D too', async (t) => {
  const one = zeroBase(4, 4)
  const adapter = await attached(one, { r: 2, mini_r: 2, init_weights: 'mini' })
  await setTensors(one, adapter, { miss_block: d })
  t.deepEqual(await outputOf(one, [[1, 2, 3, 4]], adapter), [16, 160, 16, 160])
  t.deepEqual(await mergedWeight(one, adapter), [1, 2, 1, 2, 10, 20, 10, 20, 1, 2, 1, 2, 10, 20, 10, 20])
})

test('bat: a block becomes W (I + B) + B', async (t) => {
  const one = oneSite(counting)
  const adapter = await attached(one, { r: 2, init_weights: 'bat' })
  await setTensors(one, adapter, { miss_block: [0.1, 0.2, 0.3, 0.4] })
  t.true(near(await outputOf(one, [[1, 2, 3, 4]], adapter), [32.4, 95.2]))
  t.true(near(await mergedWeight(one, adapter), [0.4, 1.6, 3.2, 4.8, 6.2, 8.2, 9, 11.4]))
})

for (const transposed of [false, true])
  test(`bat: B belongs to the block of outputs${transposed ? ', also of a weight stored [in, out]' : ''}`, async (t) => {
    const rows = [0, 1, 2, 3].map((i) => [0, 1, 2, 3].map((j) => (transposed ? 4 * j + i : 4 * i + j)))
    const one = oneSite(rows, { transposed })
    const adapter = await attached(one, { r: 2, init_weights: 'bat' })
    await setTensors(one, adapter, { miss_block: [0, 0, 0, 0, 1, 0, 0, 0] })
    const x: Rows = [0, 1, 2, 3].map((i) => [0, 1, 2, 3].map((j) => Number(i === j)))
    // Column j of the weight is the output for the j-th unit vector.
    t.deepEqual(await outputOf(one, x, adapter), [0, 4, 17, 24, 1, 5, 9, 13, 2, 6, 21, 28, 3, 7, 11, 15])
  })

test('gradients are those of the tiled matrix', async (t) => {
  const one = oneSite(counting)
  const adapter = await attached(one, { r: 2 })
  await setTensors(one, adapter, { miss_block: d })
  const { miss_block: dd, x } = await gradientsAt(one, adapter, [[1, 2, 3, 4]], [[1, -1]])
  t.deepEqual(dd, [4, -4, 6, -6])
  t.deepEqual(x, [-13, -22, -13, -22])
})

test('the change has rank r, and that of bat as much as there is room for', async (t) => {
  const rankOf = async (options: MissOptions, count: number): Promise<number> => {
    const one = oneSite(Array.from({ length: 8 }, (_, i) => seeded(12, 20 + i)))
    const adapter = await attached(one, options)
    await setTensors(one, adapter, { miss_block: seeded(count, 3) })
    const [before, after] = [await numbers(one.site.weight), await mergedWeight(one, adapter)]
    const change = after.map((value, i) => value - before[i]!)
    using rank = await matrixRank(tensor(Float32Array.from(change), [8, 12]), { rtol: 1e-5 })
    return rank.item()
  }
  t.is(await rankOf({ r: 3 }, 24), 3)
  t.is(await rankOf({ r: 4, init_weights: 'bat' }, 32), 8)
})

test('as a LoRA of rank r it is the same, with a short last group as well', async (t) => {
  const one = oneSite(Array.from({ length: 4 }, (_, i) => seeded(7, i)))
  const adapter = await attached(one, { r: 3, mini_r: 2, init_weights: 'mini' })
  await setTensors(one, adapter, { miss_block: seeded(6, 9) })
  const plain = await asLora(adapter)
  const x = [seeded(7, 31), seeded(7, 32)]
  t.is(plain.attachments.get('model.proj')!.parameters['lora_A.weight']!.shape[0], 3)
  t.true(near(await outputOf(one, x, plain), await outputOf(one, x, adapter)))
})

test('init_weights false begins at random', async (t) => {
  const one = zeroBase(4, 4)
  const adapter = await attached(one, { r: 2, init_weights: false })
  const values = await numbers(adapter.parameters().get('model.proj.miss_block')!)
  t.true(values.every((value) => value !== 0 && Math.abs(value) <= 0.5))
})

test('dropout is active in training only, and not with bat', async (t) => {
  const lossesOf = async (options: MissOptions): Promise<number[]> => {
    const model = await tinyModel()
    const method = miss({ target_modules: ['q_proj'], ...options })
    const losses: number[] = []
    for await (const { loss } of train(model, {
      data: await textFile(),
      method,
      maxSteps: 3,
      maxLength: 32,
      batchSize: 2,
    }))
      losses.push(loss)
    await model.dispose()
    return losses
  }
  t.notDeepEqual(await lossesOf({ r: 8, miss_dropout: 0.5 }), await lossesOf({ r: 8 }))
  const bat = { r: 8, init_weights: 'bat' } as const
  t.deepEqual(await lossesOf({ ...bat, miss_dropout: 0.5 }), await lossesOf(bat))
})

test("folders of the time when PEFT called it Bone are read, and written under today's name", async (t) => {
  const one = oneSite(counting)
  const adapter = await attached(one, { r: 2, bias: 'MiSS_only' })
  await setTensors(one, adapter, { miss_block: d })
  const [old, again] = [temporaryFolder(), temporaryFolder()]
  await adapter.save(old)
  const configPath = join(old, 'adapter_config.json')
  const { mini_r: _, miss_dropout: __, ...config } = JSON.parse(await readFile(configPath, 'utf8'))
  await writeFile(configPath, JSON.stringify({ ...config, peft_type: 'BONE', bias: 'Bone_only' }))
  const block = matrix([d.slice(0, 2), d.slice(2)])
  const entries = [{ name: 'base_model.model.model.proj.bone_block', tensor: block.native }]
  await addon.writeSafetensors(join(old, 'adapter_model.safetensors'), entries, { format: 'pt' })

  const loaded = await Adapter.load(one.network, old)
  t.deepEqual(await outputOf(one, [[1, 2, 3, 4]], loaded), [36, 220])
  await loaded.save(again)
  t.is(JSON.parse(await readFile(join(again, 'adapter_config.json'), 'utf8')).peft_type, 'MISS')
  const archive = await openSafetensors(join(again, 'adapter_model.safetensors'))
  t.deepEqual([...archive.tensors.keys()], ['base_model.model.model.proj.miss_block'])
  archive.close()
})

/** 512 rows through a module of 64 × 64, and what it should give: with one matrix per block multiplied in, or any change. */
async function regressionOf(change: 'block-affine' | 'any') {
  const weight = await normal([64, 64], 1, 1 / 8)
  const site: Site = { path: 'model.proj', kind: 'linear', weight }
  const network = networkOf([site])
  const x = await normal([512, 64], 2)
  const made = await Adapter.attach(network, miss({ r: 16, init_weights: 'bat' }))
  const block = [...made.parameters().values()][0]!
  const [blocks, free] = [await normal(block.shape, 3, 0.2), await normal([64, 64], 4, 1 / 16)]
  await computed(() => {
    assign(block, read(blocks))
    return []
  })
  const hook = change === 'any' ? undefined : made.hook
  const y = await computed(() => {
    const base = linear(site, read(x), { precision: 'f32', training: false, hook })
    return change === 'any' ? add(base, matmul(read(x), read(free), { transposeB: true })) : base
  })
  return async (method: Parametrization, lr: number, steps: number): Promise<number[]> => {
    const adapter = await Adapter.attach(network, method)
    return fitted({ adapter, model: (rows, forward) => linear(site, rows, forward), x, y, lr, steps })
  }
}

test('bat learns a change of its own kind, which MiSS and LoRA of the same size do not', async (t) => {
  const run = await regressionOf('block-affine')
  const end = async (method: Parametrization): Promise<number> => {
    const errors = await run(method, 1e-2, 600)
    return errors.at(-1)! / errors[0]!
  }
  const [bat, plain, low] = [
    await end(miss({ r: 16, init_weights: 'bat' })),
    await end(miss({ r: 16 })),
    await end(lora({ r: 8, lora_alpha: 8 })),
  ]
  t.true(bat < 1e-3, `${bat}`)
  t.true(plain > 0.05 && low > 0.05, `${plain} ${low}`)
})

test('MiSS starts faster than LoRA of the same size, and ends higher', async (t) => {
  const run = await regressionOf('any')
  const [early, late] = [20, 800]
  const plain = await run(miss({ r: 16 }), 1e-3, late)
  const low = await run(lora({ r: 8, lora_alpha: 8 }), 1e-3, late)
  t.true(plain[early]! < low[early]! * 0.97, `${plain[early]} ${low[early]}`)
  t.true(plain[late]! > low[late]!, `${plain[late]} ${low[late]}`)
})

testGoldens(test, 'miss', 'block-methods')
