// Compacter: bottlenecks of Kronecker sums behind sub-layers, one A for the whole model, the norms trained with them.
import { readdirSync } from 'node:fs'
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { blockParts } from '../lib/adapters/block_roles.js'
import { compacter } from '../lib/adapters/methods/compacter.js'
import { type PhmFactors, phmProduct, phmToDense } from '../lib/adapters/methods/phm.js'
import { parameterCount } from '../lib/adapters/parameter_count.js'
import { selectSites } from '../lib/adapters/target_modules.js'
import { HeddleError } from '../lib/errors.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { add, mul } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { svd } from '../lib/linalg/factorise.js'
import { buildNetwork } from '../lib/models/build.js'
import { decoders, encoders, imageClassifiers } from '../lib/models/registry.js'
import type { Network } from '../lib/nn/network.js'
import { type Forward, linear, type Site } from '../lib/nn/site.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { golden } from './golden.js'
import { randomNumbers, randomTensor } from './random_numbers.js'
import { disturb, matrix, near, networkOf, numbers, oneSite, outputOf, setTensors } from './support/one_site.js'
import { tinyModel } from './tiny_model.js'

/** The sheet's example: n = 2, 4 → 4. */
const byHand = {
  rule: tensor([1, 0, 0, 1, 0, 1, 1, 0], [2, 2, 2]),
  left: tensor([1, 2, 1, 0], [2, 2, 1]),
  right: tensor([1, 3, 2, 1], [2, 1, 2]),
}
const factorsOf = ({ rule, left, right }: typeof byHand): PhmFactors => ({
  rule: read(rule),
  fast: [read(left), read(right)],
})

test('H = Σ Aᵢ ⊗ sᵢ tᵢ, A first: by hand', async (t) => {
  const h = await computed(() => phmToDense(factorsOf(byHand)))
  t.deepEqual(await numbers(h), [1, 3, 2, 1, 2, 6, 0, 0, 2, 1, 1, 3, 0, 0, 2, 6])
})

for (const path of ['stages', 'dense'] as const)
  test(`x H by ${path}: by hand`, async (t) => {
    const y = await computed(() => phmProduct(read(matrix([[1, 2, 3, 4]])), factorsOf(byHand), { path }))
    t.deepEqual(await numbers(y), [11, 18, 13, 34])
  })

test('stages are the product with H, of any rank, with all gradients', async (t) => {
  for (const rank of [1, 2]) {
    const leaves = [
      randomTensor([5, 12], 1),
      randomTensor([3, 3, 3], 2),
      randomTensor([3, 4, rank], 3),
      randomTensor([3, rank, 2], 4),
    ]
    const results = (path: 'stages' | 'dense'): Promise<readonly Tensor[]> =>
      computed(async () => {
        const [x, rule, left, right] = leaves.map(read) as [Sym, Sym, Sym, Sym]
        const y = phmProduct(x, { rule, fast: [left, right] }, { path })
        return [y, ...(await gradients(sum(mul(y, add(y, 1))), [x, rule, left, right]))]
      })
    const [stages, dense] = [await results('stages'), await results('dense')]
    for (const [i, each] of stages.entries()) t.true(near(await numbers(each), await numbers(dense[i]!), 1e-6))
  }
})

test('a joint permutation of the terms, and c s with t / c, change nothing', async (t) => {
  const [x, rule] = [randomTensor([2, 4], 5), randomTensor([2, 2, 2], 6)]
  const [left, right] = [randomTensor([2, 2, 1], 7), randomTensor([2, 1, 2], 8)]
  const product = (parts: typeof byHand, c = 1): Promise<number[]> =>
    computed(() => {
      const { rule: a, fast } = factorsOf(parts)
      const [s, f] = fast as readonly [Sym, Sym]
      return phmProduct(read(x), { rule: a, fast: [mul(s, c), mul(f, 1 / c)] }, { path: 'stages' })
    }).then(numbers)
  const wanted = await product({ rule, left, right })
  const exchanged = async (each: Tensor): Promise<Tensor> => {
    const values = await numbers(each)
    const half = values.length / 2
    return tensor(Float32Array.from([...values.slice(half), ...values.slice(0, half)]), each.shape)
  }
  const permuted = { rule: await exchanged(rule), left: await exchanged(left), right: await exchanged(right) }
  t.true(near(await product(permuted), wanted, 1e-6))
  t.true(near(await product({ rule, left, right }, 7), wanted, 1e-6))
})

test('rank one factors make H of rank n²', async (t) => {
  const f64 = (shape: readonly number[], seed: number): Tensor =>
    tensor(
      Float64Array.from(
        randomNumbers(
          shape.reduce((a, b) => a * b, 1),
          seed,
        ),
      ),
      shape,
    )
  const parts = { rule: f64([4, 4, 4], 9), left: f64([4, 16, 1], 10), right: f64([4, 1, 6], 11) }
  const { s } = await svd(await computed(() => phmToDense(factorsOf(parts))))
  const values = [...((await s.data()) as Float64Array)]
  t.is(values.filter((value) => value > 1e-12 * values[0]!).length, 16)
})

const small = { hypercomplex_division: 2, task_reduction_factor: 1, unfreeze_layer_norms: false } as const

test('y + act(y H₁ + b₁) H₂ + b₂ on the output y of the module, its bias included: by hand', async (t) => {
  const at = oneSite(
    [
      [1, 0, 0, 0],
      [0, 1, 0, 0],
      [0, 0, 1, 0],
      [0, 0, 0, 1],
    ],
    { bias: tensor([0, 1, 0, 0]) },
  )
  const method = compacter({ ...small, non_linearity: 'relu', target_modules: ['proj'] })
  const adapter = await Adapter.attach(at.network, method)
  const values = await Promise.all([byHand.rule, byHand.left, byHand.right].map(numbers))
  await setTensors(at, adapter, {
    phm_rule: values[0]!,
    'down_sampler.W_left': values[1]!,
    'down_sampler.W_right': values[2]!,
    'down_sampler.b': [-11, 0, 0, -40],
    'up_sampler.W_left': values[1]!,
    'up_sampler.W_right': values[2]!,
    'up_sampler.b': [0, 0, 0, 1],
  })
  // y = [1, 2, 3, 4]; y H₁ + b₁ = [0, 18, 13, -6]; relu; H₂ᵀ [0, 18, 13, 0] = [36+26, 108+13, 13, 39].
  t.deepEqual(await outputOf(at, [[1, 1, 3, 4]], adapter), [63, 123, 16, 44])
})

test('the branch of a fresh adapter is below 1e-6 of its input', async (t) => {
  const width = 768
  const rows = Array.from({ length: width }, (_, i) => Array.from({ length: width }, (_, j) => Number(i === j)))
  const at = oneSite(rows)
  const adapter = await Adapter.attach(
    at.network,
    compacter({ unfreeze_layer_norms: false, target_modules: ['proj'] }),
    { seed: 5 },
  )
  const x = randomTensor([1, width], 12)
  const factors = (name: string): PhmFactors => {
    const all = adapter.parameters()
    const at = (part: string): Sym => read(all.get(`model.proj.${name}.${part}`)!)
    return { rule: read(all.get('phm_rule')!), fast: [at('W_left'), at('W_right')] }
  }
  const branch = await computed(() => phmProduct(phmProduct(read(x), factors('down_sampler')), factors('up_sampler')))
  const size = (list: readonly number[]): number => Math.hypot(...list)
  const ratio = size(await numbers(branch)) / size(await numbers(x))
  t.true(ratio > 0 && ratio < 1e-6, `${ratio}`)
})

test('fast factors begin within √2 · √(6 / (in / n + rank)), biases at zero', async (t) => {
  const weight = tensor(new Float32Array(768 * 8), [768, 8])
  const network = networkOf([{ path: 'model.proj', kind: 'linear', weight }])
  const adapter = await Adapter.attach(network, compacter({ unfreeze_layer_norms: false, target_modules: ['proj'] }))
  const largest = async (name: string): Promise<number> =>
    Math.max(...(await numbers(adapter.parameters().get(`model.proj.${name}`)!)).map(Math.abs))
  const [left, right] = [await largest('down_sampler.W_left'), await largest('down_sampler.W_right')]
  t.true(left <= 0.2493516 && left > 0.24, `${left}`)
  t.true(right <= 1.3093074 && right > 1.1, `${right}`)
  t.is(await largest('up_sampler.b'), 0)
})

test('the gradient of the shared A is the sum over all modules', async (t) => {
  const site = (name: string, seed: number): Site => ({
    path: `model.${name}`,
    kind: 'linear',
    weight: randomTensor([4, 4], seed),
  })
  const [first, second] = [site('a', 13), site('b', 14)]
  const adapter = await Adapter.attach(networkOf([first, second]), compacter({ ...small, target_modules: ['a', 'b'] }))
  await disturb(adapter, 0.5)
  const x = randomTensor([3, 4], 15)
  const forward: Forward = { precision: 'f32', training: false, hook: adapter.hook }
  const gradient = async (sites: readonly Site[]): Promise<number[]> => {
    const found = await computed(async () => {
      const values = sites.map((each) => sum(linear(each, read(x), forward)))
      return await gradients(
        values.reduce((a, b) => add(a, b)),
        [read(adapter.parameters().get('phm_rule')!)],
      )
    })
    return await numbers(found[0]!)
  }
  const [both, a, b] = [await gradient([first, second]), await gradient([first]), await gradient([second])]
  t.true(
    near(
      both,
      a.map((value, i) => value + b[i]!),
      1e-6,
    ),
  )
})

/** Modules of the shapes of T5-base: 12 + 12 blocks of width 768, under the names of a Llama. */
const t5 = networkOf(
  Array.from({ length: 24 }, (_, i): Site[] => {
    const site = (path: string, kind: Site['kind'], shape: readonly number[]): Site =>
      ({ path: `model.layers.${i}.${path}`, kind, weight: { shape, size: shape.reduce((a, b) => a * b, 1) } }) as never
    const norms = i < 12 ? 2 : 3
    return [
      site('self_attn.o_proj', 'linear', [768, 768]),
      site('mlp.down_proj', 'linear', [768, 3072]),
      ...Array.from({ length: norms + (i % 12 === 0 ? 1 : 0) }, (_, k) => site(`norm${k}`, 'norm', [768])),
    ]
  }).flat(),
)

test("the paper's counts on T5-base: 0.073 % with norms, Compacter++ 0.047 %", (t) => {
  const all = { unfreeze_layer_norms: true }
  t.is(parameterCount(t5, compacter(all)).parameters, 161_728)
  t.is(parameterCount(t5, compacter({ ...all, add_adapter_in_self_attention: false })).parameters, 104_704)
  t.is(parameterCount(t5, compacter({ unfreeze_layer_norms: false })).parameters, 114_112)
})

test('without target_modules it is behind attention and feed-forward parts, of a decoder and of an encoder', async (t) => {
  const model = await tinyModel()
  const adapter = await model.attach(compacter({ task_reduction_factor: 8 }))
  t.deepEqual(
    adapter.sitePaths,
    [0, 1].flatMap((i) => [`model.layers.${i}.self_attn.o_proj`, `model.layers.${i}.mlp.down_proj`]),
  )
  const plus = await model.attach(compacter({ task_reduction_factor: 8, add_adapter_in_self_attention: false }))
  t.deepEqual(
    plus.sitePaths,
    [0, 1].map((i) => `model.layers.${i}.mlp.down_proj`),
  )
  await model.dispose()
})

test('in every architecture each block has one place behind attention and one behind the feed-forward part', async (t) => {
  const architectures = [...decoders, ...encoders, ...imageClassifiers]
  for (const name of readdirSync(golden('models'))) {
    const checkpoint = await openCheckpoint(golden(`models/${name}`))
    const { sites, config } = buildNetwork<Network>(architectures, checkpoint)
    const targets = selectSites(sites.values(), compacter().targetModules)
    const roles = targets.map(({ path }) => blockParts(path)!)
    const layers = Number(config.num_hidden_layers ?? config.n_layer ?? config.n_layers)
    t.is(new Set(roles.map(({ block, parts }) => `${block} ${parts}`)).size, 2 * layers, name)
    t.is(targets.length, 2 * layers, name)
  }
})

test('a network without norms is refused where norms are to be trained', async (t) => {
  const at = oneSite([
    [1, 0],
    [0, 1],
  ])
  await t.throwsAsync(
    Adapter.attach(
      at.network,
      compacter({ hypercomplex_division: 2, task_reduction_factor: 1, target_modules: ['proj'] }),
    ),
    { instanceOf: HeddleError, message: /unfreeze_layer_norms: expected false for a network without norms/ },
  )
})

test('a folder holds A once, and the norms', async (t) => {
  const model = await tinyModel()
  const adapter = await model.attach(compacter({ task_reduction_factor: 8 }))
  const names = [...adapter.parameters().keys()]
  t.is(names.filter((name) => name.includes('phm_rule')).length, 1)
  t.true(names.includes('model.norm.weight'))
  await model.dispose()
})
