// LoRA at convolutions, against PEFT (test/golden/make_adapters_conv.py): outputs, gradients, merged kernels.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { gradients } from '../lib/graph/grad.js'
import { square } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import type { Network } from '../lib/nn/network.js'
import type { Tensor } from '../lib/tensor/tensor.js'
import { golden, goldenTensors, relativeError } from './golden.js'
import { convNetwork, convOutput, runConvNetwork } from './support/conv_network.js'

const goldens = await goldenTensors('adapters-conv.golden.safetensors')
const x = goldens.get('x')!

const network = (): Network => convNetwork(goldens, { conv1: { stride: [2, 1], padding: 1 }, conv2: { groups: 2 } })

const run = (net: Network, adapter?: Adapter): Promise<Tensor> => runConvNetwork(net, x, adapter)

for (const name of ['plain', 'pointwise', 'grouped', 'dora', 'bias']) {
  test(`${name}: PEFT's adapter gives PEFT's output and gradients`, async (t) => {
    const net = network()
    const adapter = await Adapter.load(net, golden(`adapters-conv/${name}`))
    const parameters = adapter.parameters()
    const step = program(async () => {
      const y = convOutput(net, read(x), adapter)
      return { y, gradients: await gradients(sum(square(y)), [...parameters.values()].map(read)) }
    })
    const { y, gradients: found } = await step()
    t.true((await relativeError(y, goldens.get(`${name}.y`)!)) < 1e-5)
    for (const [i, key] of [...parameters.keys()].entries()) {
      const expected = goldens.get(`${name}.gradient.base_model.model.${key}`)!
      t.true((await relativeError(found[i]!, expected)) < 1e-4, key)
    }
  })

  if (name === 'grouped') continue
  test(`${name}: the merged kernel is PEFT's and computes what the adapter computes; unmerge is exact`, async (t) => {
    const net = network()
    const adapter = await Adapter.load(net, golden(`adapters-conv/${name}`))
    const before = [...net.sites.values()].map(({ weight }) => weight)
    await adapter.merge()
    for (const path of adapter.sitePaths) {
      const expected = goldens.get(`${name}.merged.${path}.weight`)!
      t.true((await relativeError(net.sites.get(path)!.weight, expected)) < 1e-5, path)
    }
    t.true((await relativeError(await run(net), goldens.get(`${name}.y`)!)) < 1e-5)
    adapter.unmerge()
    t.deepEqual(
      [...net.sites.values()].map(({ weight }) => weight),
      before,
    )
  })
}

for (const options of [{}, { use_dora: true }, { init_lora_weights: 'gaussian' }] as const)
  test(`a fresh adapter at a convolution changes nothing: ${JSON.stringify(options)}`, async (t) => {
    const net = network()
    const adapter = await Adapter.attach(net, lora({ r: 2, target_modules: ['conv1', 'conv3'], ...options }))
    t.true((await relativeError(await run(net, adapter), await run(net))) < 1e-6)
  })

test('a grouped convolution cannot be merged, nor decomposed, nor given a rank that its groups do not share', async (t) => {
  const net = network()
  const attach = (options: object) => Adapter.attach(net, lora({ r: 4, target_modules: ['conv2'], ...options }))
  await t.throwsAsync((await attach({})).merge(), { code: 'ERR_HEDDLE_ARGUMENT', message: /conv2/ })
  await t.throwsAsync(attach({ use_dora: true }), { code: 'ERR_HEDDLE_ARGUMENT', message: /conv2.*groups/ })
  await t.throwsAsync(attach({ r: 3 }), { code: 'ERR_HEDDLE_ARGUMENT', message: /conv2.*2 groups/ })
})
