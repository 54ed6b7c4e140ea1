// (IA)³: one trained number per channel; PEFT's folders by test/golden/make_peft_methods.py.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { ia3 } from '../lib/adapters/methods/ia3.js'
import { computed } from '../lib/graph/computed.js'
import { convolution, type Forward, type Site } from '../lib/nn/site.js'
import { tensor } from '../lib/tensor/tensor.js'
import { goldenLlama } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { disturb, mergedWeight, near, networkOf, numbers, oneSite, outputOf, setTensors } from './support/one_site.js'
import { testGoldens } from './support/peft_method_goldens.js'
import { temporaryFolder } from './support/temporary_folder.js'

const W = [
  [1, 2],
  [3, 4],
  [5, 6],
]
const bias = () => tensor([10, 20, 30])

test('y = l ⊙ (W x + b), and the merged weight and bias are scaled row by row', async (t) => {
  const one = oneSite(W, { bias: bias() })
  const adapter = await Adapter.attach(one.network, ia3({ target_modules: ['proj'], feedforward_modules: [] }))
  await setTensors(one, adapter, { ia3_l: [2, 0.5, -1] })
  t.deepEqual(await outputOf(one, [[1, 1]], adapter), [26, 13.5, -41])
  t.deepEqual(await mergedWeight(one, adapter), [2, 4, 1.5, 2, -5, -6])
  await adapter.merge()
  t.deepEqual(await numbers(one.site.bias!), [20, 10, -30])
})

test('at a feed-forward module y = W (l ⊙ x) + b, and the bias stays', async (t) => {
  const one = oneSite(W, { bias: bias() })
  const adapter = await Adapter.attach(one.network, ia3({ target_modules: ['proj'], feedforward_modules: ['proj'] }))
  await setTensors(one, adapter, { ia3_l: [2, -1] })
  t.deepEqual(await outputOf(one, [[1, 1]], adapter), [10, 22, 34])
  t.deepEqual(await mergedWeight(one, adapter), [2, -2, 6, -4, 10, -6])
})

for (const isInput of [false, true])
  test(`a weight stored [in, out] gives the same, ${isInput ? 'input' : 'output'} scaled`, async (t) => {
    const one = oneSite([W.map(([a]) => a!), W.map(([, b]) => b!)], { transposed: true })
    const method = ia3({ target_modules: ['proj'], feedforward_modules: isInput ? ['proj'] : [] })
    const adapter = await Adapter.attach(one.network, method)
    await setTensors(one, adapter, { ia3_l: isInput ? [2, -1] : [2, 0.5, -1] })
    const wanted = isInput ? [0, 2, 4] : [6, 3.5, -11]
    t.deepEqual(await outputOf(one, [[1, 1]], adapter), wanted)
    await adapter.merge()
    t.deepEqual(await outputOf(one, [[1, 1]]), wanted)
  })

const forward: Forward = { precision: 'f32', training: false }
for (const isInput of [false, true])
  test(`a convolution in groups is scaled by ${isInput ? 'input' : 'output'} channel, merged or not`, async (t) => {
    const site: Site = {
      path: 'model.conv',
      kind: 'conv2d',
      weight: tensor(Float32Array.from(randomNumbers(6 * 2 * 3 * 3, 1)), [6, 2, 3, 3]),
      bias: tensor([1, 2, 3, 4, 5, 6]),
      window: { groups: 2, padding: 1 },
    }
    const method = ia3({ target_modules: ['conv'], feedforward_modules: isInput ? ['conv'] : [] })
    const adapter = await Adapter.attach(networkOf([site]), method)
    t.deepEqual(adapter.parameters().get('model.conv.ia3_l')?.shape, [1, isInput ? 4 : 6, 1, 1])
    await disturb(adapter, 1)
    const x = tensor(Float32Array.from(randomNumbers(4 * 5 * 5, 2)), [1, 4, 5, 5])
    const run = async (by?: Adapter): Promise<number[]> =>
      numbers(await computed((given) => convolution(site, given!, { ...forward, hook: by?.hook }), [x]))
    const [plain, adapted] = [await run(), await run(adapter)]
    t.false(near(adapted, plain, 1e-2))
    await adapter.merge()
    t.true(near(await run(), adapted))
  })

test('without feedforward_modules the architecture says what they are: down_proj in a Llama', async (t) => {
  const model = await goldenLlama('tiny-llama-untied')
  const adapter = await Adapter.attach(model, ia3({ target_modules: ['v_proj', 'down_proj'] }))
  const shapes = [...adapter.parameters()].map(([name, { shape }]) => [name.split('.').at(-2), shape])
  t.deepEqual(shapes.slice(0, 2), [
    ['v_proj', [32, 1]],
    ['down_proj', [1, 96]],
  ])
})

test('an architecture that PEFT has no list for asks for feedforward_modules', async (t) => {
  const { network } = oneSite(W)
  await t.throwsAsync(Adapter.attach(network, ia3({ target_modules: ['proj'] })), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /ia3\.feedforward_modules: expected names of modules/,
  })
})

test('layers that PEFT cannot choose for this method are written as whole paths', async (t) => {
  const model = await goldenLlama('tiny-llama-untied')
  const method = ia3({ target_modules: ['v_proj', 'down_proj'], layers_to_transform: 1 })
  const folder = temporaryFolder()
  await (await Adapter.attach(model, method)).save(folder)
  const config = JSON.parse(await readFile(join(folder, 'adapter_config.json'), 'utf8')) as Record<string, unknown>
  t.deepEqual(config.target_modules, ['model.layers.1.mlp.down_proj', 'model.layers.1.self_attn.v_proj'])
  t.is(config.feedforward_modules, '.*\\.(down_proj)')
  t.false('layers_to_transform' in config)
})

testGoldens(test, 'ia3')
