// OFT and BOFT by hand: rotations that are rotations, in PEFT's directions and order.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { type BoftOptions, boft } from '../lib/adapters/methods/boft.js'
import { type OftOptions, oft } from '../lib/adapters/methods/oft.js'
import { rotated } from '../lib/adapters/methods/rotation.js'
import { computed } from '../lib/graph/computed.js'
import { read } from '../lib/graph/sym.js'
import { embedding } from '../lib/nn/site.js'
import { sgd } from '../lib/optim/sgd.js'
import { tensor } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { randomNumbers } from './random_numbers.js'
import {
  matrix,
  mergedWeight,
  near,
  networkOf,
  numbers,
  type OneSite,
  oneSite,
  outputOf,
  type Rows,
  setTensors,
} from './support/one_site.js'
import { testGoldens } from './support/peft_method_goldens.js'
import { textFile, tinyModel } from './tiny_model.js'

const seeded = (count: number, seed: number): number[] => [...randomNumbers(count, seed)]

const unit = (n: number): number[][] =>
  Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => Number(i === j)))

const withOft = (one: OneSite, options: OftOptions): Promise<Adapter> =>
  Adapter.attach(one.network, oft({ target_modules: ['proj'], ...options }))
const withBoft = (one: OneSite, options: BoftOptions): Promise<Adapter> =>
  Adapter.attach(one.network, boft({ target_modules: ['proj'], ...options }))

/** What an adapter does to a module that is the identity: the rotation itself, row by row. */
async function rotationOf(
  n: number,
  attach: (one: OneSite) => Promise<Adapter>,
  value: readonly number[],
  name: string,
) {
  const one = oneSite(unit(n))
  const adapter = await attach(one)
  await setTensors(one, adapter, { [name]: value })
  return await outputOf(one, unit(n), adapter)
}

const product = (a: readonly number[], n: number): number[] => {
  const rows = Array.from({ length: n }, (_, i) => a.slice(i * n, (i + 1) * n))
  return rows.flatMap((row) => rows.map((other) => row.reduce((total, value, k) => total + value * other[k]!, 0)))
}

const exact = { use_cayley_neumann: false }

test('two channels: q turns by the angle whose half tangent it is, and its series the other way', async (t) => {
  const q = 0.25
  const [cos, sin] = [(1 - q * q) / (1 + q * q), (2 * q) / (1 + q * q)]
  const turn = (options: OftOptions) =>
    rotationOf(2, (one) => withOft(one, { oft_block_size: 2, ...options }), [q], 'oft_R.weight')
  t.true(near(await turn(exact), [cos, -sin, sin, cos]))
  // I + 2 Q + 2 Q² + 2 Q³ + Q⁴ with Q² = −q² I.
  const [diagonal, side] = [1 - 2 * q ** 2 + q ** 4, 2 * q - 2 * q ** 3]
  t.true(near(await turn({}), [diagonal, side, -side, diagonal]))
  t.true(near(await turn({ num_cayley_neumann_terms: 60 }), [cos, sin, -sin, cos]))
})

test('the series ends where PEFT ends it', async (t) => {
  const q = 0.25
  const turn = (terms: number) =>
    rotationOf(2, (one) => withOft(one, { oft_block_size: 2, num_cayley_neumann_terms: terms }), [q], 'oft_R.weight')
  t.true(near(await turn(1), [1, 0, 0, 1]))
  t.true(near(await turn(2), [1, 2 * q, -2 * q, 1]))
  const cubic = [1 - 2 * q ** 2, 2 * q - q ** 3]
  for (const terms of [3, 4]) t.true(near(await turn(terms), [cubic[0]!, cubic[1]!, -cubic[1]!, cubic[0]!]))
})

test("three channels: the numbers fill Q's upper triangle row by row", async (t) => {
  const first = await rotationOf(
    3,
    (one) => withOft(one, { oft_block_size: 3, num_cayley_neumann_terms: 2 }),
    [0.1, 0.2, 0.3],
    'oft_R.weight',
  )
  t.true(near(first, [1, 0.2, 0.4, -0.2, 1, 0.6, -0.4, -0.6, 1]))
})

test('the Cayley transform is orthogonal however large Q is', async (t) => {
  const values = seeded(2 * 28, 4).map((value) => 3 * value)
  const r = await rotationOf(16, (one) => withOft(one, { oft_block_size: 8, ...exact }), values, 'oft_R.weight')
  t.true(near(product(r, 16), unit(16).flat()))
  t.true(r.some((value, i) => i % 17 !== 0 && Math.abs(value) > 0.3))
})

test('a merged weight keeps the lengths of its rows and the angles between them', async (t) => {
  const rows = Array.from({ length: 4 }, (_, i) => seeded(8, i))
  const one = oneSite(rows)
  const adapter = await withOft(one, { oft_block_size: 8, ...exact })
  await setTensors(one, adapter, { 'oft_R.weight': seeded(28, 6) })
  const after = await mergedWeight(one, adapter)
  const gram = (flat: readonly number[]) => {
    const vectors = [0, 1, 2, 3].map((i) => flat.slice(8 * i, 8 * i + 8))
    return vectors.flatMap((a) => vectors.map((b) => a.reduce((total, value, k) => total + value * b[k]!, 0)))
  }
  t.true(near(gram(after), gram(rows.flat())))
  t.false(near(after, rows.flat(), 0.1))
})

test('block_share turns every block in the same way', async (t) => {
  const one = oneSite(unit(4))
  const adapter = await withOft(one, { oft_block_size: 2, block_share: true, ...exact })
  await setTensors(one, adapter, { 'oft_R.weight': [1] })
  t.true(near(await outputOf(one, [[1, 2, 3, 4]], adapter), [2, -1, 4, -3]))
})

test('rows of an embedding are turned', async (t) => {
  const site = {
    path: 'model.proj',
    kind: 'embedding',
    weight: matrix([
      [1, 0],
      [0, 1],
      [2, 3],
    ]),
  } as const
  const network = networkOf([site])
  const adapter = await Adapter.attach(network, oft({ target_modules: ['proj'], oft_block_size: 2, ...exact }))
  await setTensors({ network, site }, adapter, { 'oft_embedding_R.weight': [1] })
  using ids = tensor(Int32Array.of(2, 0), [2])
  const forward = { precision: 'f32', training: false, hook: adapter.hook } as const
  using rows = await computed((given) => embedding(site, given!, forward), [ids])
  t.true(near(await numbers(rows), [3, -2, 0, -1]))
  t.true(near(await mergedWeight({ network, site }, adapter), [0, -1, 1, 0, 3, -2]))
})

test('coft: after every step each block is within eps / √blocks', async (t) => {
  const model = await tinyModel()
  const eps = 0.02
  const method = oft({ target_modules: ['q_proj'], oft_block_size: 16, coft: true, eps })
  const adapter = await model.attach(method)
  const data = await textFile()
  const options = { data, adapter, optimizer: sgd({ lr: 10 }), clip: 0, maxSteps: 2, maxLength: 32, batchSize: 2 }
  for await (const _ of train(model, options));
  const norms: number[] = []
  for (const [name, each] of adapter.parameters()) {
    const values = await numbers(each)
    const perBlock = each.shape[1]!
    t.is(each.shape[0], 4, name)
    for (let block = 0; block < 4; block += 1)
      norms.push(Math.sqrt(2 * values.slice(block * perBlock, (block + 1) * perBlock).reduce((s, v) => s + v * v, 0)))
  }
  t.true(norms.every((norm) => norm <= (eps / 2) * (1 + 1e-5)))
  t.true(
    norms.some((norm) => norm >= (eps / 2) * (1 - 1e-5)),
    'the limit was reached',
  )
  await model.dispose()
})

test('dropped blocks do not turn: that many of them, in training only', async (t) => {
  const one = oneSite(unit(8))
  const adapter = await withOft(one, { oft_block_size: 2, module_dropout: 0.5, ...exact })
  await setTensors(one, adapter, { 'oft_R.weight': [1, 1, 1, 1] })
  const x = matrix([[1, 1, 1, 1, 1, 1, 1, 1]])
  const seed = tensor(Uint32Array.of(1, 2))
  const turn = (training: boolean) =>
    computed(
      (given, words) =>
        adapter.hook.apply(one.site, given!, (_, input) => input!, { precision: 'f32', training, seed: words }),
      [x, seed],
    )
  const turned = (values: readonly number[]) => [0, 2, 4, 6].filter((i) => Math.abs(values[i + 1]! + 1) < 1e-6).length
  t.is(turned(await numbers(await turn(false))), 4)
  t.is(turned(await numbers(await turn(true))), 2)
})

const butterflies: readonly BoftOptions[] = [
  { boft_block_size: 4 },
  { boft_block_size: 4, boft_n_butterfly_factor: 2 },
  { boft_block_size: 2, boft_n_butterfly_factor: 4 },
]

for (const options of butterflies)
  test(`BOFT with ${JSON.stringify(options)} is a rotation, and its merged weight the same one`, async (t) => {
    const factors = options.boft_n_butterfly_factor ?? 1
    const size = factors * 16 * options.boft_block_size!
    const values = seeded(size, 5)
    const m = await rotationOf(16, (one) => withBoft(one, options), values, 'boft_R')
    t.true(near(product(m, 16), unit(16).flat()))
    const mixed = m.slice(0, 16).filter((value) => Math.abs(value) > 1e-6).length
    t.is(mixed, options.boft_block_size! * 2 ** (factors - 1), 'channels that reach the first one')

    const rows: Rows = Array.from({ length: 3 }, (_, i) => seeded(16, 40 + i))
    const one = oneSite(rows, { bias: tensor([1, 2, 3], [3]) })
    const adapter = await withBoft(one, options)
    await setTensors(one, adapter, { boft_R: values, boft_s: [2, 0.5, -1] })
    const x = [seeded(16, 50), seeded(16, 51)]
    const wanted = await outputOf(one, x, adapter)
    await adapter.merge()
    t.true(near(await outputOf(one, x), wanted))
    adapter.unmerge()
  })

test('BOFT uses the skew part of its matrices alone', async (t) => {
  const symmetric = [1, 2, 2, -3, 0, 5, 5, 7]
  const m = await rotationOf(4, (one) => withBoft(one, { boft_block_size: 2 }), symmetric, 'boft_R')
  t.true(near(m, unit(4).flat()))
})

test('the second factor of a butterfly meets the even half blocks first', async (t) => {
  // Four half blocks of one channel: the second factor turns channels 0 and 2, and 1 and 3.
  const q = Math.tan(Math.PI / 8)
  const values = [0, 0, 0, 0, 0, 0, 0, 0, 0, q, -q, 0, 0, 0, 0, 0]
  const m = await rotationOf(
    4,
    (one) => withBoft(one, { boft_block_size: 2, boft_n_butterfly_factor: 2 }),
    values,
    'boft_R',
  )
  const h = Math.SQRT1_2
  t.true(near(m, [h, 0, -h, 0, 0, 1, 0, 0, h, 0, h, 0, 0, 0, 0, 1]))
})

test('one block for all channels or one per group: the same product', async (t) => {
  const x = matrix([[1, 2, 3, 4]])
  const quarter = tensor([0, 1, -1, 0], [1, 2, 2])
  using one = await computed(() => rotated(read(x), read(quarter)))
  t.deepEqual(await numbers(one), [-2, 1, -4, 3])
})

testGoldens(test, 'oft', 'block-methods')
testGoldens(test, 'boft', 'block-methods')
