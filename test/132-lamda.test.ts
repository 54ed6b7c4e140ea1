// LaMDA: the sheet's numbers by hand, the schedule by which B is frozen, what is kept for the backward pass, and ranks.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { type LamdaOptions, lamda } from '../lib/adapters/methods/lamda.js'
import { allocateRanks } from '../lib/adapters/methods/lamda_ranks.js'
import { lora } from '../lib/adapters/methods/lora.js'
import type { Parametrization } from '../lib/adapters/parametrization.js'
import { gradients } from '../lib/graph/grad.js'
import { add } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read } from '../lib/graph/sym.js'
import { svdvals } from '../lib/linalg/factorise.js'
import { linear, type Site } from '../lib/nn/site.js'
import { adamw } from '../lib/optim/adamw.js'
import { tensor, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import {
  gradientsAt,
  mergedWeight,
  near,
  networkOf,
  numbers,
  type OneSite,
  oneSite,
  outputOf,
  setTensors,
} from './support/one_site.js'

const attach = ({ network }: OneSite, options: LamdaOptions): Promise<Adapter> =>
  Adapter.attach(network, lamda({ target_modules: ['proj'], ...options }))

const nothing = [
  [0, 0],
  [0, 0],
]
const weight = [
  [3, 1, 0],
  [1, 2, -1],
  [0.5, 0, 4],
]

test('B S A x and its gradients, by hand', async (t) => {
  const one = oneSite(nothing)
  const adapter = await attach(one, { r: 1, init: 'spectral_zero' })
  await setTensors(one, adapter, { 'lora_A.weight': [1, 0], 'sigma.weight': [2], 'lora_B.weight': [1, 3] })
  t.true(near(await outputOf(one, [[5, 7]], adapter), [10, 30]))
  const found = await gradientsAt(one, adapter, [[5, 7]], [[1, 1]])
  t.true(near(found['lora_B.weight']!, [10, 10]))
  t.true(near(found['sigma.weight']!, [20]))
  t.true(near(found.x!, [8, 0]))
})

test('spectral: what it works on has lost its leading singular values', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 2 })
  const [before, after] = [await svdvals(one.site.weight), await svdvals([...adapter.attachments.values()][0]!.weight!)]
  t.true(near(await numbers(after), [(await numbers(before))[2]!, 0, 0]))
  t.true(near(await mergedWeight(one, adapter), weight.flat()))
})

test('spectral with a scale that is not 1 begins as the identity too, also stored [in, out]', async (t) => {
  const turned = [0, 1, 2].map((column) => weight.map((row) => row[column]!))
  const [plain, stored] = [oneSite(weight), oneSite(turned, { transposed: true })]
  for (const one of [plain, stored]) {
    const adapter = await attach(one, { r: 2, lora_alpha: 1 })
    t.true(near(await outputOf(one, [[1, -2, 3]], adapter), await outputOf(one, [[1, -2, 3]])))
  }
})

test('spectral_zero and code begin with B = 0 on the weight itself', async (t) => {
  for (const init of ['spectral_zero', 'code'] as const) {
    const one = oneSite(weight)
    const adapter = await attach(one, { r: 2, init })
    t.deepEqual(await numbers(adapter.parameters().get('model.proj.lora_B.weight')!), [0, 0, 0, 0, 0, 0])
    t.deepEqual(await outputOf(one, [[1, -2, 3]], adapter), await outputOf(one, [[1, -2, 3]]))
  }
})

test('as a LoRA: A and B S, with what spectral began with taken off', async (t) => {
  const one = oneSite(weight)
  const adapter = await attach(one, { r: 2 })
  await setTensors(one, adapter, { 'sigma.weight': [1, 2, 3, 4] })
  const plain = await asLora(adapter)
  t.is(plain.method.config.r, 2)
  t.true(near(await outputOf(one, [[1, -2, 3]], plain), await outputOf(one, [[1, -2, 3]], adapter)))
})

test('r 4, 100 steps, eta 0.3: columns of B stand still from steps 8, 15, 23 and 30 on, under momentum and decay', async (t) => {
  const [b, sigma] = [
    tensor(
      Float32Array.from({ length: 8 }, () => 1),
      [2, 4],
    ),
    tensor([1], [1]),
  ]
  const names = ['model.proj.lora_B.weight', 'model.proj.sigma.weight']
  const rule = lamda({ r: 4 }).optimizer!(adamw({ lr: 0.1, weightDecay: 0.1 }), { names, totalSteps: 100 })
  const state = await rule.init([b, sigma])
  const step = program(async (index) => {
    const parameters = [read(b), read(sigma)]
    const updates = await state.update(parameters, { step: index!, learningRate: add(index!, 0), parameters })
    for (const [i, each] of [b, sigma].entries()) assign(each, add(parameters[i]!, updates[i]!))
    return []
  })
  const lastMoves = [0, 0, 0, 0]
  let lastSigma = 0
  for (let index = 1; index <= 33; index += 1) {
    const [before, other] = [await numbers(b), await numbers(sigma)]
    await step(tensor([index], []))
    const after = await numbers(b)
    for (const column of [0, 1, 2, 3]) if (before[column] !== after[column]) lastMoves[column] = index
    if (other[0] !== (await numbers(sigma))[0]) lastSigma = index
  }
  t.deepEqual(lastMoves, [7, 14, 22, 29])
  t.is(lastSigma, 33)
  step.dispose()
})

test('the backward pass keeps r numbers a row where a LoRA keeps the whole input', async (t) => {
  const [size, rows, depth, r] = [64, 512, 6, 4]
  const sites = Array.from({ length: depth }, (_, i): Site => {
    const drawn = Float32Array.from(randomNumbers(size * size, i), (value) => value / 8)
    return { path: `layers.${i}.proj`, kind: 'linear', weight: tensor(drawn, [size, size]) }
  })
  const peak = async (method: Parametrization): Promise<number> => {
    const adapter = await Adapter.attach(networkOf(sites), method)
    const forward = { precision: 'f32', training: true, hook: adapter.hook } as const
    const step = program((x) => {
      const y = sites.reduce((input, site) => linear(site, input, forward), x!)
      return gradients(sum(y), [...adapter.parameters().values()].map(read))
    })
    const { peakBytes } = await step.plan([zeros([rows, size])])
    step.dispose()
    adapter.dispose()
    return peakBytes
  }
  const target_modules = ['proj']
  const [small, whole] = [
    await peak(lamda({ r, target_modules, init: 'code' })),
    await peak(lora({ r, target_modules })),
  ]
  const activation = 4 * rows * size
  t.true(whole - small > (depth - 3) * activation, `${small} bytes against ${whole}`)
})

test('LaMDA++: equal spectra get equal ranks, and flat ones more than those that a few ranks cover', (t) => {
  const flat = Array.from({ length: 16 }, () => 1)
  const spike = [1, ...Array.from({ length: 15 }, () => 0)]
  const options = { candidates: [2, 4, 8], budget: 4 }
  const ranks = (spectra: Readonly<Record<string, readonly number[]>>): Record<string, number> =>
    Object.fromEntries(
      allocateRanks(
        Object.entries(spectra).map(([path, spectrum]) => ({ path, spectrum })),
        options,
      ),
    )
  t.deepEqual(ranks({ a: flat, b: flat }), { a: 4, b: 4 })
  t.deepEqual(ranks({ flat, spike }), { flat: 4, spike: 2 })
  t.deepEqual(ranks({ flat, spike, other: spike, third: spike }), { flat: 8, spike: 2, other: 2, third: 2 })
  t.throws(() => allocateRanks([{ path: 'a', spectrum: flat }], { candidates: [8], budget: 4 }), {
    message: /at least 8/,
  })
  t.throws(() => allocateRanks([{ path: 'a', spectrum: [1] }], { candidates: [2], budget: 4 }), {
    message: /at most 1/,
  })
})

test('LaMDA++ writes the ranks that it found into rank_pattern', async (t) => {
  const diagonal = (values: readonly number[]) => values.map((value, i) => values.map((_, j) => (i === j ? value : 0)))
  const [flat, spike] = [
    oneSite(diagonal([1, 1, 1, 1]), { path: 'flat.proj' }),
    oneSite(diagonal([1, 0, 0, 0]), { path: 'spike.proj' }),
  ]
  const network = networkOf([flat.site, spike.site])
  const adapter = await Adapter.attach(network, lamda({ target_modules: ['proj'], rank_candidates: [1, 3], budget: 2 }))
  t.deepEqual(adapter.method.config.rank_pattern, { 'flat\\.proj': 3, 'spike\\.proj': 1 })
  t.is(adapter.parameterCount, 3 * 3 + 4 * 3 + 1 + 4)
})
