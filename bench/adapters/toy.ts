/** Small tasks that are trained in seconds: what the experiments of the methods have in common. */
import { Adapter } from '../../lib/adapters/adapter.js'
import type { Parametrization } from '../../lib/adapters/parametrization.js'
import { computed } from '../../lib/graph/computed.js'
import { gradients } from '../../lib/graph/grad.js'
import { add, cast, div, mul, sqrt, square, sub } from '../../lib/graph/ops/elementwise.js'
import { arange } from '../../lib/graph/ops/gather.js'
import { gatherRows } from '../../lib/graph/ops/index.js'
import { matmul } from '../../lib/graph/ops/matmul.js'
import { randomNormal } from '../../lib/graph/ops/random.js'
import { mean, sum } from '../../lib/graph/ops/reduce.js'
import { program } from '../../lib/graph/program.js'
import { assign, read, type Sym } from '../../lib/graph/sym.js'
import { qr } from '../../lib/linalg/factorise.js'
import type { Network } from '../../lib/nn/network.js'
import { type Forward, linear, type Site } from '../../lib/nn/site.js'
import type { Objective } from '../../lib/objectives/objective.js'
import type { Calibration } from '../../lib/observers/calibration.js'
import { adamw } from '../../lib/optim/adamw.js'
import { seedTensor } from '../../lib/tensor/seed.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'

/** A network and what it is to give. */
export interface Task {
  readonly network: Network
  /** Its output for inputs `[n, …]`. Traced. */
  readonly output: (x: Sym, forward: Forward) => Sym
  /** The mean loss of outputs; default the mean squared error. Traced. */
  readonly loss?: (output: Sym, y: Sym) => Sym
  readonly x: Tensor
  readonly y: Tensor
}

/** How {@link train} goes. */
export interface Training {
  readonly lr: number
  readonly steps: number
  /** Rows of a step, one part of the data after the other; default all. */
  readonly batch?: number
  /** Trained beside the adapter, or without one. */
  readonly weights?: readonly Tensor[]
  /** Their rate; default lr. */
  readonly weightLr?: number
  /** Called with the loss before each step; true ends the training. */
  readonly until?: (loss: number, step: number) => boolean
}

const squaredError = (output: Sym, y: Sym): Sym => mean(square(sub(output, y)))

const plain: Forward = { precision: 'f32', training: false }

/** The loss over all data. */
export async function lossOf({ output, loss = squaredError, x, y }: Task, adapter?: Adapter): Promise<number> {
  using value = await computed(() => loss(output(read(x), { ...plain, hook: adapter?.hook }), read(y)))
  return value.item()
}

/** Adam without weight decay; as a method wants it, where there is an adapter. @returns the steps taken */
export async function train(task: Task, adapter: Adapter | undefined, training: Training): Promise<number> {
  const { output, loss = squaredError, x, y } = task
  const { lr, steps, batch, weights = [], weightLr = lr, until } = training
  const own = [...(adapter?.parameters() ?? [])]
  const trained = [...own, ...weights.map((each, i) => [`weight.${i}`, each] as const)]
  const inner = adamw({ lr, weightDecay: 0 })
  const names = trained.map(([name]) => name)
  const rule = adapter?.method.optimizer?.(inner, { names, totalSteps: steps }) ?? inner
  const state = await rule.init(trained.map(([, each]) => each))
  const rowsOf = (each: Tensor, start: Sym): Sym =>
    batch === undefined ? read(each) : gatherRows(read(each), cast(add(arange(batch), start), 'i32'))
  const step = program(async (count, rate, start) => {
    const forward: Forward = { precision: 'f32', training: true, hook: adapter?.hook }
    const error = loss(output(rowsOf(x, start!), forward), rowsOf(y, start!))
    const penalty = adapter?.penalty()
    const values = trained.map(([, each]) => read(each))
    const found = await gradients(penalty ? add(error, penalty) : error, values)
    const updates = await state.update(found, { step: count!, learningRate: rate!, parameters: values })
    // Adam's updates are proportional to the rate.
    for (const [i, [, each]] of trained.entries())
      assign(each, add(values[i]!, i < own.length ? updates[i]! : mul(updates[i]!, weightLr / lr)))
    return error
  })
  using rate = tensor([lr], [])
  const batches = batch === undefined ? 1 : Math.floor(x.shape[0]! / batch)
  try {
    for (let i = 0; i < steps; i += 1) {
      using count = tensor([i + 1], [])
      using start = tensor(Int32Array.of((i % batches) * (batch ?? 0)), [])
      using error = await step.run([count, rate, start])
      if (until?.(error.item(), i)) return i
    }
    return steps
  } finally {
    step.dispose()
    for (const each of Object.values(state.tensors)) each.dispose()
  }
}

/** What {@link adapt} gives. */
export interface Fit {
  readonly adapter: Adapter
  readonly parameters: number
  readonly loss: number
}

/** Attaches a method, which may look at all of the task's data, and trains it. */
export async function adapt(task: Task, method: Parametrization, training: Training, seed = 0): Promise<Fit> {
  const adapter = await Adapter.attach(task.network, method, { seed, calibration: calibrationOf(task) })
  await train(task, adapter, training)
  return { adapter, parameters: adapter.parameterCount, loss: await lossOf(task, adapter) }
}

/** The task's first rows, a batch after the other, for methods that look at data; default all rows at once. */
export function calibrationOf(task: Task, rows = task.x.shape[0]!, batches = 1): Calibration {
  const { output, loss = squaredError, x, y } = task
  interface Part {
    readonly x: Float32Array
    readonly y: Float32Array | Int32Array
  }
  const refuse = (): never => {
    throw new Error('not evaluated')
  }
  const shapeOf = (each: Tensor): number[] => [rows, ...each.shape.slice(1)]
  const objective: Objective<Network, Part> = {
    name: 'toy',
    config: {},
    inputs: ['x', 'y'],
    arrays: (part) => ({ x: { data: part.x, shape: shapeOf(x) }, y: { data: part.y, shape: shapeOf(y) } }),
    weight: () => rows,
    tokens: () => rows,
    loss: async (_, inputs, forward) => mul(loss(output(inputs.x!, forward), inputs.y!), rows),
    scores: refuse,
    scoreboard: refuse,
    open: refuse,
  }
  return {
    objective: objective as Objective,
    async *batches() {
      const [allX, allY] = [(await x.data()) as Float32Array, (await y.data()) as Float32Array]
      const partOf = <A extends Float32Array>(all: A, each: Tensor, i: number): A => {
        const size = (rows * each.size) / each.shape[0]!
        return all.slice(i * size, (i + 1) * size) as A
      }
      for (let i = 0; i < batches; i += 1) yield { x: partOf(allX, x, i), y: partOf(allY, y, i) }
    },
  }
}

/** Normal numbers. */
export async function normal(shape: readonly number[], seed: number, deviation = 1): Promise<Tensor> {
  using words = seedTensor(seed)
  return await computed((s) => mul(randomNormal(s!, 0, shape), deviation), [words])
}

/** `[n, k]` with orthonormal columns. */
export async function orthonormal(n: number, k: number, seed: number): Promise<Tensor> {
  using drawn = await normal([n, k], seed)
  return await computed(() => qr(read(drawn)).q)
}

/** A network of linear modules under these paths. */
export function networkOf(weights: Readonly<Record<string, Tensor>>): Network {
  const sites = Object.entries(weights).map(([path, weight]): Site => ({ path, kind: 'linear', weight }))
  return {
    config: {},
    architecture: 'toy',
    sites: new Map(sites.map((site) => [site.path, site])),
    maxPositions: 1,
    embeddingTied: false,
    weights: () => sites.map(({ path, weight }) => ({ name: `${path}.weight`, tensor: weight })),
  }
}

/** x through a module of the network. */
export const through = (network: Network, path: string, x: Sym, forward: Forward): Sym =>
  linear(network.sites.get(path)!, x, forward)

/**
 * One linear module `proj`, W, that is to compute what W + T does on normal inputs.
 * @param t `[out, in]`
 */
export async function shifted(w: Tensor, t: Tensor, rows = 512, seed = 7): Promise<Task> {
  const network = networkOf({ 'model.proj': w })
  const x = await normal([rows, w.shape[1]!], seed)
  const y = await computed(() => matmul(read(x), add(read(w), read(t)), { transposeB: true }))
  return { network, output: (input, forward) => through(network, 'model.proj', input, forward), x, y }
}

/** A matrix U diag(s) Vᵀ of this size with s falling exponentially from `largest`: s_i = largest · exp(−i / decay). */
export async function withSpectrum(n: number, largest: number, decay: number, seed: number) {
  const [u, v] = [await orthonormal(n, n, seed), await orthonormal(n, n, seed + 1)]
  const s = Array.from({ length: n }, (_, i) => largest * Math.exp(-i / decay))
  const w = await computed(() => matmul(mul(read(u), read(tensor(s, [n]))), read(v), { transposeB: true }))
  return { u, v, s, w }
}

/** T with ‖T‖ = size. */
export const scaledTo = (t: Tensor, size: number): Promise<Tensor> =>
  computed(() => mul(read(t), div(size, sqrt(sum(square(read(t)))))))

/** a bᵀ */
export const outer = (a: Tensor, b: Tensor): Promise<Tensor> =>
  computed(() => matmul(read(a), read(b), { transposeB: true }))

/** Three significant digits. */
export const digits = (value: number): string => `${Number(value.toPrecision(3))}`
