// AdaLoRA: PEFT's training step by step, and by hand what hands out the ranks.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { type AdaLoraOptions, adalora } from '../lib/adapters/methods/adalora.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { add, constant, tanh } from '../lib/graph/ops/elementwise.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import { convolution, type Forward, linear, type Site } from '../lib/nn/site.js'
import { adamw } from '../lib/optim/adamw.js'
import type { TransformState } from '../lib/optim/gradient_transform.js'
import { sgd } from '../lib/optim/sgd.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { golden, goldenJson, goldenLlama, goldenTensors, relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { batchOf, logits, stepOf } from './support/adapter_goldens.js'
import { disturb, near, networkOf, numbers, oneSite, outputOf, setTensors } from './support/one_site.js'
import { fitted, normal } from './support/regression.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModel } from './tiny_model.js'

interface Golden {
  readonly base: string
  readonly options: AdaLoraOptions
  readonly trainable: number
  readonly ids: readonly (readonly number[])[]
  readonly labels: readonly (readonly number[])[]
  readonly optimizer: { readonly lr: number; readonly eps: number; readonly weight_decay: number }
  readonly steps: readonly {
    readonly loss: number
    readonly penalty: number
    readonly budget: number
    readonly mask: Readonly<Record<string, readonly boolean[]>>
  }[]
}
const peft = goldenJson<Golden>('adalora.golden.json')
const peftTensor = async (name: string): Promise<Tensor> =>
  (await goldenTensors('adalora.golden.safetensors')).get(name)!

const configOf = async (folder: string) => JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8'))

/** Which entries of E are not 0, by name. */
async function maskOf(adapter: Adapter): Promise<Record<string, boolean[]>> {
  const masks: Record<string, boolean[]> = {}
  for (const [name, each] of adapter.parameters())
    if (name.endsWith('.lora_E')) masks[name] = (await numbers(each)).map((value) => value !== 0)
  return masks
}

test("PEFT's adapter gives PEFT's logits, with as many parameters", async (t) => {
  const model = await goldenLlama(peft.base)
  const adapter = await Adapter.load(model, golden('adalora/start'))
  t.is(adapter.parameterCount, peft.trainable)
  t.true((await relativeError(await logits(model, peft.ids, adapter), await peftTensor('start'))) < 1e-5)
})

test("a whole run: PEFT's losses, its masks after every step, its logits, and its folder at the end", async (t) => {
  const model = await goldenLlama(peft.base)
  const adapter = await Adapter.load(model, golden('adalora/start'))
  const { lr, eps, weight_decay: weightDecay } = peft.optimizer
  const step = await stepOf(model, adapter, adamw({ lr, eps, weightDecay }), 999)
  for (const [i, { loss, penalty, mask }] of peft.steps.entries()) {
    using added = await computed(() => adapter.penalty()!)
    t.true(Math.abs(added.item() / penalty - 1) < 1e-3, `penalty ${added.item()}, PEFT has ${penalty}`)
    const measured = await step.run({ batches: [batchOf(peft)], step: i + 1, learningRate: lr })
    t.true(Math.abs(measured.loss / loss - 1) < 1e-4, `loss ${measured.loss}, PEFT has ${loss}`)
    t.deepEqual(await maskOf(adapter), mask, `after step ${i + 1}`)
  }
  step.dispose()
  t.true((await relativeError(await logits(model, peft.ids, adapter), await peftTensor('trained'))) < 1e-3)

  const folder = temporaryFolder()
  await adapter.save(folder)
  const [ours, theirs] = [await configOf(folder), await configOf(golden('adalora/trained'))]
  t.deepEqual(ours.rank_pattern, theirs.rank_pattern)
  const again = await Adapter.load(model, folder)
  const fromPeft = await Adapter.load(model, golden('adalora/trained'))
  t.deepEqual(
    [...again.parameters()].map(([name, { shape }]) => [name, shape]),
    [...fromPeft.parameters()].map(([name, { shape }]) => [name, shape]),
  )
  t.true((await relativeError(await logits(model, peft.ids, again), await logits(model, peft.ids, adapter))) < 1e-6)
})

test("PEFT's folder of a trained adapter, without the rows that lost their rank, gives PEFT's logits", async (t) => {
  const model = await goldenLlama(peft.base)
  const adapter = await Adapter.load(model, golden('adalora/trained'))
  t.true((await relativeError(await logits(model, peft.ids, adapter), await peftTensor('reloaded'))) < 1e-5)
  const folder = temporaryFolder()
  await adapter.save(folder)
  t.deepEqual((await configOf(folder)).rank_pattern, (await configOf(golden('adalora/trained'))).rank_pattern)
})

test('what Heddle writes, PEFT computes: modules without a rank too', async (t) => {
  const model = await goldenLlama(peft.base)
  const adapter = await Adapter.load(model, golden('adalora/heddle'))
  const ranks = [...adapter.parameters()].flatMap(([name, { shape }]) => (name.endsWith('.lora_E') ? [shape[0]] : []))
  t.true(ranks.includes(0), `${ranks}`)
  const expected = (await goldenTensors('adalora-heddle.golden.safetensors')).get('logits')!
  t.true((await relativeError(await logits(model, peft.ids, adapter), expected)) < 1e-5)
  const plain = await asLora(adapter)
  t.true((await relativeError(await logits(model, peft.ids, plain), expected)) < 1e-5)
})

/** The rule of `sites` modules of one input and output, with its state, over these values of A, E and B. */
async function ruleOf(options: AdaLoraOptions, values: readonly (readonly [number[], number[], number[]])[], lr = 0) {
  const names = values.flatMap((_, i) => [`m${i}.lora_A`, `m${i}.lora_E`, `m${i}.lora_B`])
  const parameters = values.flatMap(([a, e, b]) => [
    tensor(a, [a.length, 1]),
    tensor(e, [e.length, 1]),
    tensor(b, [1, b.length]),
  ])
  const inner = sgd({ lr })
  const rule = adalora({ target_modules: ['m'], ...options }).optimizer!(inner, { names, totalSteps: 20 })
  const state = await rule.init(parameters)
  return { parameters, state, lr }
}

async function advance(
  { parameters, state, lr }: { parameters: Tensor[]; state: TransformState; lr: number },
  step: number,
  gradient: readonly number[][],
): Promise<void> {
  await computed(async () => {
    const given = gradient.map((each, i) => read(tensor(each, parameters[i]!.shape)))
    const values = parameters.map(read)
    const context = { step: constant(step), learningRate: constant(lr), parameters: values }
    const updates = await state.update(given, context)
    for (const [i, each] of parameters.entries()) assign(each, add(values[i]!, updates[i]!))
    return []
  })
}

test('importance is smoothed, its uncertainty with what it is smoothed to', async (t) => {
  const rule = await ruleOf({ init_r: 1, target_r: 1 }, [[[1], [0.5], [1]]])
  await advance(rule, 1, [[0], [0.8], [0]])
  const { tensors } = rule.state
  t.true(near(await numbers(tensors['adalora.importance.1']!), [0.06]))
  t.true(near(await numbers(tensors['adalora.uncertainty.1']!), [0.051]))
})

test('the budget falls by the cubic schedule, and E grows again between allocations', async (t) => {
  const options = { init_r: 4, target_r: 2, total_step: 20, tinit: 4, tfinal: 4, deltaT: 2 }
  const some = (seed: number): number[] => [...randomNumbers(4, seed)]
  const rule = await ruleOf(
    options,
    [
      [some(1), some(2), some(3)],
      [some(4), some(5), some(6)],
    ],
    0.1,
  )
  const left: number[] = []
  for (let step = 1; step <= 20; step += 1) {
    await advance(
      rule,
      step,
      [0, 1, 2, 3, 4, 5].map((i) => some(100 * step + i)),
    )
    const e = [...(await numbers(rule.parameters[1]!)), ...(await numbers(rule.parameters[4]!))]
    left.push(e.filter((value) => value !== 0).length)
  }
  t.deepEqual(left, [8, 8, 8, 8, 8, 6, 8, 5, 8, 4, 8, 4, 8, 4, 8, 4, 4, 4, 4, 4])
})

test('a run that goes on for long after the last allocation keeps its ranks', async (t) => {
  const options = { init_r: 4, target_r: 1, total_step: 20, tinit: 2, tfinal: 15, deltaT: 1 }
  const rule = await ruleOf(options, [
    [
      [1, 2, 3, 4],
      [0.1, 0.2, 0.3, 0.4],
      [1, 1, 1, 1],
    ],
  ])
  const left: number[] = []
  for (let step = 1; step <= 20; step += 1) {
    await advance(rule, step, [
      [0, 0, 0, 0],
      [1, 1, 1, 1],
      [0, 0, 0, 0],
    ])
    left.push((await numbers(rule.parameters[1]!)).filter((value) => value !== 0).length)
  }
  t.deepEqual(left.slice(4), new Array(16).fill(1))
})

test('with as many ranks at the end as at the start none is taken', async (t) => {
  const rule = await ruleOf({ init_r: 2, target_r: 2 }, [
    [
      [1, 2],
      [3, 4],
      [5, 6],
    ],
  ])
  for (let step = 1; step <= 20; step += 1)
    await advance(rule, step, [
      [1, 1],
      [1, 1],
      [1, 1],
    ])
  t.deepEqual(await numbers(rule.parameters[1]!), [3, 4])
})

test('all triplets with the score of the threshold go, as in PEFT', async (t) => {
  const rule = await ruleOf({ init_r: 2, target_r: 1, total_step: 1 }, [
    [
      [1, 1],
      [1, 1],
      [1, 1],
    ],
  ])
  await advance(rule, 1, [
    [1, 1],
    [1, 1],
    [1, 1],
  ])
  t.deepEqual(await numbers(rule.parameters[1]!), [0, 0])
})

test('the scale is that of the first rank, whatever is left', async (t) => {
  const one = oneSite([[0, 0]])
  const rank_pattern = { 'model.proj.lora_E': [false, true, false, false] }
  const method = adalora({ target_modules: ['proj'], init_r: 4, target_r: 1, lora_alpha: 8, rank_pattern })
  const adapter = await Adapter.attach(one.network, method)
  await setTensors(one, adapter, { lora_A: [1, 2], lora_E: [3], lora_B: [5] })
  t.true(near(await outputOf(one, [[1, 10]], adapter), [(8 / 4.00001) * 5 * 3 * 21]))
})

test('the term of orthogonality: norms, not squared, over all A and B', async (t) => {
  const one = oneSite([[1, 0, 0]])
  const adapter = await Adapter.attach(one.network, adalora({ target_modules: ['proj'], init_r: 1, target_r: 1 }))
  await setTensors(one, adapter, { lora_A: [1, 2, 2], lora_B: [0.6] })
  using penalty = await computed(() => adapter.penalty()!)
  t.true(near([penalty.item()], [0.5 * ((9 - 1 + (1 - 0.36)) / 2)]))
})

test('where A and B are orthogonal already its gradient is 0', async (t) => {
  const one = oneSite([[1, 0]])
  const adapter = await Adapter.attach(one.network, adalora({ target_modules: ['proj'], init_r: 1, target_r: 1 }))
  await setTensors(one, adapter, { lora_A: [1, 0], lora_B: [1] })
  const found = await computed(() => gradients(adapter.penalty()!, [...adapter.parameters().values()].map(read)))
  t.deepEqual((await Promise.all(found.map(numbers))).flat(), [0, 0, 0, 0])
})

test('the term of fresh A and B [8, 768] is about 1.96', async (t) => {
  const one = oneSite(Array.from({ length: 768 }, () => new Array<number>(768).fill(0)))
  const method = adalora({ target_modules: ['proj'], init_r: 8, target_r: 8, orth_reg_weight: 1 })
  const adapter = await Adapter.attach(one.network, method)
  using penalty = await computed(() => adapter.penalty()!)
  t.true(Math.abs(penalty.item() - 1.96) < 0.05, `${penalty.item()}`)
})

test('by default the schedule is that of the run, and a run too short for it is refused', async (t) => {
  const model = await tinyModel()
  const method = adalora({ target_modules: ['q_proj', 'v_proj'], init_r: 4, target_r: 2, tinit: 2, tfinal: 2 })
  const options = { data: await textFile(), maxLength: 32, batchSize: 2, optimizer: adamw({ lr: 1e-2 }) }
  const adapter = await model.attach(method)
  for await (const _ of train(model, { ...options, adapter, maxSteps: 8 }));
  const left = Object.values(await maskOf(adapter)).flat()
  t.is(left.filter((isThere) => isThere).length, 8)

  const folder = temporaryFolder()
  await adapter.save(folder)
  const again = await model.loadAdapter(folder)
  for await (const _ of train(model, { ...options, adapter: again, maxSteps: 3 }));
  t.true(
    Object.values(await maskOf(again))
      .flat()
      .every((isThere) => isThere),
    'no schedule runs again',
  )

  const short = async () => {
    for await (const _ of train(model, { ...options, method, maxSteps: 4 }));
  }
  await t.throwsAsync(short, { message: /more steps than tinit \+ tfinal, 4, got 4/ })
  await model.dispose()
})

test('a folder of an adapter that was never trained keeps all ranks and leaves its schedule open', async (t) => {
  const one = oneSite([[1, 2]])
  const adapter = await Adapter.attach(one.network, adalora({ target_modules: ['proj'], init_r: 2, target_r: 1 }))
  const folder = temporaryFolder()
  await adapter.save(folder)
  const { rank_pattern: pattern, total_step: total } = await configOf(folder)
  t.is(pattern, undefined)
  t.is(total, 2 ** 31 - 1)
  const again = await Adapter.load(one.network, folder)
  t.is(again.parameterCount, adapter.parameterCount)
  t.is(again.method.config.total_step, undefined)
})

test('a convolution computes what its merged kernel does', async (t) => {
  const weight = tensor(randomNumbers(2 * 3 * 2 * 2, 1), [2, 3, 2, 2])
  const site = { path: 'model.proj', kind: 'conv2d' as const, weight, window: { stride: 2, padding: 1 } }
  const network = networkOf([site])
  const adapter = await Adapter.attach(network, adalora({ target_modules: ['proj'], init_r: 3, target_r: 1 }))
  await disturb(adapter, 0.5)
  t.is(adapter.parameterCount, 3 * (12 + 1 + 2))
  const x = tensor(randomNumbers(3 * 5 * 5, 2), [1, 3, 5, 5])
  const forward = { precision: 'f32', training: false } as const
  const wanted = await computed((given) => convolution(site, given!, { ...forward, hook: adapter.hook }), [x])
  await adapter.merge()
  const merged = await computed((given) => convolution(site, given!, forward), [x])
  t.true(near(await numbers(merged), await numbers(wanted)))
  adapter.unmerge()
})

test('LoRA variants that PEFT refuses here too are refused', async (t) => {
  const { adaloraType } = await import('../lib/adapters/methods/adalora.js')
  t.throws(() => adaloraType.restore({ use_dora: true }), { message: /use_dora/ })
  t.notThrows(() => adaloraType.restore({ use_dora: false, r: 8, megatron_core: 'megatron.core', loftq_config: {} }))
})

test('of three modules the one that has to change gets most of the ranks', async (t) => {
  const site = async (name: string, seed: number): Promise<Site> => ({
    path: `model.${name}`,
    kind: 'linear',
    weight: await normal([32, 32], seed, 32 ** -0.5),
  })
  const sites = [await site('first', 1), await site('middle', 2), await site('last', 3)]
  const model = (x: Sym, forward: Forward): Sym => {
    const [first, middle, last] = sites as [Site, Site, Site]
    return linear(last, tanh(linear(middle, tanh(linear(first, x, forward)), forward)), forward)
  }
  const network = networkOf(sites)
  const x = await normal([256, 32], 4)
  const change = await Adapter.attach(network, lora({ r: 6, lora_alpha: 6, target_modules: ['middle'] }))
  const [a, b] = [await normal([6, 32], 5, 0.2), await normal([32, 6], 6, 0.2)]
  const at = { network, site: sites[1]! }
  await setTensors(at, change, { 'lora_A.weight': await numbers(a), 'lora_B.weight': await numbers(b) })
  const y = await computed(() => model(read(x), { precision: 'f32', training: false, hook: change.hook }))
  const method = adalora({
    target_modules: ['first', 'middle', 'last'],
    init_r: 6,
    target_r: 2,
    tinit: 100,
    tfinal: 200,
    deltaT: 10,
    orth_reg_weight: 0.01,
  })
  const adapter = await Adapter.attach(network, method, { seed: 1 })
  const errors = await fitted({ adapter, model, x, y, lr: 5e-3, steps: 600 })
  const ranks = Object.values(await maskOf(adapter)).map((mask) => mask.filter((isThere) => isThere).length)
  t.is(ranks[0]! + ranks[1]! + ranks[2]!, 6)
  t.true(ranks[1]! >= 4, `${ranks}`)
  t.true(errors.at(-1)! < 0.2 * errors[0]!, `${errors[0]} ${errors.at(-1)}`)
})
