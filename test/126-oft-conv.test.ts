// OFT and BOFT at convolutions, against PEFT's merged kernels (test/golden/make_rotations_conv.py).
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { boft } from '../lib/adapters/methods/boft.js'
import { oft } from '../lib/adapters/methods/oft.js'
import type { Parametrization } from '../lib/adapters/parametrization.js'
import { HeddleError } from '../lib/errors.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { add, mul, square } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import { convolution, type Site } from '../lib/nn/site.js'
import type { Tensor } from '../lib/tensor/tensor.js'
import { golden, goldenTensors, relativeError } from './golden.js'
import { randomTensor } from './random_numbers.js'
import { convOutput, runConvNetwork } from './support/conv_network.js'
import { disturb, near, networkOf, numbers } from './support/one_site.js'
import { rotationGoldens, rotationMethods, rotationNetwork } from './support/rotations_conv.js'
import { temporaryFolder } from './support/temporary_folder.js'

const x = rotationGoldens.get('x')!

for (const name of Object.keys(rotationMethods)) {
  test(`${name}: PEFT's adapter gives the output, gradients and kernels of PEFT's merged network`, async (t) => {
    const net = rotationNetwork()
    const adapter = await Adapter.load(net, golden(`rotations-conv/${name}`))
    const parameters = adapter.parameters()
    const step = program(async () => {
      const y = convOutput(net, read(x), adapter)
      return { y, gradients: await gradients(sum(square(y)), [...parameters.values()].map(read)) }
    })
    const { y, gradients: found } = await step()
    t.true((await relativeError(y, rotationGoldens.get(`${name}.y`)!)) < 1e-5)
    for (const [i, key] of [...parameters.keys()].entries()) {
      const expected = rotationGoldens.get(`${name}.gradient.base_model.model.${key}`)!
      t.true((await relativeError(found[i]!, expected)) < 1e-4, key)
    }
    const before = [...net.sites.values()].map(({ weight }) => weight)
    await adapter.merge()
    for (const path of adapter.sitePaths) {
      const expected = rotationGoldens.get(`${name}.merged.${path}.weight`)!
      t.true((await relativeError(net.sites.get(path)!.weight, expected)) < 1e-5, path)
    }
    t.true((await relativeError(await runConvNetwork(net, x), y)) < 1e-5)
    adapter.unmerge()
    t.deepEqual(
      [...net.sites.values()].map(({ weight }) => weight),
      before,
    )
  })

  test(`${name}: what Heddle writes, PEFT computes, and Heddle writes it again byte for byte`, async (t) => {
    const net = rotationNetwork()
    const from = golden(`rotations-conv-heddle/${name}`)
    const adapter = await Adapter.load(net, from)
    const expected = (await goldenTensors('rotations-conv-heddle.golden.safetensors')).get(`${name}.y`)!
    t.true((await relativeError(await runConvNetwork(net, x, adapter), expected)) < 1e-5)
    const folder = temporaryFolder()
    await adapter.save(folder)
    for (const file of ['adapter_config.json', 'adapter_model.safetensors'])
      t.deepEqual(await readFile(join(folder, file)), await readFile(join(from, file)))
  })

  test(`${name}: a fresh adapter changes nothing, bit for bit`, async (t) => {
    const net = rotationNetwork()
    const adapter = await Adapter.attach(net, rotationMethods[name]!)
    t.deepEqual(await numbers(await runConvNetwork(net, x, adapter)), await numbers(await runConvNetwork(net, x)))
  })
}

/** A window that is no square and skips pixels; PEFT takes squares only. */
const site = (): Site => ({
  path: 'conv',
  kind: 'conv2d',
  weight: randomTensor([5, 4, 3, 2], 1),
  bias: randomTensor([5], 2),
  window: { stride: [2, 1], padding: 1, dilation: 2 },
})
const image = randomTensor([2, 4, 9, 8], 3)
const anyWindow: Readonly<Record<string, Parametrization>> = {
  oft: oft({ oft_block_size: 6, use_cayley_neumann: false, target_modules: ['conv'] }),
  boft: boft({ boft_block_size: 6, boft_n_butterfly_factor: 2, target_modules: ['conv'] }),
}

for (const [name, method] of Object.entries(anyWindow)) {
  test(`${name}: any window: merged is forward, gradients are those of finite differences`, async (t) => {
    const at = site()
    const adapter = await Adapter.attach(networkOf([at]), method)
    await disturb(adapter, 0.5)
    const convolved = (hook?: Adapter['hook']): Sym =>
      convolution(at, read(image), { precision: 'f32', training: false, hook })
    const through = await computed(() => convolved(adapter.hook))
    const weigh = randomTensor(through.shape, 4)
    const value = (): Promise<Tensor> => computed(() => sum(mul(convolved(adapter.hook), read(weigh))))
    const trained = [...adapter.parameters().values()]
    const found = await computed(async () =>
      gradients(sum(mul(convolved(adapter.hook), read(weigh))), trained.map(read)),
    )
    for (const [i, each] of trained.entries()) {
      const direction = randomTensor(each.shape, 10 + i)
      const slope = await computed(() => sum(mul(read(found[i]!), read(direction))))
      const move = (h: number): Promise<unknown> =>
        computed(() => {
          assign(each, add(read(each), mul(read(direction), h)))
          return []
        })
      await move(1e-2)
      const above = (await value()).item()
      await move(-2e-2)
      const difference = (above - (await value()).item()) / 2e-2
      await move(1e-2)
      t.true(
        Math.abs(slope.item() - difference) < 0.01 * Math.abs(slope.item()) + 1e-2,
        `${slope.item()} ${difference}`,
      )
    }
    await adapter.merge()
    t.true((await relativeError(await computed(() => convolved()), through)) < 1e-5)
  })
}

test('exact OFT keeps the lengths of kernels', async (t) => {
  const at = site()
  const adapter = await Adapter.attach(networkOf([at]), anyWindow.oft!)
  await disturb(adapter, 0.5)
  const lengths = async (): Promise<number[]> =>
    numbers(await computed(() => sum(square(read(at.weight)), { axes: [1, 2, 3] })))
  const [before, old] = [await lengths(), await numbers(at.weight)]
  await adapter.merge()
  t.true(near(await lengths(), before))
  t.false(near(await numbers(at.weight), old, 0.1))
})

test('a convolution in groups is refused, whose kernels see a part of the channels', async (t) => {
  const grouped: Site = { ...site(), weight: randomTensor([6, 2, 3, 2], 1), window: { groups: 2 } }
  for (const [name, method] of Object.entries(anyWindow))
    await t.throwsAsync(Adapter.attach(networkOf([grouped]), method), {
      instanceOf: HeddleError,
      message: new RegExp(`${name}: conv: expected a convolution without groups, got 2`),
    })
})
