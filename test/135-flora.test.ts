// FLoRA: the change of a weight as a Tucker tensor, by hand and against the einsum that defines it.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { flora } from '../lib/adapters/methods/flora.js'
import { lora } from '../lib/adapters/methods/lora.js'
import type { Parametrization, SitePlan } from '../lib/adapters/parametrization.js'
import { HeddleError } from '../lib/errors.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { conv2d } from '../lib/graph/ops/conv.js'
import { einsum } from '../lib/graph/ops/einsum.js'
import { add, constant, square, sub } from '../lib/graph/ops/elementwise.js'
import { mean, reshape, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read } from '../lib/graph/sym.js'
import { svd } from '../lib/linalg/factorise.js'
import { convolution, embedding, type Forward, type Site } from '../lib/nn/site.js'
import { adamw } from '../lib/optim/adamw.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { relativeError } from './golden.js'
import { randomNumbers, randomTensor } from './random_numbers.js'
import {
  disturb,
  gradientsAt,
  mergedWeight,
  near,
  networkOf,
  numbers,
  oneSite,
  outputOf,
  setTensors,
} from './support/one_site.js'

const byHand = {
  'flora_layer.param_G': [1, 2, 3, 4],
  'flora_layer.param_0': [1, 0, 0, 1, 1, 1],
  'flora_layer.param_1': [1, 1, 2, 0],
}
const wanted = [3, 7, 10, 2, 6, 8]
const zeroRows = [
  [0, 0, 0],
  [0, 0, 0],
]

test('a linear module: ΔW = s A² Gᵀ A¹ᵀ, by hand', async (t) => {
  const at = oneSite(zeroRows)
  const adapter = await Adapter.attach(at.network, flora({ r: 2, target_modules: ['proj'] }))
  await setTensors(at, adapter, byHand)
  t.deepEqual(await mergedWeight(at, adapter), wanted)
  t.true(near(await outputOf(at, [[1, 10, 100]], adapter), [1073, 862]))
})

test('a weight that is stored [in, out] gets the transposed change', async (t) => {
  const at = oneSite(
    [
      [0, 0],
      [0, 0],
      [0, 0],
    ],
    { transposed: true },
  )
  const adapter = await Adapter.attach(at.network, flora({ r: 2, scale: 2, target_modules: ['proj'] }))
  await setTensors(at, adapter, byHand)
  t.deepEqual(await mergedWeight(at, adapter), [6, 4, 14, 12, 20, 16])
  t.true(near(await outputOf(at, [[1, 10, 100]], adapter), [2146, 1724]))
})

test('as a plain LoRA it has the lower of the two ranks', async (t) => {
  for (const [r, rank] of [
    [[3, 2], 2],
    [[1, 2], 1],
  ] as const) {
    const at = oneSite(zeroRows)
    const adapter = await Adapter.attach(at.network, flora({ r, scale: 3, target_modules: ['proj'] }))
    await disturb(adapter)
    const plain = await asLora(adapter)
    t.is(plain.parameters().get('model.proj.lora_A.weight')!.shape[0], rank)
    t.true(near(await outputOf(at, [[1, 2, 3]], plain), await outputOf(at, [[1, 2, 3]], adapter)))
  }
})

test('at the first step only the core has a gradient', async (t) => {
  const at = oneSite(zeroRows)
  const adapter = await Adapter.attach(at.network, flora({ r: 2, target_modules: ['proj'] }))
  const { x, 'flora_layer.param_G': core, ...factors } = await gradientsAt(at, adapter, [[1, 2, 3]], [[1, 1]])
  t.true(
    Object.values(factors)
      .flat()
      .every((value) => value === 0),
  )
  t.true(core!.every((value) => value !== 0))
})

test("the vision code's factors have deviation √(0.5 / rank)", async (t) => {
  const weight = tensor(new Float32Array(256 * 256), [256, 256])
  const network = networkOf([{ path: 'model.proj', kind: 'linear', weight }])
  const adapter = await Adapter.attach(network, flora({ init_weights: 'vision', target_modules: ['proj'] }))
  const values = await numbers(adapter.parameters().get('model.proj.flora_layer.param_0')!)
  const deviation = Math.sqrt(values.reduce((total, value) => total + value * value, 0) / values.length)
  t.true(Math.abs(deviation - 0.25) < 0.015, `${deviation}`)
})

/** A convolution [out 6, in 4] under a window of 3 × 2. */
function convolutionSite(window: NonNullable<Site['window']>): Site {
  const perGroup = 4 / ((window.groups as number | undefined) ?? 1)
  return {
    path: 'model.conv',
    kind: 'conv2d',
    weight: randomTensor([6, perGroup, 3, 2], 1),
    bias: randomTensor([6], 2),
    window,
  }
}

const image = randomTensor([2, 4, 9, 8], 3)

const convolved = (site: Site, adapter?: Adapter): Promise<Tensor> =>
  computed(() => convolution(site, read(image), { precision: 'f32', training: false, hook: adapter?.hook }))

for (const [name, window] of Object.entries({
  'stride 2, padding 1, dilation 2': { stride: 2, padding: 1, dilation: 2 },
  'two groups': { groups: 2, stride: [1, 2] },
} as const)) {
  test(`a convolution with ${name}: kernel and stages are those of the einsum`, async (t) => {
    const site = convolutionSite(window)
    const adapter = await Adapter.attach(
      networkOf([site]),
      flora({ r: [2, 3, 2, 1], scale: 4, target_modules: ['conv'] }),
    )
    t.is(await relativeError(await convolved(site, adapter), await convolved(site)), 0)
    await disturb(adapter, 0.5)
    const [g, ...axes] = [...adapter.parameters().values()]
    const kernel = await computed(() => {
      const change = einsum('abcd,ia,ob,hc,wd->oihw', read(g!), ...axes.map(read))
      return { dense: read(site.weight), change }
    })
    const through = await convolved(site, adapter)
    const before = await numbers(site.weight)
    await adapter.merge()
    const merged = await numbers(site.weight)
    const change = await numbers(kernel.change)
    t.true(
      near(
        merged,
        before.map((value, i) => value + 4 * change[i]!),
        1e-6,
      ),
    )
    t.true((await relativeError(through, await convolved(site))) < 1e-5)
    adapter.unmerge()
  })
}

test('the unfoldings of the change have the ranks of the axes', async (t) => {
  const site = convolutionSite({})
  const ranks = [2, 3, 2, 1]
  const adapter = await Adapter.attach(networkOf([site]), flora({ r: ranks, target_modules: ['conv'] }))
  await disturb(adapter, 0.5)
  const [g, ...axes] = [...adapter.parameters().values()]
  for (const [axis, rank] of ranks.entries()) {
    const order = ['iohw', 'oihw', 'hiow', 'wioh'][axis]!
    const unfolded = await computed(() =>
      reshape(einsum(`abcd,ia,ob,hc,wd->${order}`, read(g!), ...axes.map(read)), [axes[axis]!.shape[0]!, -1]),
    )
    const { s } = await svd(unfolded)
    const values = await numbers(s)
    t.is(values.filter((value) => value > 1e-5 * values[0]!).length, rank)
  }
})

test('an embedding: rows of the in factor, then core and out', async (t) => {
  const site: Site = { path: 'model.embed', kind: 'embedding', weight: randomTensor([5, 3], 4) }
  const adapter = await Adapter.attach(networkOf([site]), flora({ r: 2, target_modules: ['embed'] }))
  await disturb(adapter, 0.5)
  const rows = (hook?: Forward['hook']): Promise<Tensor> =>
    computed(() =>
      embedding(site, read(tensor(new Int32Array([4, 0, 2]))), { precision: 'f32', training: false, hook }),
    )
  const through = await rows(adapter.hook)
  const plain = await rows()
  t.true((await relativeError(through, plain)) > 1e-3)
  await adapter.merge()
  t.true((await relativeError(through, await rows())) < 1e-6)
})

const planned = (shape: readonly number[], r: readonly number[]): SitePlan => {
  const weight = { shape, size: 0, dtype: 'f32' }
  return flora({ r }).plan({ path: 'model.conv', kind: 'conv2d', weight } as never)
}
const count = ({ parameters }: SitePlan): number =>
  Object.values(parameters).reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0)

test('numbers of a convolution: Π J + Σ I J', (t) => {
  t.is(count(planned([512, 512, 3, 3], [16, 16, 2, 2])), 17_420)
  t.is(count(planned([64, 3, 7, 7], [3, 8, 4, 4])), 961)
})

test('a rank beyond its axis is refused; one number for all axes is cut down', (t) => {
  t.throws(() => planned([64, 3, 7, 7], [4, 8, 4, 4]), { instanceOf: HeddleError, message: /at most \[3,64,7,7\]/ })
  const weight = { shape: [64, 3, 7, 7], size: 0, dtype: 'f32' }
  const plan = flora({ r: 16 }).plan({ path: 'model.conv', kind: 'conv2d', weight } as never)
  t.deepEqual(plan.parameters['flora_layer.param_G']!.shape, [3, 16, 7, 7])
})

test('all factors and the core of a convolution get gradients once the core is not zero', async (t) => {
  const site = convolutionSite({ groups: 2 })
  const adapter = await Adapter.attach(networkOf([site]), flora({ r: [2, 3, 2, 1], target_modules: ['conv'] }))
  await disturb(adapter, 0.5)
  const target = await convolved(site)
  const found = await computed(async () => {
    const y = convolution(site, read(image), { precision: 'f32', training: false, hook: adapter.hook })
    return await gradients(sum(square(sub(y, read(target)))), [...adapter.parameters().values()].map(read))
  })
  for (const each of found) t.true((await numbers(each)).every((value) => value !== 0))
})

/** A kernel of 16 → 16 channels under 3 × 3, and one that differs from it by ranks 4, 4, 2, 2 and a twentieth of noise. */
function twoKernels(): { readonly before: Float32Array; readonly change: Float32Array } {
  const [g, first, second, third, fourth] = [
    [4, 4, 2, 2],
    [16, 4],
    [16, 4],
    [3, 2],
    [3, 2],
  ].map(([a, b, c = 1, d = 1], i) => randomNumbers(a! * b! * c * d, 60 + i)) as [
    Float32Array,
    Float32Array,
    Float32Array,
    Float32Array,
    Float32Array,
  ]
  const change = new Float32Array(16 * 16 * 9)
  for (let at = 0; at < change.length; at += 1) {
    const [o, i, h, w] = [Math.floor(at / 144), Math.floor(at / 9) % 16, Math.floor(at / 3) % 3, at % 3]
    for (let j = 0; j < g.length; j += 1) {
      const [a, b, c, d] = [Math.floor(j / 16), Math.floor(j / 4) % 4, Math.floor(j / 2) % 2, j % 2]
      change[at]! += g[j]! * first[4 * i + a]! * second[4 * o + b]! * third[2 * h + c]! * fourth[2 * w + d]!
    }
  }
  const before = randomNumbers(change.length, 70).map((value) => value / 7)
  const noise = randomNumbers(change.length, 71)
  const size = Math.hypot(...before)
  const [toChange, toNoise] = [(0.5 * size) / Math.hypot(...change), (0.025 * size) / Math.hypot(...noise)]
  return { before, change: change.map((value, i) => toChange * value + toNoise * noise[i]!) }
}

test('structure beats flattening: at the ranks of the change it is learned to the noise, by LoRA of as many numbers it is not', async (t) => {
  const { before, change } = twoKernels()
  const shape = [16, 16, 3, 3]
  const site: Site = { path: 'model.conv', kind: 'conv2d', weight: tensor(before, shape), window: { padding: 1 } }
  const wanted = tensor(
    before.map((value, i) => value + change[i]!),
    shape,
  )
  const images = Array.from({ length: 8 }, (_, i) => randomTensor([64, 16, 8, 8], 80 + i))
  const error = async (method: Parametrization): Promise<{ readonly numbers: number; readonly error: number }> => {
    const adapter = await Adapter.attach(networkOf([site]), method, { seed: 1 })
    const parameters = [...adapter.parameters().values()]
    const state = await adamw({ lr: 1e-2, weightDecay: 0 }).init(parameters)
    const step = program(async (x, count) => {
      const y = convolution(site, x!, { precision: 'f32', training: true, hook: adapter.hook })
      const loss = mean(square(sub(y, conv2d(x!, read(wanted), { padding: 1 }))))
      const values = parameters.map(read)
      const context = { step: count!, learningRate: constant(1e-2), parameters: values }
      const updates = await state.update(await gradients(loss, values), context)
      for (const [i, update] of updates.entries()) assign(parameters[i]!, add(values[i]!, update))
      return loss
    })
    for (let i = 0; i < 500; i += 1) (await step(images[i % 8]!, tensor([i + 1], []))).dispose()
    step.dispose()
    await adapter.merge()
    const learned = (await numbers(site.weight)).map((value, i) => value - before[i]!)
    adapter.unmerge()
    const missed = Math.hypot(...learned.map((value, i) => value - change[i]!))
    return { numbers: adapter.parameterCount, error: missed / Math.hypot(...change) }
  }
  const tucker = await error(flora({ r: [4, 4, 2, 2], target_modules: ['conv'] }))
  const flat = await error(lora({ r: 1, lora_alpha: 1, target_modules: ['conv'] }))
  t.log({ tucker, flat })
  t.is(tucker.numbers, 204)
  t.is(flat.numbers, 160)
  t.true(tucker.error < 0.06, `${tucker.error}`)
  t.true(flat.error > 0.4, `${flat.error}`)
})
