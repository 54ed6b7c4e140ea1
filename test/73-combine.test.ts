// Several adapters made into one, and several active at once, against PEFT (test/golden/make_adapters_combined.py).
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { type CombineOptions, combineAdapters } from '../lib/adapters/combine.js'
import { lora } from '../lib/adapters/methods/lora.js'
import type { LoraConfig } from '../lib/adapters/methods/lora_config.js'
import { sub } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { program } from '../lib/graph/program.js'
import { assign, read } from '../lib/graph/sym.js'
import { orderStatistics } from '../lib/linalg/order_statistic.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden, goldenJson, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { logits } from './support/adapter_goldens.js'
import { temporaryFolder } from './support/temporary_folder.js'

interface CombinedGoldens {
  readonly adapters: readonly [string, string]
  readonly weights: readonly number[]
  readonly site: string
  readonly cases: Readonly<
    Record<string, { readonly options: CombineOptions; readonly r: number; readonly lora_alpha: number }>
  >
}
const peft = goldenJson<CombinedGoldens>('adapters-combined.golden.json')
const expected = (name: string): Promise<Tensor> =>
  goldenTensors('adapters-combined.golden.safetensors').then((tensors) => tensors.get(name)!)

async function loadBoth(): Promise<Adapter[]> {
  const model = await goldenLlama('tiny-llama')
  return Promise.all(peft.adapters.map((name) => Adapter.load(model, golden(name))))
}

async function ids(): Promise<number[][]> {
  const values = (await (await goldenTensors('tiny-llama.golden.safetensors')).get('ids')!.data()) as Int32Array
  return [[...values.subarray(0, 17)], [...values.subarray(17)]]
}

async function deltaOf(adapter: Adapter, path: string): Promise<Tensor> {
  const { site } = adapter.attachments.get(path)!
  const before = site.weight
  await adapter.merge()
  const step = program(() => sub(read(site.weight), read(before)))
  const result = await step()
  adapter.unmerge()
  return result
}

for (const [name, { options, r }] of Object.entries(peft.cases))
  test(`${name}: the combined adapter is PEFT's`, async (t) => {
    const adapters = await loadBoth()
    const one = await combineAdapters(adapters, peft.weights, options)
    t.is((one.method.config as LoraConfig).r, r)
    t.true((await relativeError(await deltaOf(one, peft.site), await expected(`${name}.delta`))) < 1e-4)
    const model = await goldenLlama('tiny-llama')
    const folder = temporaryFolder()
    await one.save(folder)
    const again = await Adapter.load(model, folder)
    t.true((await relativeError(await logits(model, await ids(), again), await expected(`${name}.logits`))) < 1e-4)
  })

/** B A of one module, with fixed numbers. */
async function plainAdapter(model: Awaited<ReturnType<typeof goldenLlama>>, seed: number): Promise<Adapter> {
  const adapter = await Adapter.attach(
    model,
    lora({ r: 4, lora_alpha: 4, target_modules: ['model.layers.0.mlp.up_proj'] }),
    { seed },
  )
  const b = adapter.parameters().get('model.layers.0.mlp.up_proj.lora_B.weight')!
  const values = tensor(randomNumbers(b.size, seed), b.shape)
  const fill = program(() => {
    assign(b, read(values))
    return []
  })
  await fill()
  return adapter
}

const up = 'model.layers.0.mlp.up_proj'
const numbers = async (each: Tensor): Promise<Float32Array> => (await each.data()) as Float32Array

test('dare drops each element with probability 1 - density and scales up the others', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const adapters = [await plainAdapter(model, 1), await plainAdapter(model, 2)]
  const options = { combination_type: 'dare_linear', density: 0.25, seed: 3 } as const
  const one = await combineAdapters(adapters, [1, 0], options)
  const [whole, kept] = await Promise.all(
    [adapters[0]!, one].map(async (each) => numbers(each.parameters().get(`${up}.lora_A.weight`)!)),
  )
  const share = kept!.filter((value) => value !== 0).length / kept!.length
  t.true(Math.abs(share - 0.25) < 0.08, `${share} kept`)
  t.true(kept!.every((value, i) => value === 0 || Math.abs(value / whole![i]! - 4) < 1e-5))
})

test('dare: the same seed drops the same elements, another seed others, and two adapters are dropped apart', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const twice = await plainAdapter(model, 1)
  const adapters = [twice, twice]
  const factor = async (weights: number[], seed: number): Promise<Float32Array> =>
    numbers(
      (await combineAdapters(adapters, weights, { combination_type: 'dare_linear', density: 0.5, seed }))
        .parameters()
        .get(`${up}.lora_B.weight`)!,
    )
  t.deepEqual(await factor([1, 0], 7), await factor([1, 0], 7))
  t.notDeepEqual(await factor([1, 0], 7), await factor([1, 0], 8))
  t.notDeepEqual(await factor([1, 0], 7), await factor([0, 1], 7))
})

for (const combination_type of ['dare_ties', 'dare_ties_svd', 'dare_linear_svd'] as const)
  test(`${combination_type}: with everything kept and one adapter weighted, it is that adapter`, async (t) => {
    const model = await goldenLlama('tiny-llama')
    const adapter = await plainAdapter(model, 1)
    const one = await combineAdapters([adapter, adapter], [1, 1], { combination_type, density: 1 })
    const wanted = await deltaOf(adapter, up)
    const factor = combination_type === 'dare_linear_svd' ? 2 : 1
    const step = program(() => matmul(read(wanted), read(identity), { alpha: factor }))
    const identity = tensor(
      Float32Array.from({ length: 64 * 64 }, (_, i) => (i % 65 === 0 ? 1 : 0)),
      [64, 64],
    )
    t.true((await relativeError(await deltaOf(one, up), await step())) < 1e-5)
  })

test('svd_clamp clips both factors to ± a quantile of their elements', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const adapters = [await plainAdapter(model, 1), await plainAdapter(model, 2)]
  const factors = async (options: CombineOptions): Promise<Float32Array[]> => {
    const one = await combineAdapters(adapters, [1, 1], { combination_type: 'svd', ...options })
    return Promise.all(['A', 'B'].map((name) => numbers(one.parameters().get(`${up}.lora_${name}.weight`)!)))
  }
  const free = await factors({})
  const clipped = await factors({ svd_clamp: 0.9 })
  const sorted = free.flatMap((values) => [...values]).toSorted((x, y) => x - y)
  const place = 0.9 * (sorted.length - 1)
  const [lower, upper] = [sorted[Math.floor(place)]!, sorted[Math.ceil(place)]!]
  const most = lower + (place % 1) * (upper - lower)
  for (const [i, values] of clipped.entries())
    for (const [j, value] of values.entries())
      t.true(Math.abs(value - Math.max(-most, Math.min(most, free[i]![j]!))) < 1e-6)
})

test('orderStatistics are what sorting gives, also among equal and negative elements', async (t) => {
  const values = [...randomNumbers(500, 9), 0, 0, -0.25, -0.25, 3e30, -3e30, 1e-42]
  const sorted = Float32Array.from(values).toSorted()
  const split = [tensor(values.slice(0, 300)), tensor(values.slice(300), [values.length - 300, 1])]
  const places = [0, 1, 17, 250, 251, 252, 253, values.length - 1]
  const found = await orderStatistics(places.map((index) => ({ tensors: split, index })))
  t.deepEqual(
    found,
    places.map((index) => sorted[index]! + 0),
  )
  const sizes = Float32Array.from(values, Math.abs).toSorted()
  t.deepEqual(await orderStatistics([{ tensors: split, index: 100 }], { magnitudes: true }), [sizes[100]!])
})

test('adapters that are no plain LoRAs of one model and one rank are refused, with the reason', async (t) => {
  const model = await goldenLlama('tiny-llama')
  const attach = (options: object) => Adapter.attach(model, lora({ target_modules: ['q_proj'], ...options }))
  const plain = await attach({ r: 4 })
  const refused = async (adapters: Adapter[], weights: number[], options: CombineOptions, message: RegExp) =>
    t.throwsAsync(combineAdapters(adapters, weights, options), { code: 'ERR_HEDDLE_ARGUMENT', message })
  await refused([], [], {}, /at least one/)
  await refused([plain], [1, 2], {}, /1 numbers/)
  await refused([plain, await attach({ r: 8 })], [1, 1], { combination_type: 'linear' }, /one rank/)
  await refused([plain, plain], [1, 1], { combination_type: 'ties' }, /density/)
  await refused([plain, await attach({ use_dora: true })], [1, 1], {}, /use_dora/)
  await refused([plain, await attach({ init_lora_weights: 'pissa' })], [1, 1], {}, /save it/)
  await refused([plain, await attach({ modules_to_save: ['norm'] })], [1, 1], {}, /modules_to_save/)
  await refused([plain, await Adapter.load(await goldenLlama('tiny-llama'), golden('peft-regex'))], [1, 1], {}, /model/)
})
