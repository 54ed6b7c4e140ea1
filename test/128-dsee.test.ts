// DSEE: where the sparse part lies, what it computes, and the weight that is pruned by it.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { packed, unpacked } from '../lib/adapters/masked_weight.js'
import { type DseeOptions, dsee } from '../lib/adapters/methods/dsee.js'
import { type DseePruneOptions, dseePrune } from '../lib/adapters/methods/dsee_prune.js'
import { dseePruneStructured } from '../lib/adapters/methods/dsee_structured.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { computed } from '../lib/graph/computed.js'
import { assign, read } from '../lib/graph/sym.js'
import { buildNetwork } from '../lib/models/build.js'
import type { Encoder } from '../lib/models/encoder.js'
import { encoders } from '../lib/models/registry.js'
import type { Network } from '../lib/nn/network.js'
import type { Site } from '../lib/nn/site.js'
import { adamw } from '../lib/optim/adamw.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { callOn } from './conformance/subjects.js'
import { golden, relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import {
  disturb,
  gradientsAt,
  matrix,
  mergedWeight,
  near,
  networkOf,
  numbers,
  oneSite,
  outputOf,
  setTensors,
} from './support/one_site.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModel } from './tiny_model.js'

const seeded = (count: number, seed: number): number[] => [...randomNumbers(count, seed)]
const rowsOf = (out: number, inner: number, seed: number): number[][] =>
  Array.from({ length: out }, (_, i) => seeded(inner, 100 * seed + i))

/** Of rank 2, but for five spikes. */
const spikes = [5, 39, 85, 131, 68]
const spiked = Array.from({ length: 12 }, (_, row) =>
  Array.from({ length: 12 }, (__, column) => {
    const [i, j] = [row + 1, column + 1]
    const spike = [0.4, -0.5, 0.3, -0.35, 0.45][spikes.indexOf(12 * row + column)] ?? 0
    return 0.05 * Math.sin(i) * Math.cos(j) + 0.03 * Math.cos(2 * i) * Math.sin(3 * j) + spike
  }),
)

/** Where S has its entries, as row · inputs + column. */
async function entriesOf(adapter: Adapter): Promise<number[]> {
  const { site, buffers } = adapter.attachedSites[0]!
  const [rows, columns] = [await numbers(buffers.row_pointers!), await numbers(buffers.column_indices!)]
  const width = site.transposed ? site.weight.shape[0]! : site.weight.shape[1]!
  return columns.map((column, k) => rows.findLastIndex((start) => start <= k) * width + column)
}

const attached = (network: Network, options: DseeOptions): Promise<Adapter> =>
  Adapter.attach(network, dsee({ target_modules: ['proj'], ...options }), { seed: 3 })

for (const transposed of [false, true])
  test(`the decomposition finds the spikes of a matrix of low rank${transposed ? ', also stored [in, out]' : ''}`, async (t) => {
    const turned = spiked[0]!.map((_, j) => spiked.map((row) => row[j]!))
    const one = oneSite(transposed ? turned : spiked, { transposed })
    const method = dsee({ target_modules: ['proj'], num_sparse: 5, outer: 1 })
    const hits: number[] = []
    for (let seed = 0; seed < 16; seed += 1) {
      const adapter = await Adapter.attach(one.network, method, { seed })
      hits.push((await entriesOf(adapter)).filter((entry) => spikes.includes(entry)).length)
    }
    // It starts from a random vector: of 40 starts the authors' code finds all five from 19, and mostly four else.
    t.true(hits.every((count) => count >= 4) && hits.includes(5), `${hits}`)
  })

test('where the low-rank part has grown over everything, too few entries are left, and that is said', async (t) => {
  const error = await t.throwsAsync(attached(oneSite(spiked).network, { num_sparse: 5, outer: 3 }))
  t.regex(error.message, /sparse part has 5 entries, got 0/)
})

test('omp takes the largest entries of the weight, rp any, the same ones for the same seed', async (t) => {
  const one = oneSite([
    [1, -5, 2],
    [4, 0.5, -3],
  ])
  t.deepEqual(await entriesOf(await attached(one.network, { num_sparse: 3, sparse_method: 'omp' })), [1, 3, 5])
  const any = { num_sparse: 4, sparse_method: 'rp' } as const
  const first = await entriesOf(await attached(one.network, any))
  t.is(new Set(first).size, 4)
  t.deepEqual(await entriesOf(await attached(one.network, any)), first)
})

test('y = W x + s (B A + S) x', async (t) => {
  for (const transposed of [false, true]) {
    const one = oneSite(
      transposed
        ? [
            [1, 4],
            [9, 5],
            [3, 6],
          ]
        : [
            [1, 9, 3],
            [4, 5, 6],
          ],
      { transposed },
    )
    const options = { lora_r: 1, lora_alpha: 2, num_sparse: 2, sparse_method: 'omp' } as const
    const adapter = await attached(one.network, options)
    await setTensors(one, adapter, {
      'lora_A.weight': [1, 0, -1],
      'lora_B.weight': [1, 2],
      sparse_value: [10, 100],
    })
    // Entries (0, 1) and (1, 2).
    t.deepEqual(await outputOf(one, [[1, 2, 5]], adapter), [34 + 2 * (-4 + 20), 44 + 2 * (-8 + 500)])
    const change = [2, 20, -2, 4, 0, 196]
    const weight = [1, 9, 3, 4, 5, 6].map((value, i) => value + change[i]!)
    const turned = [0, 3, 1, 4, 2, 5].map((i) => weight[i]!)
    t.deepEqual(await mergedWeight(one, adapter), transposed ? turned : weight)
    const { sparse_value: gradient } = await gradientsAt(one, adapter, [[1, 2, 5]], [[1, -1]])
    t.deepEqual(gradient, [2 * 2, 2 * -5])
  }
})

test('a place outside of the matrix, as a damaged file may have it, fails the run and reads nothing', async (t) => {
  const one = oneSite([
    [1, 9, 3],
    [4, 5, 6],
  ])
  const adapter = await attached(one.network, { num_sparse: 2, sparse_method: 'omp' })
  const { column_indices: columns } = adapter.attachedSites[0]!.buffers
  await computed(() => {
    assign(columns!, read(tensor(Int32Array.of(1, 1_000_000), [2])))
    return []
  })
  await t.throwsAsync(outputOf(one, [[1, 2, 5]], adapter), { message: /an index|column|outside|expected/ })
})

test('coefficients: one per head or channel, one at the start, with the sum of their magnitudes in the loss', async (t) => {
  const one = oneSite([[1, 2, 3, 4]])
  const network = { ...one.network, config: { num_attention_heads: 2 } }
  const heads = await attached(network, { head_coefficients: ['proj'], coefficient_l1: 0.5 })
  t.is(heads.parameterCount, 2)
  t.is(heads.method.config.num_heads, 2)
  await setTensors(one, heads, { dsee_c: [2, -3] })
  t.deepEqual(await outputOf(one, [[1, 1, 1, 1]], heads), [2 * 3 - 3 * 7])
  t.deepEqual(await mergedWeight(one, heads), [2, 4, -9, -12])
  using penalty = await computed(() => heads.penalty()!)
  t.is(penalty.item(), 0.5 * 5)
  const channels = await attached(network, { neuron_coefficients: ['model.proj'] })
  t.is(channels.parameterCount, 4)
})

test('without a sparse part it is a LoRA', async (t) => {
  const one = oneSite(rowsOf(4, 6, 1))
  const adapter = await attached(one.network, { num_sparse: 0 })
  await disturb(adapter)
  const x = rowsOf(2, 6, 2)
  t.true(near(await outputOf(one, x, await asLora(adapter)), await outputOf(one, x, adapter)))
  const pruned = await dseePrune(adapter, { other_modules: ['proj'] })
  await t.throwsAsync(asLora(pruned.adapter), { message: /low-rank factors/ })
})

test('masks are kept in bits', async (t) => {
  const mask = Array.from({ length: 21 }, (_, i) => Number(i % 3 === 0 || i === 20))
  using bits = await computed(() => packed(read(matrix([mask]))))
  t.is(bits.dtype, 'u8')
  t.deepEqual([...((await bits.data()) as Uint8Array)], [0b01001001, 0b10010010, 0b00010100])
  using again = await computed(() => unpacked(read(bits), [3, 7]))
  t.deepEqual(await numbers(again), mask)
})

/** Two modules with an update, one without. */
async function three(options: DseeOptions = {}) {
  const site = (path: string, rows: number[][]): Site => ({
    path: `model.${path}`,
    kind: 'linear',
    weight: matrix(rows),
  })
  const sites = { q: site('q', rowsOf(4, 6, 1)), v: site('v', rowsOf(4, 6, 2)), k: site('k', rowsOf(5, 5, 3)) }
  const network = networkOf(Object.values(sites))
  const method = dsee({ target_modules: ['q', 'v'], num_sparse: 4, sparse_method: 'omp', lora_r: 2, ...options })
  const adapter = await Adapter.attach(network, method)
  await disturb(adapter)
  return { sites, network, adapter }
}

const weightIn = (adapter: Adapter, path: string): Promise<number[]> =>
  numbers(adapter.attachments.get(`model.${path}`)!.weight!)

const zerosOf = (values: readonly number[]): number => values.filter((value) => value === 0).length

test('of each of the two pools exactly the share is gone, the least by magnitude', async (t) => {
  const { sites, adapter } = await three()
  const options = { pruning_ratio: 0.4, ad_pruning_ratio: 0.3, prune_mode: 'W' } as const
  const { adapter: pruned, sparsity } = await dseePrune(adapter, options)
  const [q, v, k] = await Promise.all(['q', 'v', 'k'].map((path) => weightIn(pruned, path)))
  t.is(zerosOf(k!), 10)
  t.is(zerosOf([...q!, ...v!]), Math.round(0.3 * 48))
  t.is(sparsity, (10 + 14) / 73)
  const both = [...(await numbers(sites.q.weight)), ...(await numbers(sites.v.weight))]
  const limit = both.map(Math.abs).toSorted((a, b) => a - b)[13]!
  t.deepEqual(
    [...q!, ...v!],
    both.map((value) => (Math.abs(value) <= limit ? 0 : value)),
  )
})

test('equal numbers: the first ones go, and no more than the share', async (t) => {
  const one = oneSite([
    [1, 1, 1],
    [2, 1, 1],
    [1, 1, 1],
  ])
  const adapter = await attached(one.network, { num_sparse: 1, sparse_method: 'omp' })
  const options = { ad_pruning_ratio: 0.5, pruning_ratio: 0, prune_mode: 'W' } as const
  const { adapter: pruned } = await dseePrune(adapter, options)
  t.deepEqual(await weightIn(pruned, 'proj'), [0, 0, 0, 2, 0, 0, 1, 1, 1])
})

test('every mode scores by its own sum', async (t) => {
  const one = oneSite([[8, 1, 1.5, 3]])
  const options = { lora_r: 1, lora_alpha: 2, num_sparse: 1, sparse_method: 'omp' } as const
  const adapter = await attached(one.network, options)
  await setTensors(one, adapter, { 'lora_A.weight': [1, 4, 3, -2], 'lora_B.weight': [1], sparse_value: [-1.25] })
  // s BA = [2, 8, 6, -4], S at the 8: s (BA + S) = [-0.5, 8, 6, -4].
  const lost = async (mode: DseePruneOptions['prune_mode']): Promise<number> => {
    const { adapter: pruned } = await dseePrune(adapter, {
      ad_pruning_ratio: 0.25,
      pruning_ratio: 0,
      prune_mode: mode!,
    })
    return (await weightIn(pruned, 'proj')).indexOf(0)
  }
  t.is(await lost('W'), 1)
  t.is(await lost('AB'), 0)
  t.is(await lost('ABS'), 0)
  t.is(await lost('WAB'), 3)
  t.is(await lost('WABS'), 3)
  t.is(await lost('NAB'), 1)
  t.is(await lost('NABS'), 1)
  t.true((await lost('random')) >= 0)
})

test('the model and the adapter stay as they are; the pruned one computes with what is left of the weight', async (t) => {
  const one = oneSite(rowsOf(4, 6, 7))
  const adapter = await attached(one.network, { num_sparse: 3, sparse_method: 'omp', lora_r: 2 })
  await disturb(adapter)
  const x = rowsOf(3, 6, 8)
  const [plain, before] = [await outputOf(one, x), await outputOf(one, x, adapter)]
  const { adapter: pruned } = await dseePrune(adapter, { ad_pruning_ratio: 0.5, other_modules: ['proj'] })
  const wanted = await outputOf(one, x, pruned)
  t.false(near(wanted, before, 1e-3))
  t.deepEqual(await outputOf(one, x), plain)
  t.deepEqual(await outputOf(one, x, adapter), before)
  await pruned.merge()
  t.true(near(await outputOf(one, x), wanted))
  pruned.unmerge()
  t.deepEqual(await outputOf(one, x), plain)
})

test('a second pruning keeps what the first one took', async (t) => {
  const { adapter } = await three()
  const first = await dseePrune(adapter, { pruning_ratio: 0.4, ad_pruning_ratio: 0.2, prune_mode: 'ABS' })
  const second = await dseePrune(first.adapter, { pruning_ratio: 0, ad_pruning_ratio: 0.2, prune_mode: 'NABS' })
  const [q1, q2] = [await weightIn(first.adapter, 'q'), await weightIn(second.adapter, 'q')]
  t.true(q1.every((value, i) => value !== 0 || q2[i] === 0))
  t.true(second.sparsity > first.sparsity)
  t.deepEqual(await weightIn(second.adapter, 'k'), await weightIn(first.adapter, 'k'))
})

test('a pruned adapter is saved with its masks, trained further on the sparse base, and loaded again', async (t) => {
  const model = await tinyModel()
  const data = await textFile()
  const adapter = await model.attach(dsee({ target_modules: ['q_proj', 'v_proj'], num_sparse: 16, outer: 2 }))
  const options = { data, maxLength: 32, batchSize: 2, optimizer: adamw({ lr: 1e-2, weightDecay: 0.1 }) }
  for await (const _ of train(model, { ...options, adapter, maxSteps: 5 }));
  const { adapter: pruned, sparsity } = await dseePrune(adapter)
  t.true(Math.abs(sparsity - 0.2) < 1e-3)
  const losses: number[] = []
  for await (const { loss } of train(model, { ...options, adapter: pruned, maxSteps: 20 })) losses.push(loss)
  t.true(losses.at(-1)! < losses[0]!)
  const folder = temporaryFolder()
  await pruned.save(folder)
  const again = await model.loadAdapter(folder)
  t.deepEqual(await numbers(await callOn(model.network, again)), await numbers(await callOn(model.network, pruned)))
  await model.dispose()
})

const bertLayer = (config: Readonly<Record<string, unknown>>) => {
  const path = (name: string): string => `encoder.layer.0.${name}`
  const site = (name: string, out: number, inner: number, seed: number): Site => ({
    path: path(name),
    kind: 'linear',
    weight: matrix(rowsOf(out, inner, seed)),
  })
  const sites = [
    site('attention.self.query', 6, 4, 1),
    site('attention.self.key', 6, 4, 2),
    site('attention.self.value', 6, 4, 3),
    site('attention.output.dense', 4, 6, 4),
    site('intermediate.dense', 5, 4, 5),
    site('output.dense', 4, 5, 6),
  ]
  return { path, network: { ...networkOf(sites), config } }
}

test('heads: rows of query, key and value and the columns that read them', async (t) => {
  const { path, network } = bertLayer({ num_attention_heads: 3 })
  const method = dsee({ target_modules: ['query', 'value'], num_sparse: 2, sparse_method: 'omp', lora_r: 1 })
  const adapter = await Adapter.attach(network, method)
  const own = { 'lora_A.weight': [1, 0, 0, 0], sparse_value: [0, 0] }
  const at = (name: string) => ({ network, site: network.sites.get(path(name))! })
  await setTensors(at('attention.self.query'), adapter, { ...own, 'lora_B.weight': [5, 5, 1, 1, 3, 3] })
  await setTensors(at('attention.self.value'), adapter, { ...own, 'lora_B.weight': [-4, 0, 1, 2, 0, 1] })
  const { adapter: pruned } = await dseePruneStructured(adapter, { prune_heads_num: 2 })
  const isZero = async (name: string): Promise<boolean[]> =>
    (await numbers(pruned.attachments.get(path(name))!.weight!)).map((value) => value === 0)
  // Heads 1 and 2 change least: only channels 0 and 1 are left.
  const rows = Array.from({ length: 24 }, (_, i) => i >= 8)
  for (const name of ['query', 'key', 'value']) t.deepEqual(await isZero(`attention.self.${name}`), rows)
  t.deepEqual(
    await isZero('attention.output.dense'),
    Array.from({ length: 24 }, (_, i) => i % 6 >= 2),
  )
  t.is(pruned.attachments.get(path('intermediate.dense')), undefined)
})

test('neurons by their coefficients', async (t) => {
  const { path, network } = bertLayer({ num_attention_heads: 3 })
  const adapter = await Adapter.attach(
    network,
    dsee({ target_modules: [path('output.dense')], neuron_coefficients: ['output.dense'] }),
  )
  const site = network.sites.get(path('output.dense'))!
  await setTensors({ network, site }, adapter, { dsee_c: [1, -0.1, 0.5, 0, 2] })
  const { adapter: pruned } = await dseePruneStructured(adapter, { prune_neurons_num: 2, prune_mode: 'coefficients' })
  const values = await numbers(pruned.attachments.get(path('intermediate.dense'))!.weight!)
  t.deepEqual(
    [0, 1, 2, 3, 4].map((row) => values.slice(4 * row, 4 * row + 4).every((value) => value === 0)),
    [false, true, false, true, false],
  )
})

async function hiddenOf(network: Encoder, adapter: Adapter): Promise<Tensor> {
  const ids = tensor(
    Int32Array.from({ length: 24 }, (_, i) => (i * 37 + 11) % 67),
    [2, 12],
  )
  const mask = tensor(new Int32Array(24).fill(1), [2, 12])
  const forward = { precision: 'f32', training: false, hook: adapter.hook } as const
  return await computed((given, all) => network.hidden({ ids: given!, mask: all! }, forward), [ids, mask])
}

test('a BERT without heads computes what it does with their biases changed: nothing of them is left', async (t) => {
  const network = await buildNetwork(encoders, await openCheckpoint(golden('models/bert')))
  const heads = network.config.num_attention_heads as number
  const adapter = await Adapter.attach(network, dsee({ target_modules: ['query', 'value'], num_sparse: 8, outer: 2 }))
  await disturb(adapter)
  const { adapter: pruned } = await dseePruneStructured(adapter, { prune_heads_num: heads - 1, prune_mode: 'WABS' })
  const wanted = await hiddenOf(network, pruned)
  t.true((await relativeError(wanted, await hiddenOf(network, adapter))) > 1e-3)
  for (const site of network.sites.values()) {
    if (!/attention\.self\.(?:query|key|value)$/u.test(site.path)) continue
    const weight = await numbers(pruned.attachments.get(site.path)!.weight!)
    const width = site.weight.shape[1]!
    const isOut = (row: number): boolean => weight.slice(row * width, (row + 1) * width).every((value) => value === 0)
    const bias = (await numbers(site.bias!)).map((value, row) => (isOut(row) ? value + 7 : value))
    site.bias = tensor(bias, [bias.length])
  }
  t.true((await relativeError(await hiddenOf(network, pruned), wanted)) < 1e-5)
})

test('what cannot be pruned is said', async (t) => {
  const { network, adapter } = await three()
  const other = await Adapter.attach(network, lora({ target_modules: ['q'] }))
  await t.throwsAsync(dseePrune(other), { message: /an adapter of dsee, got lora/ })
  await t.throwsAsync(dseePrune(adapter, { pruning_ratio: 1 }), { message: /pruning_ratio/ })
  await t.throwsAsync(dseePruneStructured(adapter, { prune_heads_num: 1 }), { message: /a network with layers of/ })
  const { network: bert } = bertLayer({ num_attention_heads: 3 })
  const on = await Adapter.attach(bert, dsee({ target_modules: ['query'], num_sparse: 0 }))
  await t.throwsAsync(dseePruneStructured(on, { prune_heads_num: 3 }), { message: /fewer than 3 to prune, got 3/ })
  await t.throwsAsync(dseePruneStructured(on, { prune_neurons_num: 1 }), { message: /an update at .*intermediate/ })
  const byCoefficient = { prune_heads_num: 1, prune_mode: 'coefficients' } as const
  await t.throwsAsync(dseePruneStructured(on, byCoefficient), { message: /head_coefficients/ })
})
