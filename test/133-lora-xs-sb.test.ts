// LoRA-XS and LoRA-SB: the core's place and transpose, projections of the gradient, and the first step of full training.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { loraSb, loraXs } from '../lib/adapters/methods/lora_xs.js'
import { openSafetensors } from '../lib/formats/safetensors.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { read } from '../lib/graph/sym.js'
import { linear, type Site } from '../lib/nn/site.js'
import type { Calibration } from '../lib/observers/calibration.js'
import {
  gradientsAt,
  matrix,
  mergedWeight,
  near,
  numbers,
  type OneSite,
  oneSite,
  outputOf,
  type Rows,
  setTensors,
} from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'

const core = 'default_lora_latent_mapping.weight'
const weight = [
  [2, 1, 0.5],
  [-1, 3, 1],
]
const gradient = [
  [3, -1, 0.5],
  [0.2, 0, -4],
]

/** A task whose loss is ⟨G, W⟩. */
function taskOf(site: Site, g: Rows): Calibration {
  const [inner, out] = [g[0]!.length, g.length]
  const identity = Float32Array.from({ length: inner * inner }, (_, i) => (i % (inner + 1) === 0 ? 1 : 0))
  const weights = matrix(Array.from({ length: inner }, (_, j) => Array.from({ length: out }, (_, i) => g[i]![j]!)))
  const objective = {
    name: 'product',
    config: {},
    inputs: ['x'],
    arrays: () => ({ x: { data: identity, shape: [inner, inner] } }),
    weight: () => 1,
    tokens: () => 1,
    loss: async (_: unknown, { x }: Readonly<Record<string, never>>, forward: never) =>
      sum(mul(linear(site, x!, forward), read(weights))),
  }
  return {
    objective: objective as never,
    async *batches() {
      yield 0
    },
  }
}

const sb = (
  one: OneSite,
  r: number,
  g: Rows = gradient,
  options: Parameters<typeof loraSb>[0] = {},
): Promise<Adapter> =>
  Adapter.attach(one.network, loraSb({ target_modules: ['proj'], r, eta1: 0.1, ...options }), {
    calibration: taskOf(one.site, g),
  })

const changeOf = async (one: OneSite, adapter: Adapter): Promise<number[]> => {
  const before = await numbers(one.site.weight)
  return (await mergedWeight(one, adapter)).map((value, i) => value - before[i]!)
}

test('R stands as x Aᵀ Rᵀ Bᵀ: a transposed one would be found out', async (t) => {
  const one = oneSite([
    [0, 0],
    [0, 0],
  ])
  const adapter = await Adapter.attach(one.network, loraXs({ target_modules: ['proj'], r: 2 }))
  const own = { 'lora_A.weight': [1, 0, 0, 1], 'lora_B.weight': [1, 0, 0, 1], [core]: [0, 1, 0, 0] }
  await setTensors(one, adapter, own)
  t.true(near(await outputOf(one, [[5, 7]], adapter), [7, 0]))
  const found = await gradientsAt(one, adapter, [[5, 7]], [[1, 2]])
  t.true(near(found[core]!, [5, 7, 10, 14]))
})

test('XS: B and A are the leading part of the weight, R next to nothing', async (t) => {
  const one = oneSite(weight)
  const adapter = await Adapter.attach(one.network, loraXs({ target_modules: ['proj'], r: 2 }))
  const start = await numbers(adapter.parameters().get(`model.proj.${core}`)!)
  t.true(start.every((value) => value !== 0 && Math.abs(value) < 1e-4))
  // R = 1 adds the whole weight once more.
  await setTensors(one, adapter, { [core]: [1, 0, 0, 1] })
  t.true(
    near(
      await mergedWeight(one, adapter),
      weight.flat().map((value) => 2 * value),
    ),
  )
})

test('SB: the start is the best approximation of −eta1 · sign(G)', async (t) => {
  const one = oneSite(weight)
  const [first, whole] = [await changeOf(one, await sb(one, 1)), await changeOf(one, await sb(one, 2))]
  t.true(near(first, [-0.1, 0.1, -0.1, 0, 0, 0]))
  t.true(near(whole, [-0.1, 0.1, -0.1, -0.1, 0, 0.1]))
})

test('SB: another scale changes R and not the start', async (t) => {
  const one = oneSite(weight)
  t.true(near(await changeOf(one, await sb(one, 1, gradient, { lora_alpha: 4 })), [-0.1, 0.1, -0.1, 0, 0, 0]))
})

test('SB: raw follows the gradient itself', async (t) => {
  const one = oneSite(weight)
  const change = await changeOf(one, await sb(one, 2, gradient, { gradient: 'raw' }))
  t.true(
    near(
      change,
      gradient.flat().map((value) => -0.1 * value),
    ),
  )
})

test('SB: a step on R moves the weight by the projection of the whole gradient', async (t) => {
  const one = oneSite(weight)
  const adapter = await sb(one, 1)
  const [x, g] = [[[1, -2, 0.5]], [[0.3, 2]]]
  const found = await gradientsAt(one, adapter, x, g)
  const [a, b] = ['lora_A.weight', 'lora_B.weight'].map((name) => adapter.buffers().get(`model.proj.${name}`)!)
  const [right, left] = [await numbers(a!), await numbers(b!)]
  t.true(near([right.reduce((all, v) => all + v * v, 0), left.reduce((all, v) => all + v * v, 0)], [1, 1]))
  // P_B G P_A with G = gᵀ x, P_B = b bᵀ, P_A = aᵀ a
  const projected =
    left.reduce((all, v, i) => all + v * g[0]![i]!, 0) * right.reduce((all, v, j) => all + v * x[0]![j]!, 0)
  t.true(near(found[core]!, [projected]))
})

test('SB: what was found attaches again, in tensors of its own', async (t) => {
  const one = oneSite(weight)
  const first = await sb(one, 1)
  const second = await Adapter.attach(one.network, first.method)
  first.dispose()
  t.true(near(await changeOf(one, second), [-0.1, 0.1, -0.1, 0, 0, 0]))
})

test('SB: a weight stored [in, out] begins the same', async (t) => {
  const turned = [0, 1, 2].map((column) => weight.map((row) => row[column]!))
  const one = oneSite(turned, { transposed: true })
  const change = await changeOf(one, await sb(one, 1))
  t.true(near(change, [-0.1, 0, 0.1, 0, -0.1, 0]))
})

test('SB: no data, no gradient and one that is not finite are refused by name', async (t) => {
  const one = oneSite(weight)
  await t.throwsAsync(Adapter.attach(one.network, loraSb({ target_modules: ['proj'], r: 1 })), {
    message: /calibration/,
  })
  const zero = gradient.map((row) => row.map(() => 0))
  await t.throwsAsync(sb(one, 1, zero), { message: /lora_sb: model\.proj: expected a gradient from the calibration/ })
  const broken = gradient.map((row) => row.map(() => Number.NaN))
  await t.throwsAsync(sb(one, 1, broken, { gradient: 'raw' }), { message: /model\.proj: expected .*finite/ })
})

test('a folder has A, B and R under the names that PEFT gives them, and loads without data', async (t) => {
  const folder = temporaryFolder()
  const one = oneSite(weight)
  const adapter = await sb(one, 1)
  await adapter.save(folder)
  const archive = await openSafetensors(`${folder}/adapter_model.safetensors`)
  t.deepEqual(
    [...archive.tensors.keys()].sort(),
    [core, 'lora_A.weight', 'lora_B.weight'].map((name) => `base_model.model.model.proj.${name}`),
  )
  archive.close()
  const other = oneSite(weight)
  const again = await Adapter.load(other.network, folder)
  t.deepEqual(await mergedWeight(other, again), await mergedWeight(one, adapter))
})
