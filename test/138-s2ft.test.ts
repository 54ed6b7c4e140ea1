// S²FT: rows and columns of the weights themselves, chosen over the whole model, trained where they stand.
import test from 'ava'
import { activeOf } from '../lib/adapters/active.js'
import { Adapter } from '../lib/adapters/adapter.js'
import { blocksOf } from '../lib/adapters/block_roles.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { s2ft, s2ftOverlap } from '../lib/adapters/methods/s2ft.js'
import { permuteCoupled } from '../lib/adapters/methods/s2ft_permute.js'
import { headsOf } from '../lib/adapters/methods/s2ft_selection.js'
import { parameterCount } from '../lib/adapters/parameter_count.js'
import { HeddleError } from '../lib/errors.js'
import { openCheckpoint } from '../lib/formats/checkpoint.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { add, constant, mul, silu, square, sub } from '../lib/graph/ops/elementwise.js'
import { mean, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import type { Model } from '../lib/model.js'
import { buildNetwork } from '../lib/models/build.js'
import type { CausalLm } from '../lib/models/causal_lm.js'
import { decoders } from '../lib/models/registry.js'
import type { Network } from '../lib/nn/network.js'
import { type Forward, linear, linearShape, type Site } from '../lib/nn/site.js'
import { causalLm } from '../lib/objectives/causal_lm.js'
import { type Calibration, calibrationOf } from '../lib/observers/calibration.js'
import { adamw } from '../lib/optim/adamw.js'
import { lowRankMatrix } from '../lib/structured/low_rank_matrix.js'
import { replaceLinear } from '../lib/structured/replace_linear.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { train } from '../lib/train/train.js'
import { golden, relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import {
  gradientsAt,
  mergedWeight,
  near,
  networkOf,
  numbers,
  oneSite,
  outputOf,
  setTensors,
} from './support/one_site.js'
import { textFile, tinyDataset, tinyModel } from './tiny_model.js'

const w0 = [
  [1, 2, 3],
  [4, 5, 6],
]
const columns = { axis: 'in', indices: [2, 0] } as const
const rows = { axis: 'out', indices: [1] } as const
const turned = w0[0]!.map((_, i) => w0.map((row) => row[i]!))

const attached = (at: ReturnType<typeof oneSite>, selected: typeof columns | typeof rows): Promise<Adapter> =>
  Adapter.attach(at.network, s2ft({ selected: { 'model.proj': selected } }))

for (const transposed of [false, true]) {
  const stored = transposed ? ', stored [in, out]' : ''
  const site = () => oneSite(transposed ? turned : w0, { transposed })
  const asStored = (matrix: readonly (readonly number[])[]): number[] =>
    (transposed ? matrix[0]!.map((_, i) => matrix.map((row) => row[i]!)) : matrix).flat()

  test(`columns${stored}: y = W x + S x[indices], in the order of the indices, by hand`, async (t) => {
    const at = site()
    const adapter = await attached(at, columns)
    await setTensors(at, adapter, { s2: [0.1, 0.2, 0.3, 0.4] })
    t.true(near(await outputOf(at, [[1, 1, 2]], adapter), [9.4, 22]))
    t.true(
      near(
        await mergedWeight(at, adapter),
        asStored([
          [1.2, 2, 3.1],
          [4.4, 5, 6.3],
        ]),
      ),
    )
    const { s2, x } = await gradientsAt(at, adapter, [[1, 1, 2]], [[1, 2]])
    t.deepEqual(s2, [2, 1, 4, 2])
    t.true(near(x!, [10, 12, 15.7]))
  })

  test(`rows${stored}: y[indices] = W x [indices] + S x, by hand`, async (t) => {
    const at = site()
    const adapter = await attached(at, rows)
    await setTensors(at, adapter, { s2: [1, 0, -1] })
    t.deepEqual(await outputOf(at, [[1, 1, 2]], adapter), [9, 20])
    t.deepEqual(
      await mergedWeight(at, adapter),
      asStored([
        [1, 2, 3],
        [5, 5, 5],
      ]),
    )
    const { s2, x } = await gradientsAt(at, adapter, [[1, 1, 2]], [[1, 2]])
    t.deepEqual(s2, [2, 2, 4])
    t.deepEqual(x, [11, 12, 13])
  })
}

test('the gradient is the slice of that of the whole weight', async (t) => {
  const at = oneSite(w0)
  const x = [
    [1, -2, 0.5],
    [0.25, 3, 1],
  ]
  const g = [
    [1, 2],
    [-1, 0.5],
  ]
  const whole = [0, 1].map((o) => [0, 1, 2].map((i) => g[0]![o]! * x[0]![i]! + g[1]![o]! * x[1]![i]!))
  const { s2 } = await gradientsAt(at, await attached(at, columns), x, g)
  t.true(
    near(
      s2!,
      whole.flatMap((row) => [row[2]!, row[0]!]),
      1e-7,
    ),
  )
  const { s2: own } = await gradientsAt(at, await attached(at, rows), x, g)
  t.true(near(own!, whole[1]!, 1e-7))
})

test('two adapters of other channels add up in any order; channels of both are reported', async (t) => {
  const at = oneSite(w0)
  const [first, second] = [await attached(at, columns), await attached(at, rows)]
  await setTensors(at, first, { s2: [0.5, 0.25, 0.125, 1] })
  await setTensors(at, second, { s2: [1, 0, -1] })
  const x = [[1, 1, 2]]
  const sizes = async (adapters: readonly Adapter[]) => outputOf(at, x, activeOf(adapters) as Adapter)
  t.deepEqual(await sizes([first, second]), [10.25, 21.25])
  t.deepEqual(await sizes([second, first]), [10.25, 21.25])
  const [a, b] = [
    await attached(at, columns),
    await Adapter.attach(at.network, s2ft({ selected: { 'model.proj': { axis: 'in', indices: [1, 0] } } })),
  ]
  t.deepEqual([...(await s2ftOverlap(a, b))], [['model.proj', [0]]])
  t.deepEqual([...(await s2ftOverlap(a, await attached(at, rows)))], [])
})

test('a choice that repeats an index or leaves the module is refused', async (t) => {
  t.throws(() => s2ft({ selected: { proj: { axis: 'in', indices: [1, 1] } } }), { message: /each index once/ })
  t.throws(() => s2ft({ d_ratio: 0.5, selected: { proj: columns } }), { message: /neither ratios nor target_modules/ })
  const at = oneSite(w0)
  const method = s2ft({ selected: { 'model.proj': { axis: 'out', indices: [2] } } })
  await t.throwsAsync(Adapter.attach(at.network, method), {
    instanceOf: HeddleError,
    message: /indices below 2 along out/,
  })
})

/** The modules of a Llama by their shapes alone. */
function shapesOf({ layers, h, m, heads, kv }: Record<'layers' | 'h' | 'm' | 'heads' | 'kv', number>): Network {
  const sites = Array.from({ length: layers }, (_, i) =>
    Object.entries({
      'self_attn.v_proj': [(h / heads) * kv, h],
      'self_attn.o_proj': [h, h],
      'mlp.up_proj': [m, h],
      'mlp.down_proj': [h, m],
    }).map(([name, shape]): Site => {
      const weight = { shape, size: shape[0]! * shape[1]!, dtype: 'f32' }
      return { path: `model.layers.${i}.${name}`, kind: 'linear', weight } as never
    }),
  ).flat()
  return { ...networkOf(sites), config: { num_attention_heads: heads, num_key_value_heads: kv } }
}

const resolved = (network: Network, options: Parameters<typeof s2ft>[0]) =>
  s2ft(options).resolve!({
    network,
    sites: [...network.sites.values()],
    seed: 4,
    watch: {},
    report() {},
    warn() {},
    calibration: () => {
      throw new Error('no data')
    },
  })

for (const [name, shape, options, parameters] of [
  [
    'LLaMA2-7B, o 0.052: 53 heads',
    { layers: 32, h: 4096, m: 11008, heads: 32, kv: 32 },
    { o_ratio: 0.052 },
    27_787_264,
  ],
  [
    'LLaMA2-7B, d 0.02: 7,045 channels',
    { layers: 32, h: 4096, m: 11008, heads: 32, kv: 32 },
    { d_ratio: 0.02 },
    28_856_320,
  ],
  [
    'LLaMA3-8B, d 0.03: 13,762 channels',
    { layers: 32, h: 4096, m: 14336, heads: 32, kv: 8 },
    { d_ratio: 0.03 },
    56_369_152,
  ],
  [
    'LLaMA3-8B, v 0.05: 12 of 256 key-value heads',
    { layers: 32, h: 4096, m: 14336, heads: 32, kv: 8 },
    { v_ratio: 0.05 },
    12 * 128 * 4096,
  ],
] as const)
  test(`${name} make ${parameters} numbers`, async (t) => {
    const network = shapesOf(shape)
    t.is(parameterCount(network, await resolved(network, options)).parameters, parameters)
  })

test('the share is of the whole model: layers get different parts of it, and some none', async (t) => {
  const network = shapesOf({ layers: 8, h: 16, m: 10, heads: 4, kv: 2 })
  const { config } = await resolved(network, { d_ratio: 0.1 })
  const sizes = Object.values(config.selected as Record<string, { size: number }>).map(({ size }) => size)
  t.is(
    sizes.reduce((a, b) => a + b, 0),
    8,
  )
  t.true(sizes.length < 8, `${sizes}`)
})

async function calibration(model: Model): Promise<Calibration> {
  return calibrationOf(causalLm(), await tinyDataset(model), { batches: 2, batchSize: 2 }) as Calibration
}

/** What is chosen on the tiny model (4 query heads, 2 key–value heads of 16, 96 channels) after a part of it has grown. */
async function chosen(
  options: Parameters<typeof s2ft>[0],
  grown: { readonly path: string; readonly axis: number; readonly from: number; readonly count: number },
): Promise<Record<string, number[]>> {
  const model = await tinyModel()
  const site = model.network.sites.get(grown.path)!
  const [height, width] = site.weight.shape as [number, number]
  const values = await numbers(site.weight)
  const factors = values.map((_, i) => {
    const at = grown.axis === 0 ? Math.floor(i / width) : i % width
    return at >= grown.from && at < grown.from + grown.count ? 100 : 1
  })
  site.weight = tensor(
    Float32Array.from(values, (value, i) => value * factors[i]!),
    [height, width],
  )
  const adapter = await model.attach(s2ft({ selection_order: 'largest', ...options }), {
    calibration: await calibration(model),
  })
  const found: Record<string, number[]> = {}
  for (const [path, { buffers }] of adapter.attachments)
    found[path] = [...((await buffers.indices!.data()) as Int32Array)]
  await model.dispose()
  return found
}

const one = 1 / 192 + 1e-9
const down = { path: 'model.layers.1.mlp.down_proj', axis: 1, from: 7, count: 1 }
const up = { path: 'model.layers.0.mlp.up_proj', axis: 0, from: 5, count: 1 }
const value = { path: 'model.layers.0.self_attn.v_proj', axis: 0, from: 16, count: 16 }
const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i)

test('by weight: the channel whose columns are longest', async (t) => {
  t.deepEqual(await chosen({ d_ratio: one, selection: 'weight' }, down), { [down.path]: [7] })
})

for (const selection of ['activation', 'product', 'gradient'] as const)
  test(`by ${selection}: the channel that gives most`, async (t) => {
    t.deepEqual(await chosen({ d_ratio: one, selection }, up), { 'model.layers.0.mlp.down_proj': [5] })
  })

test('a weight in a structure has no norms to choose by', async (t) => {
  const model = await tinyModel()
  const low = await lowRankMatrix.random([64, 96], { rank: 2 })
  await replaceLinear(model, [down.path], () => low)
  await t.throwsAsync(model.attach(s2ft({ d_ratio: 0.1, selection: 'weight' })), {
    message: /a dense weight for weight, got low_rank/,
  })
  await model.dispose()
})

test('rows of up are scored by what the channel gives to down', async (t) => {
  t.deepEqual(await chosen({ u_ratio: one, selection: 'activation' }, up), { [up.path]: [5] })
})

test('under grouped-query attention v is chosen by key–value heads, o by the query heads of the group', async (t) => {
  t.deepEqual(await chosen({ v_ratio: 0.25, selection: 'activation' }, value), { [value.path]: range(16, 16) })
  t.deepEqual(await chosen({ o_ratio: 0.25, selection: 'activation' }, value), {
    'model.layers.0.self_attn.o_proj': range(32, 32),
  })
})

test('training moves the chosen columns alone, with AdamW and weight decay, whose state is of their size', async (t) => {
  const model = await tinyModel()
  const adapter = await model.attach(s2ft({ d_ratio: 0.05 }), { seed: 2 })
  const state = await adamw({ lr: 1e-2 }).init([...adapter.parameters().values()])
  const moments = Object.values(state.tensors).reduce((total, { size }) => total + size, 0)
  t.is(moments, 2 * adapter.parameterCount)
  const optimizer = adamw({ lr: 1e-2, weightDecay: 0.1 })
  for await (const _ of train(model, {
    adapter,
    data: await textFile(),
    maxLength: 32,
    batchSize: 2,
    maxSteps: 10,
    optimizer,
  })) {
  }
  const before = new Map<string, number[]>()
  for (const path of adapter.sitePaths) before.set(path, await numbers(model.network.sites.get(path)!.weight))
  await adapter.merge()
  for (const [path, values] of before) {
    const indices = new Set((await adapter.attachments.get(path)!.buffers.indices!.data()) as Int32Array)
    const after = await numbers(model.network.sites.get(path)!.weight)
    t.true(after.every((each, i) => indices.has(i % 96) || Object.is(each, values[i])))
    t.true(after.some((each, i) => each !== values[i]))
  }
  await model.dispose()
})

/** Feed-forward parts y = x + D f(U x) by themselves. */
function feedForward(layers: number, h: number, m: number): Network {
  const site = (path: string, shape: readonly [number, number], seed: number): Site => ({
    path,
    kind: 'linear',
    weight: tensor(
      randomNumbers(shape[0] * shape[1], seed).map((x) => x / Math.sqrt(shape[1])),
      shape,
    ),
  })
  return networkOf(
    range(0, layers).flatMap((i) => [
      site(`model.layers.${i}.mlp.up_proj`, [m, h], 2 * i + 1),
      site(`model.layers.${i}.mlp.down_proj`, [h, m], 2 * i + 2),
    ]),
  )
}

function throughBlocks({ sites }: Network, x: Sym, f: (inner: Sym) => Sym, hook: Forward['hook']): Sym {
  const forward: Forward = { precision: 'f32', training: true, hook }
  let value = x
  for (let i = 0; sites.has(`model.layers.${i}.mlp.up_proj`); i += 1) {
    const at = (name: string, input: Sym): Sym => linear(sites.get(`model.layers.${i}.mlp.${name}`)!, input, forward)
    value = add(value, at('down_proj', f(at('up_proj', value))))
  }
  return value
}

const [layers, tokens, width, inner] = [6, 512, 64, 512]

/** Planned peak bytes of a step that trains columns of the down projections, a LoRA on them, or all of them. */
async function peaks(
  f: (inner: Sym) => Sym,
): Promise<{ readonly s2ft: number; readonly lora: number; readonly full: number }> {
  const network = feedForward(layers, width, inner)
  const x = tensor(randomNumbers(tokens * width, 99), [tokens, width])
  const peak = async (trained: readonly Tensor[], adapter?: Adapter): Promise<number> => {
    const step = program(async (input) => {
      const y = throughBlocks(network, input!, f, adapter?.hook)
      return await gradients(sum(mul(y, y)), trained.map(read))
    })
    const { peakBytes } = await step.plan([x])
    step.dispose()
    return peakBytes
  }
  const target_modules = ['down_proj']
  const slices = await Adapter.attach(network, s2ft({ d_ratio: 8 / inner, target_modules }))
  const lowRank = await Adapter.attach(network, lora({ r: 8, target_modules }))
  const weights = [...network.sites.values()].filter(({ path }) => path.endsWith('down_proj'))
  return {
    s2ft: await peak([...slices.parameters().values()], slices),
    lora: await peak([...lowRank.parameters().values()], lowRank),
    full: await peak(weights.map(({ weight }) => weight)),
  }
}

test('columns keep no activation that they do not need: inputs of the module stay for LoRA and whole weights alone', async (t) => {
  const bytes = await peaks((value) => value)
  t.log(bytes)
  const inputs = layers * tokens * inner * 4
  t.true(bytes.lora - bytes.s2ft > 0.8 * inputs, JSON.stringify(bytes))
  t.true(bytes.full - bytes.s2ft > 0.8 * inputs, JSON.stringify(bytes))
})

test('where an activation is kept for its own derivative, a step still needs less than the others', async (t) => {
  const bytes = await peaks(silu)
  t.log(bytes)
  t.true(bytes.s2ft < bytes.lora && bytes.lora < bytes.full, JSON.stringify(bytes))
})

const opened = async (name: string): Promise<CausalLm> => buildNetwork(decoders, await openCheckpoint(golden(name)))

const hiddenOf = (network: CausalLm): Promise<Tensor> =>
  computed(() => {
    const ids = tensor(
      Int32Array.from(range(0, 48), (i) => (i * 37 + 11) % 60),
      [2, 24],
    )
    return network.hidden({ ids: read(ids) }, { precision: 'f32', training: false })
  })

/** A permutation: multiples of a number that has no factor in common with the count, from an offset on. */
const shuffled = (count: number, step: number): number[] => range(0, count).map((i) => (i * step + 1) % count)

for (const [name, block] of [
  ['tiny-llama-untied', 'model.layers.1'],
  ['models/llama-biased', 'model.layers.0'],
  ['models/qwen2', 'model.layers.0'],
  ['models/phi-qk-norm', 'model.layers.0'],
  // Several parts in one module: one after the other (in GPT-2 as columns), or so in each head.
  ['models/gpt2', 'transformer.h.1'],
  ['models/phi3', 'model.layers.0'],
  ['models/gpt-neox', 'gpt_neox.layers.1'],
] as const)
  test(`coupled matrices of ${name} move together: the function stays`, async (t) => {
    const network = await opened(name)
    const modules = blocksOf(network).get(block)!
    const plain = await hiddenOf(network)
    const moves = async (site: Site, permute: () => Promise<void>): Promise<void> => {
      const before = await numbers(site.weight)
      await permute()
      t.notDeepEqual(await numbers(network.sites.get(site.path)!.weight), before)
      t.true((await relativeError(await hiddenOf(network), plain)) < 1e-6)
    }
    const channels = shuffled(linearShape(modules.get('down')!)[1], 5)
    await moves(modules.get('up')!, () => permuteCoupled(network, block, { channels }))
    const [heads, groups] = [headsOf(network, 'query'), headsOf(network, 'key')]
    const within = heads / groups
    const queryHeads = range(0, heads).map((i) => Math.floor(i / within) * within + ((i + 1) % within))
    const keyValueHeads = range(0, groups).toReversed()
    await moves(modules.get('query')!, () => permuteCoupled(network, block, { keyValueHeads, queryHeads }))
  })

test('heads that would leave their group, and lists that are no permutation, are refused', async (t) => {
  const network = await opened('tiny-llama-untied')
  const block = 'model.layers.0'
  await t.throwsAsync(permuteCoupled(network, block, { queryHeads: [2, 1, 0, 3] }), {
    message: /stay in their groups of 2/,
  })
  await t.throwsAsync(permuteCoupled(network, block, { channels: [0, 0] }), { message: /numbers from 0 to 95/ })
  await t.throwsAsync(permuteCoupled(network, 'model.layers.9', { channels: [0] }), {
    message: /a dense down projection, got none/,
  })
})

test('it forgets less than training the whole weight, and adapts less', async (t) => {
  const [h, m] = [32, 128]
  const scaled = (count: number, seed: number, by: number): Float32Array =>
    randomNumbers(count, seed).map((v) => v * by)
  const site = (name: string, values: Float32Array, shape: readonly [number, number]): Site => ({
    path: `model.layers.0.mlp.${name}_proj`,
    kind: 'linear',
    weight: tensor(values, shape),
  })
  const root3 = Math.sqrt(3)
  const [gate, up] = [
    site('gate', scaled(m * h, 1, root3 / Math.sqrt(h)), [m, h]),
    site('up', scaled(m * h, 2, root3 / Math.sqrt(h)), [m, h]),
  ]
  const down = scaled(h * m, 3, root3 / Math.sqrt(m))
  // Task B: another down projection, seen where half of the coordinates are small. Task A: what the network does already.
  const downB = down.map((value, i) => value + 0.5 * scaled(h * m, 4, root3 / Math.sqrt(m))[i]!)
  const inputs = (count: number, seed: number, small: number): Tensor =>
    tensor(
      scaled(count * h, seed, root3).map((value, i) => (i % h < h / 2 ? value : small * value)),
      [count, h],
    )
  const through = (x: Sym, of: Site, hook?: Forward['hook']): Sym => {
    const forward: Forward = { precision: 'f32', training: false, hook }
    return linear(of, mul(silu(linear(gate, x, forward)), linear(up, x, forward)), forward)
  }
  const [a, b] = [site('down', down, [h, m]), site('down', downB, [h, m])]
  const [xA, xB, held] = [inputs(256, 5, 1), inputs(256, 6, 0.1), inputs(256, 7, 0.1)]
  const missed = (x: Sym, of: Site, target: Site, hook?: Forward['hook']): Sym =>
    mean(square(sub(through(x, of, hook), through(x, target))))
  const run = async (own: Site, parameters: readonly Tensor[], lr: number, hook?: Forward['hook']) => {
    const state = await adamw({ lr, weightDecay: 0 }).init(parameters)
    const step = program(async (count) => {
      const values = parameters.map(read)
      const context = { step: count!, learningRate: constant(lr), parameters: values }
      const updates = await state.update(await gradients(missed(read(xB), own, b, hook), values), context)
      for (const [i, update] of updates.entries()) assign(parameters[i]!, add(values[i]!, update))
      return []
    })
    for (let i = 0; i < 400; i += 1) await step(tensor([i + 1], []))
    step.dispose()
    const errors = await computed(() => ({
      forgotten: missed(read(xA), own, a, hook),
      task: missed(read(held), own, b, hook),
    }))
    return { forgotten: errors.forgotten.item(), task: errors.task.item() }
  }
  const network = networkOf([gate, up, a])
  const columns = await Adapter.attach(network, s2ft({ d_ratio: 0.25, target_modules: ['down_proj'] }), { seed: 1 })
  const whole = site('down', down.slice(), [h, m])
  const start = await computed(() => missed(read(held), a, b))
  const slices = await run(a, [...columns.parameters().values()], 1e-2, columns.hook)
  const full = await run(whole, [whole.weight], 1e-3)
  t.log({ start: start.item(), full, slices })
  t.true(slices.forgotten < 0.7 * full.forgotten, `${slices.forgotten} against ${full.forgotten}`)
  t.true(full.task < slices.task && slices.task < 0.9 * start.item(), `${full.task}, ${slices.task}, ${start.item()}`)
})
