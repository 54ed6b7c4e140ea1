// Programs on a device with memory of its own: tensors are copied there when they are needed there, and back when they are
// read.
import './support/cuda_host.js'
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { add, mul, square, sub } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { rmsNorm } from '../lib/graph/ops/norm.js'
import { mean, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read } from '../lib/graph/sym.js'
import { tensor, zeros } from '../lib/tensor/tensor.js'
import { randomTensor } from './random_numbers.js'

const numbers = async (x: { data(): Promise<ArrayLike<number | bigint>> }): Promise<number[]> =>
  Array.from(await x.data(), Number)

/** Traces a change of state, without results. */
const update = (change: () => void): [] => {
  change()
  return []
}

test('a training step gives the same loss and weights as on the CPU', async (t) => {
  const train = async (device: 'cpu' | 'cuda') => {
    const [w, v, scale] = [randomTensor([16, 32], 1), randomTensor([32, 4], 2), tensor(new Float32Array(32).fill(1))]
    const step = program(
      async (x, y) => {
        const hidden = rmsNorm(matmul(x!, read(w)), read(scale), 1e-5)
        const loss = mean(square(sub(matmul(hidden, read(v)), y!)))
        const weights = [w, v, scale]
        const found = await gradients(loss, weights.map(read))
        for (const [i, weight] of weights.entries()) assign(weight, sub(read(weight), mul(found[i]!, 0.1)))
        return loss
      },
      { device },
    )
    const [x, y] = [randomTensor([8, 16], 3), randomTensor([8, 4], 4)]
    const losses: number[] = []
    for (let i = 0; i < 5; ++i) losses.push((await step(x, y)).item())
    return [...losses, ...(await numbers(w)), ...(await numbers(v)), ...(await numbers(scale))]
  }
  const [cpu, cuda] = [await train('cpu'), await train('cuda')]
  t.true(cpu[4]! < cpu[0]!)
  t.true(cpu.every((value, i) => Math.abs(value - cuda[i]!) < 1e-5))
})

test('a state that a device has changed is read by the host and by programs on the CPU', async (t) => {
  const state = tensor([1, 2])
  const count = program(() => update(() => assign(state, add(read(state), 1))), { device: 'cuda' })
  const look = program(() => mul(read(state), 10), { device: 'cpu' })
  t.deepEqual(await numbers(await look()), [10, 20])
  await count()
  await count()
  t.deepEqual(await numbers(await look()), [30, 40])
  t.deepEqual(await numbers(state), [3, 4])
})

test('a tensor that the host or a program on the CPU changes is copied to the device anew', async (t) => {
  const state = tensor([1, 2])
  const look = program(() => mul(read(state), 10), { device: 'cuda' })
  const count = program(() => update(() => assign(state, add(read(state), 1))), { device: 'cpu' })
  t.deepEqual(await numbers(await look()), [10, 20])
  await count()
  t.deepEqual(await numbers(await look()), [20, 30])
})

test('results stay on the device until they are read, and can be inputs there and on the CPU', async (t) => {
  const twice = program((x) => mul(x!, 2), { device: 'cuda' })
  const total = program((x) => sum(x!), { device: 'cpu' })
  const four = await twice(await twice(tensor([1, 2])))
  t.is((await total(four)).item(), 12)
  t.deepEqual(await numbers(four), [4, 8])
  t.is((await total(await twice(four))).item(), 24)
})

test('a packed weight on the CPU is packed anew when a device has changed it', async (t) => {
  const w = randomTensor([64, 64], 5)
  const product = program((x) => matmul(x!, read(w)), { device: 'cpu' })
  const clear = program(() => update(() => assign(w, mul(read(w), 0))), { device: 'cuda' })
  const x = randomTensor([64, 64], 6)
  t.true((await numbers(await product(x))).some((value) => value !== 0))
  await clear()
  t.true((await numbers(await product(x))).every((value) => value === 0))
})

test('a device program can be aborted, and run again', async (t) => {
  const step = program((x) => mul(x!, 2), { device: 'cuda' })
  await t.throwsAsync(step.run([tensor([1])], { signal: AbortSignal.abort() }), { code: 'ERR_HEDDLE_ABORTED' })
  t.deepEqual(await numbers(await step(tensor([1]))), [2])
})

test('several programs run on the device side by side', async (t) => {
  const steps = Array.from({ length: 6 }, (_, i) => program((x) => matmul(x!, mul(x!, i)), { device: 'cuda' }))
  const x = randomTensor([40, 40], 7)
  const [one] = [await numbers(await steps[1]!(x))]
  const all = await Promise.all([...steps, ...steps].map(async (step) => numbers(await step(x))))
  for (const [i, found] of all.entries())
    t.true(found.every((value, at) => Math.abs(value - (i % 6) * one![at]!) < 1e-4))
})

test.serial('f32 is multiplied in f32, or in TF32 where HEDDLE_CUDA_TF32 allows it', async (t) => {
  // In TF32 what is below 2^-10 of a number is gone.
  const x = tensor([1 + 2 ** -12, 2 ** -12], [1, 2])
  const product = async () => (await program((a) => matmul(a!, a!, { transposeB: true }), { device: 'cuda' })(x)).item()
  t.true((await product()) > 1 + 2 ** -12)
  process.env.HEDDLE_CUDA_TF32 = '1'
  try {
    t.is(await product(), 1)
    process.env.HEDDLE_CUDA_TF32 = 'yes'
    await t.throwsAsync(product(), {
      code: 'ERR_HEDDLE_ARGUMENT',
      message: 'HEDDLE_CUDA_TF32: expected 0 or 1, got yes',
    })
  } finally {
    delete process.env.HEDDLE_CUDA_TF32
  }
})

test('operands without elements take no launch', async (t) => {
  const step = program((x, w) => ({ y: mul(x!, 2), total: sum(x!), product: matmul(x!, w!) }), { device: 'cuda' })
  const { y, total, product } = await step(zeros([0, 3]), zeros([3, 2]))
  t.deepEqual([y.shape, total.item(), product.shape], [[0, 3], 0, [0, 2]])
})
