// What a method has made at some modules is freed at once when it fails at another one, or in the middle of one.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { declared, zero } from '../lib/adapters/initial_values.js'
import { lqLora } from '../lib/adapters/methods/lq_lora.js'
import type { Parametrization, Prepared } from '../lib/adapters/parametrization.js'
import { copied } from '../lib/graph/computed.js'
import type { Network } from '../lib/nn/network.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { liveBytes } from './support/live_tensors.js'
import { networkOf } from './support/one_site.js'

const size = 256

/** Two modules, of which the second has no finite weight. */
function badNetwork(): Network {
  const numbers = (seed: number): Float32Array => Float32Array.from(randomNumbers(size * size, seed))
  const broken = numbers(2)
  broken[7] = Number.NaN
  return networkOf(
    [numbers(1), broken].map((values, i) => ({
      path: `model.layers.${i}.proj`,
      kind: 'linear',
      weight: tensor(values, [size, size]),
    })),
  )
}

test.serial('LQ-LoRA at a weight that is not finite leaves no tensor behind', async (t) => {
  const network = badNetwork()
  const before = liveBytes()
  const attach = (): Promise<Adapter> => Adapter.attach(network, lqLora({ num_ranks: 64, target_modules: ['proj'] }))
  await t.throwsAsync(attach, { code: 'ERR_HEDDLE_ARGUMENT' })
  t.is(liveBytes(), before)
})

/** A method that says what it makes, and fails as it is told. */
function failing(how: 'shape' | 'initial' | 'shared'): { readonly method: Parametrization; readonly made: Tensor[] } {
  const made: Tensor[] = []
  const make = async (shape: readonly number[]): Promise<Tensor> => {
    using value = zeros(shape)
    const own = await copied(value)
    made.push(own)
    return own
  }
  const prepare = async (): Promise<Prepared> => ({
    values: { a: await make([size, 2]), b: await make(how === 'shape' ? [3] : [2]) },
    weight: await make([size, size]),
  })
  const shared = (name: string) => ({
    shape: [4],
    isTrained: false,
    make: async () => {
      if (name === 'second' && how === 'shared') throw new Error('no second one')
      return await make([4])
    },
  })
  const method: Parametrization = {
    name: 'failing',
    config: {},
    targetModules: ['proj'],
    trainedParts: () => ['weight'],
    shared: () => ({ first: shared('first'), second: shared('second') }),
    plan: () => ({
      parameters: { a: declared([size, 2], zero), ...(how === 'initial' ? { c: { shape: [1] } } : {}) },
      buffers: { b: { shape: [2] } },
      prepare,
      forward: ({ base }) => base(),
    }),
  }
  return { method, made }
}

for (const [how, message] of [
  ['shape', /layers\.0\.proj\.b: expected \[2\], got \[3\]/],
  ['initial', /layers\.0\.proj\.c: expected an initial value/],
  ['shared', /no second one/],
] as const)
  test.serial(
    `what fails (${how}): every tensor that the method gave is freed, and every copy of the model's`,
    async (t) => {
      const network = badNetwork()
      const { method, made } = failing(how)
      const before = liveBytes()
      await t.throwsAsync(Adapter.attach(network, method), { message })
      t.true(made.length > 0)
      for (const each of made) t.throws(() => each.native, { message: /a disposed one/ })
      t.is(liveBytes(), before)
    },
  )
