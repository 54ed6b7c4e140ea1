/** What S²FT's columns learn and forget, next to a LoRA and to training all weights. */
import { lora } from '../../../lib/adapters/methods/lora.js'
import { type S2ftOptions, s2ft } from '../../../lib/adapters/methods/s2ft.js'
import { computed, copied } from '../../../lib/graph/computed.js'
import { add, mul, silu } from '../../../lib/graph/ops/elementwise.js'
import { concat, slice } from '../../../lib/graph/ops/index.js'
import { read } from '../../../lib/graph/sym.js'
import type { Tensor } from '../../../lib/tensor/tensor.js'
import type { Finding } from '../experiment.js'
import { adapt, digits, lossOf, networkOf, normal, type Task, through, train } from '../toy.js'

export const setting =
  'A SwiGLU part (32 wide, 128 inner) that does task A learns task B, another down projection seen where half of the inputs are a tenth as large (256 rows, Adam 1e-2, all weights 1e-3, 1500 steps): mean squared errors on B’s held-out rows and on A.'

const [h, m] = [32, 128]
const block = 'model.layers.0.mlp'

export async function* run(): AsyncGenerator<Finding> {
  const { weights, a, b, held } = await tasks()
  const start = await lossOf(held)
  const arm = async (options: S2ftOptions): Promise<Outcome> => {
    const { adapter, parameters } = await adapt(b, s2ft({ ...options, target_modules: ['down_proj'] }), training, 1)
    return { parameters, task: await lossOf(held, adapter), forgotten: await lossOf(a, adapter) }
  }
  const k32 = await arm({ d_ratio: 0.25 })
  const k16 = await arm({ d_ratio: 0.125 })
  const largest = await arm({ d_ratio: 0.25, selection: 'activation', selection_order: 'largest' })
  const smallest = await arm({ d_ratio: 0.25, selection: 'activation', selection_order: 'smallest' })
  const low = await adapt(b, lora({ r: 6, lora_alpha: 6, target_modules: ['down_proj'] }), training, 1)
  const plain: Outcome = {
    parameters: low.parameters,
    task: await lossOf(held, low.adapter),
    forgotten: await lossOf(a, low.adapter),
  }
  const full = await allWeights(weights, { a, b, held })
  yield {
    statement: 'S²FT forgets clearly less than training all weights (below 0.7 of it), and adapts less',
    measured: `B from ${digits(start)}: all weights ${text(full)}, 32 random columns ${text(k32)}, 16 ${text(k16)}; the sheet has 0.0021 / 0.146, 0.0175 / 0.071 and 0.0223 / 0.034`,
    held: [k32, k16].every(({ task, forgotten }) => forgotten < 0.7 * full.forgotten && task > full.task),
  }
  yield {
    statement: 'of 32 columns those with the largest activations fit best',
    measured: `largest ${text(largest)}, random ${text(k32)}, smallest ${text(smallest)}; the sheet has 0.0138 / 0.048, 0.0175 / 0.071 and 0.0227 / 0.094`,
    held: largest.task < Math.min(k32.task, smallest.task),
  }
  yield {
    statement:
      'a LoRA of rank 6 on the same module is as good as 32 random columns or better, in both (the paper’s ranking is one of large language models)',
    measured: `LoRA ${text(plain)}; the sheet has 0.0145 / 0.031`,
    held: plain.task <= k32.task && plain.forgotten <= k32.forgotten,
  }
}

const training = { lr: 1e-2, steps: 1500 }

interface Outcome {
  readonly parameters: number
  readonly task: number
  readonly forgotten: number
}

const text = ({ parameters, task, forgotten }: Outcome): string =>
  `${digits(task)} on B / ${digits(forgotten)} on A (${parameters.toLocaleString('en-US')} numbers)`

type Weights = Readonly<Record<'gate_proj' | 'up_proj' | 'down_proj', Tensor>>

function taskOn(weights: Weights, x: Tensor, y: Tensor): Task {
  const network = networkOf(
    Object.fromEntries(Object.entries(weights).map(([name, each]) => [`${block}.${name}`, each])),
  )
  const output: Task['output'] = (input, forward) => {
    const at = (name: string, value: typeof input) => through(network, `${block}.${name}`, value, forward)
    return at('down_proj', mul(silu(at('gate_proj', input)), at('up_proj', input)))
  }
  return { network, output, x, y }
}

async function tasks() {
  const weights: Weights = {
    gate_proj: await normal([m, h], 1, h ** -0.5),
    up_proj: await normal([m, h], 2, h ** -0.5),
    down_proj: await normal([h, m], 3, m ** -0.5),
  }
  const change = await normal([h, m], 4, 0.5 * m ** -0.5)
  const other = await computed(() => add(read(weights.down_proj), read(change)))
  const inputs = async (rows: number, seed: number, small: number): Promise<Tensor> => {
    const drawn = await normal([rows, h], seed)
    const part = (start: number) => slice(read(drawn), [{ axis: 1, start, end: start + h / 2 }])
    return await computed(() => concat([part(0), mul(part(h / 2), small)], 1))
  }
  const made = async (teacher: Weights, x: Tensor): Promise<Task> => {
    const { output } = taskOn(teacher, x, x)
    return taskOn(weights, x, await computed(() => output(read(x), { precision: 'f32', training: false })))
  }
  const changed = { ...weights, down_proj: other }
  const b = await made(changed, await inputs(256, 6, 0.1))
  const onSame = (task: Task): Task => ({ ...b, x: task.x, y: task.y })
  return {
    weights,
    b,
    a: onSame(await made(weights, await inputs(256, 5, 1))),
    held: onSame(await made(changed, await inputs(256, 7, 0.1))),
  }
}

async function allWeights(weights: Weights, given: Readonly<Record<'a' | 'b' | 'held', Task>>): Promise<Outcome> {
  const copies: Weights = {
    gate_proj: await copied(weights.gate_proj),
    up_proj: await copied(weights.up_proj),
    down_proj: await copied(weights.down_proj),
  }
  const on = ({ x, y }: Task): Task => taskOn(copies, x, y)
  await train(on(given.b), undefined, { ...training, lr: 1e-3, weights: Object.values(copies) })
  return {
    parameters: 3 * h * m,
    task: await lossOf(on(given.held)),
    forgotten: await lossOf(on(given.a)),
  }
}
