/** Fitting an adapter to numbers: the small experiments by which methods are compared. */
import type { Adapter } from '../../lib/adapters/adapter.js'
import { computed } from '../../lib/graph/computed.js'
import { gradients } from '../../lib/graph/grad.js'
import { add, mul, square, sub } from '../../lib/graph/ops/elementwise.js'
import { randomNormal } from '../../lib/graph/ops/random.js'
import { mean } from '../../lib/graph/ops/reduce.js'
import { program } from '../../lib/graph/program.js'
import { assign, read, type Sym } from '../../lib/graph/sym.js'
import type { Forward } from '../../lib/nn/site.js'
import { adamw } from '../../lib/optim/adamw.js'
import { seedTensor } from '../../lib/tensor/seed.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'

/** Normal numbers. */
export async function normal(shape: readonly number[], seed: number, deviation = 1): Promise<Tensor> {
  using words = seedTensor(seed)
  return await computed((s) => mul(randomNormal(s!, 0, shape), deviation), [words])
}

/** What {@link fitted} fits. */
export interface Regression {
  readonly adapter: Adapter
  readonly model: (x: Sym, forward: Forward) => Sym
  readonly x: Tensor
  readonly y: Tensor
  readonly lr: number
  readonly steps: number
}

/** The mean squared error before every step of Adam, and after the last. */
export async function fitted({ adapter, model, x, y, lr, steps }: Regression): Promise<number[]> {
  const trained = [...adapter.parameters()]
  const inner = adamw({ lr, weightDecay: 0 })
  const names = trained.map(([name]) => name)
  const rule = adapter.method.optimizer?.(inner, { names, totalSteps: steps }) ?? inner
  const state = await rule.init(trained.map(([, each]) => each))
  const step = program(async (count, rate) => {
    const forward: Forward = { precision: 'f32', training: true, hook: adapter.hook }
    const error = mean(square(sub(model(read(x), forward), read(y))))
    const penalty = adapter.penalty()
    const values = trained.map(([, each]) => read(each))
    const found = await gradients(penalty ? add(error, penalty) : error, values)
    const updates = await state.update(found, { step: count!, learningRate: rate!, parameters: values })
    for (const [i, [, each]] of trained.entries()) assign(each, add(values[i]!, updates[i]!))
    return error
  })
  const errors: number[] = []
  using rate = tensor([lr], [])
  for (let i = 1; i <= steps; i += 1) {
    using count = tensor([i], [])
    using error = await step.run([count, rate])
    errors.push(error.item())
  }
  step.dispose()
  using last = await computed(() =>
    mean(square(sub(model(read(x), { precision: 'f32', training: false, hook: adapter.hook }), read(y)))),
  )
  return [...errors, last.item()]
}
