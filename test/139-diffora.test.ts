// DiffoRA: gates trained on held-out batches choose the modules that get a LoRA of their own.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { attachTo } from '../lib/adapters/attachment.js'
import { diffora } from '../lib/adapters/methods/diffora.js'
import { candidatesOf, type DifforaSearch, discretise, gatedHook } from '../lib/adapters/methods/diffora_search.js'
import { lora } from '../lib/adapters/methods/lora.js'
import { parameterCount } from '../lib/adapters/parameter_count.js'
import { HeddleError } from '../lib/errors.js'
import { computed } from '../lib/graph/computed.js'
import { gradients } from '../lib/graph/grad.js'
import { add, mul, relu, square, sub } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import type { Network } from '../lib/nn/network.js'
import { type Forward, linear, type Site, type SiteHook } from '../lib/nn/site.js'
import type { Objective } from '../lib/objectives/objective.js'
import type { Calibration } from '../lib/observers/calibration.js'
import { adamw } from '../lib/optim/adamw.js'
import { trainingStep } from '../lib/optim/training_step.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { disturb, near, networkOf, numbers } from './support/one_site.js'

const threshold = 0.5
const sheetRow = [0.1, 2.0, -1.0, 0.3, 0.2, 0.0]

test('each layer keeps its largest gates; of equal ones the first', (t) => {
  const perLayer = (row: readonly (number | null)[]) =>
    discretise([row], { select: 'per-layer', ratio: 0.5, threshold })[0]
  t.deepEqual(perLayer(sheetRow), [0, 1, 0, 1, 1, 0])
  t.deepEqual(perLayer([0, 0, 0, 0]), [1, 1, 0, 0])
  t.deepEqual(perLayer([1, null, 2, 3]), [0, null, 0, 1])
})

test('a global choice takes as many of all layers; the threshold those above the start', (t) => {
  const scores = [sheetRow, sheetRow.map((value) => value + 10)]
  const global = discretise(scores, { select: 'global', ratio: 0.5, threshold })
  t.deepEqual(global, [
    [0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1],
  ])
  t.deepEqual(discretise([sheetRow], { select: 'threshold', ratio: 0.5, threshold: 0 })[0], [1, 1, 0, 1, 1, 0])
  t.throws(() => discretise([sheetRow], { select: 'threshold', ratio: 0.5, threshold: 3 }), {
    message: /above its start/,
  })
  t.throws(() => discretise([sheetRow], { select: 'per-layer', ratio: 0.1, threshold }), {
    message: /one of 6 modules/,
  })
})

const drawn = (shape: readonly number[], seed: number, size = 1): Tensor =>
  tensor(
    randomNumbers(
      shape.reduce((a, b) => a * b, 1),
      seed,
    ).map((value) => size * value),
    shape,
  )

/** Two layers of two modules, [3, 4] and [4, 3], in a row. */
function chain(): Network {
  const site = (path: string, shape: readonly number[], seed: number): Site => ({
    path,
    kind: 'linear',
    weight: drawn(shape, seed),
  })
  return networkOf(
    [0, 1].flatMap((i) => [
      site(`model.layers.${i}.down`, [3, 4], 2 * i + 1),
      site(`model.layers.${i}.up`, [4, 3], 2 * i + 2),
    ]),
  )
}

const through = ({ sites }: Network, x: Sym, hook?: SiteHook): Sym => {
  const forward: Forward = { precision: 'f32', training: false, hook }
  return [...sites.values()].reduce((value, site) => linear(site, value, forward), x)
}

const settings = {
  relaxation: 'sigmoid',
  select: 'per-layer',
  ratio: 0.5,
  search_steps: 1,
  warmup_steps: 0,
  lr_w: 1e-3,
  lr_theta: 1e-2,
  valid_fraction: 0.5,
  normalise: false,
  r: 2,
  lora_alpha: 6,
} as const

test('the gradient of a gate is γ (1 − γ) ⟨dy, s B A x⟩, and zero while B is', async (t) => {
  const weight = drawn([3, 4], 5)
  const sites = ['a', 'b'].map((name): Site => ({ path: `model.layers.0.${name}`, kind: 'linear', weight }))
  const pair = lora({ r: 2, lora_alpha: 6 })
  const attachments = new Map(
    await Promise.all(
      sites.map(async (site) => {
        const source = { plan: pair.plan(site), parts: [], seed: 0, stream: 0, shared: {} }
        return [site, await attachTo(site, source)] as const
      }),
    ),
  )
  const theta = tensor([0.3, -0.7], [1, 2])
  const hook = gatedHook(settings, candidatesOf(sites), attachments, theta)
  const [x, g] = [drawn([5, 4], 6), drawn([5, 3], 7)]
  const { parameters } = attachments.get(sites[1]!)!
  const [a, b] = [parameters['lora_A.weight']!, parameters['lora_B.weight']!]
  const gradient = async (): Promise<number[]> => {
    const found = await computed(async () => {
      const y = linear(sites[1]!, read(x), { precision: 'f32', training: false, hook })
      return await gradients(sum(mul(y, read(g))), [read(theta)])
    })
    return await numbers(found[0]!)
  }
  const set = (target: Tensor, value: Tensor) =>
    computed(() => {
      assign(target, read(value))
      return []
    })
  await set(a, drawn([2, 4], 8))
  t.deepEqual(await gradient(), [0, 0])
  await set(b, drawn([3, 2], 9))
  const plain = { path: 'model.layers.0.b', kind: 'linear', weight: zeros([3, 4]) } as const
  const branch = await computed(() => {
    const plan = pair.plan(plain)
    const context = { site: plain, x: read(x), base: () => read(zeros([5, 3])), parameters, buffers: {}, stream: 0 }
    return sum(mul(plan.forward({ ...context, forward: { precision: 'f32', training: false } }), read(g)))
  })
  const gate = 1 / (1 + Math.exp(0.7))
  t.true(near(await gradient(), [0, gate * (1 - gate) * branch.item()], 1e-6))
})

const found = (gamma: DifforaSearch['gamma']): DifforaSearch => ({
  layers: ['model.layers.0', 'model.layers.1'],
  modules: ['down', 'up'],
  theta: gamma.map((row) => row.map(() => 0)),
  gamma,
})

test('where all are chosen it is plain LoRA, bit for bit', async (t) => {
  const network = chain()
  const all = await Adapter.attach(
    network,
    diffora({
      r: 2,
      search: found([
        [1, 1],
        [1, 1],
      ]),
    }),
    { seed: 3 },
  )
  const plain = await Adapter.attach(network, lora({ r: 2, lora_alpha: 16 }), { seed: 3 })
  await disturb(all)
  await disturb(plain)
  const x = drawn([5, 4], 10)
  const [a, b] = [
    await computed(() => through(network, read(x), all.hook)),
    await computed(() => through(network, read(x), plain.hook)),
  ]
  t.deepEqual(await numbers(a), await numbers(b))
})

test('modules that are not chosen share one pair per type; its gradient is the sum over them', async (t) => {
  const network = chain()
  const adapter = await Adapter.attach(
    network,
    diffora({
      r: 2,
      share_r: 1,
      search: found([
        [1, 0],
        [0, 0],
      ]),
    }),
  )
  t.deepEqual(
    [...adapter.parameters().keys()],
    [
      ...['shared.up', 'shared.down', 'model.layers.0.down'].flatMap((name) => [
        `${name}.lora_A.weight`,
        `${name}.lora_B.weight`,
      ]),
    ],
  )
  await disturb(adapter, 0.5)
  const shared = adapter.parameters().get('shared.up.lora_B.weight')!
  t.deepEqual(shared.shape, [4, 1])
  const [first, second] = ['model.layers.0.up', 'model.layers.1.up'].map((path) => network.sites.get(path)!) as [
    Site,
    Site,
  ]
  const x = drawn([5, 3], 11)
  const gradient = async (...sites: readonly Site[]): Promise<number[]> => {
    const grads = await computed(async () => {
      const forward: Forward = { precision: 'f32', training: false, hook: adapter.hook }
      return await gradients(
        sites.map((site) => sum(linear(site, read(x), forward))).reduce((a, b) => add(a, b)),
        [read(shared)],
      )
    })
    return await numbers(grads[0]!)
  }
  const [both, one, other] = [await gradient(first, second), await gradient(first), await gradient(second)]
  t.true(one.some((value) => value !== 0))
  t.true(
    near(
      both,
      one.map((value, i) => value + other[i]!),
      1e-6,
    ),
  )
})

test('the scale of a shared pair is that of the others, whatever its rank', async (t) => {
  const network = chain()
  const adapter = await Adapter.attach(
    network,
    diffora({
      r: 2,
      lora_alpha: 6,
      share_r: 1,
      search: found([
        [1, 0],
        [0, 0],
      ]),
    }),
  )
  await disturb(adapter)
  const plain = await asLora(adapter)
  t.is(plain.parameters().get('model.layers.1.up.lora_A.weight')!.shape[0], 1)
  const b = await numbers(plain.parameters().get('model.layers.1.up.lora_B.weight')!)
  const shared = await numbers(adapter.parameters().get('shared.up.lora_B.weight')!)
  t.true(
    near(
      b,
      shared.map((value) => 3 * value),
    ),
  )
})

/** The modules of BERT-base by their shapes alone. */
const bertSites = Array.from({ length: 12 }, (_, i) =>
  Object.entries({
    q: [768, 768],
    k: [768, 768],
    v: [768, 768],
    o: [768, 768],
    up: [3072, 768],
    down: [768, 3072],
  }).map(([name, shape]): Site => {
    const weight = { shape, size: shape[0]! * shape[1]!, dtype: 'f32' }
    return { path: `encoder.layer.${i}.${name}`, kind: 'linear', weight } as never
  }),
).flat()

test('counts of the sheet on BERT-base: all, {q, v, up} of each layer, and the shared pairs', (t) => {
  const network = networkOf(bertSites)
  const gamma = (row: readonly (0 | 1)[]): DifforaSearch => ({
    layers: Array.from({ length: 12 }, (_, i) => `encoder.layer.${i}`),
    modules: ['q', 'k', 'v', 'o', 'up', 'down'],
    theta: Array.from({ length: 12 }, () => row.map(() => 0)),
    gamma: Array.from({ length: 12 }, () => row),
  })
  const countOf = (row: readonly (0 | 1)[], share: 'per-type' | 'none'): number =>
    parameterCount(network, diffora({ share, search: gamma(row) })).parameters
  t.is(countOf([1, 1, 1, 1, 1, 1], 'none'), 1_327_104)
  t.is(countOf([1, 0, 1, 0, 1, 0], 'none'), 663_552)
  t.is(countOf([1, 0, 1, 0, 1, 0], 'per-type'), 718_848)
})

test('one module alone, and types of several shapes that are to share, are refused', async (t) => {
  const alone = networkOf([{ path: 'model.layers.0.proj', kind: 'linear', weight: zeros([2, 2]) }])
  await t.throwsAsync(Adapter.attach(alone, diffora(), { calibration: recorded([]) }), {
    message: /at least two modules/,
  })
  const uneven = networkOf([
    { path: 'model.layers.0.down', kind: 'linear', weight: zeros([2, 2]) },
    { path: 'model.layers.1.down', kind: 'linear', weight: zeros([2, 3]) },
  ])
  const search = {
    layers: ['model.layers.0', 'model.layers.1'],
    modules: ['down'],
    theta: [[0], [0]],
    gamma: [[0], [0]],
  } as const
  await t.throwsAsync(Adapter.attach(uneven, diffora({ search })), { instanceOf: HeddleError, message: /share none/ })
})

interface Pairs {
  readonly id: number
  readonly x: Float32Array
  readonly target: Float32Array
}

/** Squared errors of the network's output. */
function regression(
  width: number,
  forwardOf: (network: Network, x: Sym, hook?: SiteHook) => Sym,
  seen?: number[],
): Objective<Network, Pairs> {
  const refuse = (): never => {
    throw new Error('not used')
  }
  return {
    name: 'regression',
    config: {},
    inputs: ['x', 'target'],
    arrays({ id, x, target }) {
      seen?.push(id)
      const shape = [x.length / width, width]
      return { x: { data: x, shape }, target: { data: target, shape } }
    },
    weight: ({ x }) => x.length,
    tokens: ({ x }) => x.length / width,
    loss: async (network, { x, target }, { hook }) => sum(square(sub(forwardOf(network, x!, hook), target!))),
    scores: refuse,
    scoreboard: refuse,
    open: refuse,
  }
}

/** Ten batches for {@link chain}; `seen` gets the number of each that is looked at. */
function recorded(seen: number[]): Calibration {
  return {
    objective: regression(4, through, seen) as Objective,
    async *batches() {
      for (let id = 0; id < 10; id += 1) yield { id, x: randomNumbers(20, id + 20), target: randomNumbers(20, id + 40) }
    },
  }
}

test('LoRAs and gates see batches of their own in turns, the gates after the warm-up', async (t) => {
  const seen: number[] = []
  const options = { search_steps: 7, warmup_steps: 2, valid_fraction: 0.3 }
  await Adapter.attach(chain(), diffora(options), { calibration: recorded(seen) })
  // Of ten batches numbers 3, 6 and 9 are held out.
  t.deepEqual(seen, [0, 1, 2, 3, 4, 6, 5, 9, 7, 3, 8, 6])
})

test('the same seed finds the same; another begins elsewhere', async (t) => {
  const search = async (seed: number): Promise<unknown> => {
    const adapter = await Adapter.attach(chain(), diffora({ search_steps: 5, lr_w: 0.1 }), {
      seed,
      calibration: recorded([]),
    })
    return adapter.method.config.search
  }
  t.deepEqual(await search(1), await search(1))
  t.notDeepEqual(await search(1), await search(2))
})

const [depth, width] = [6, 32]

/** h ← h + 0.5 W₂ relu(W₁ h), six times. */
const residual = ({ sites }: Network, x: Sym, hook?: SiteHook): Sym => {
  const forward: Forward = { precision: 'f32', training: false, hook }
  let h = x
  for (let i = 0; i < depth; i += 1) {
    const at = (name: string, value: Sym): Sym => linear(sites.get(`model.layers.${i}.${name}`)!, value, forward)
    h = add(h, mul(at('w2', relu(at('w1', h))), 0.5))
  }
  return h
}

/** Numbers of variance 1. */
const spreadNumbers = (count: number, seed: number): Float32Array =>
  randomNumbers(count, seed).map((v) => v * Math.sqrt(3))

function residualNetwork(planted: ReadonlySet<string>): Network {
  return networkOf(
    Array.from({ length: 2 * depth }, (_, i): Site => {
      const path = `model.layers.${Math.floor(i / 2)}.w${(i % 2) + 1}`
      const weight = spreadNumbers(width * width, i + 1).map((v) => v / Math.sqrt(width))
      if (planted.has(path)) {
        const [u, v] = [spreadNumbers(2 * width, 100 + i), spreadNumbers(2 * width, 200 + i)]
        const change = weight.map((_, at) => {
          const [row, column] = [Math.floor(at / width), at % width]
          return u[row]! * v[column]! + u[width + row]! * v[width + column]!
        })
        const size = (0.5 * Math.sqrt(width)) / Math.hypot(...change)
        for (const [at, value] of change.entries()) weight[at]! += size * value
      }
      return { path, kind: 'linear', weight: tensor(weight, [width, width]) }
    }),
  )
}

/** Batches of what a network with planted changes gives, for one without them. */
async function plantedTask(planted: readonly string[]) {
  const [teacher, student] = [residualNetwork(new Set(planted)), residualNetwork(new Set())]
  const batch = async (id: number): Promise<Pairs> => {
    const x = spreadNumbers(128 * width, 1000 + id)
    using target = await computed(() => residual(teacher, read(tensor(x, [128, width]))))
    return { id, x, target: (await target.data()) as Float32Array }
  }
  const several = (count: number, from: number) => Promise.all(Array.from({ length: count }, (_, i) => batch(from + i)))
  return { student, data: await several(16, 0), held: await several(4, 100) }
}

const plain = { r: 2, lora_alpha: 2 } as const

/** The student with what the search chose. */
async function searchedOn({ student, data }: Awaited<ReturnType<typeof plantedTask>>, seed = 0): Promise<Adapter> {
  const calibration: Calibration = {
    objective: regression(width, residual) as Objective,
    async *batches() {
      yield* data
    },
  }
  const search = { search_steps: 400, warmup_steps: 40, lr_w: 1e-2, lr_theta: 2e-2 }
  const method = diffora({ ...plain, select: 'global', ratio: 1 / 3, share: 'none', ...search })
  return await Adapter.attach(student, method, { calibration, seed })
}

/** Mean squared error on other data after 400 steps. */
async function trainedError(
  { student, data, held }: Awaited<ReturnType<typeof plantedTask>>,
  adapter: Adapter,
): Promise<number> {
  const parameters = [...adapter.parameters().values()]
  const optimizer = adamw({ lr: 1e-2, weightDecay: 0 })
  const objective = regression(width, residual)
  const step = await trainingStep({ network: student, objective, parameters, optimizer, hook: adapter.hook })
  for (let i = 0; i < 400; i += 1)
    await step.run({ batches: [data[i % data.length]!], step: i + 1, learningRate: 1e-2 })
  step.dispose()
  const all = (name: 'x' | 'target'): Sym =>
    read(tensor(Float32Array.from(held.flatMap((each) => [...each[name]])), [held.length * 128, width]))
  using error = await computed(() => sum(square(sub(residual(student, all('x'), adapter.hook), all('target')))))
  return error.item() / (held.length * 128 * width)
}

const plants = [
  ['0.w2', '2.w1', '3.w2', '5.w1'],
  ['0.w1', '1.w1', '4.w2', '5.w2'],
  ['1.w2', '2.w2', '3.w1', '4.w1'],
].map((plant) => plant.map((name) => `model.layers.${name}`))

for (const [i, planted] of plants.entries())
  test.serial(`planted selection ${i + 1}: at least three of the four modules that differ are found`, async (t) => {
    const searched = await searchedOn(await plantedTask(planted), i)
    const hits = searched.sitePaths.filter((path) => planted.includes(path)).length
    t.log(hits)
    t.true(hits >= 3, `${searched.sitePaths}`)
  })

test.serial('trained at the modules that were found, the error is below a tenth of that at others', async (t) => {
  const task = await plantedTask(plants[0]!)
  const own = await trainedError(task, await searchedOn(task))
  const others: number[] = []
  for (const names of [
    ['0.w1', '1.w2', '3.w2', '4.w1'],
    ['0.w2', '2.w1', '4.w2', '5.w2'],
  ]) {
    const target_modules = names.map((name) => `model.layers.${name}`)
    others.push(await trainedError(task, await Adapter.attach(task.student, lora({ ...plain, target_modules }))))
  }
  t.log({ own, others })
  t.true(own < Math.min(...others) / 10, `${own} against ${others}`)
})
