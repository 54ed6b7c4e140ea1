// Activations, LayerNorm, softmax and its relatives: values and gradients as torch has them.
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import * as elementwise from '../lib/graph/ops/elementwise.js'
import { batchNorm, groupNorm, instanceNorm, layerNorm } from '../lib/graph/ops/norm.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { logSoftmax, logSumExp, softmax } from '../lib/graph/ops/softmax.js'
import { program } from '../lib/graph/program.js'
import { tensor, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { testAgainstTorch } from './support/golden_operators.js'

testAgainstTorch('activations', {
  gelu: ([x], options) => elementwise.gelu(x!, options),
  quickGelu: ([x]) => elementwise.quickGelu(x!),
  softplus: ([x]) => elementwise.softplus(x!),
  logSigmoid: ([x]) => elementwise.logSigmoid(x!),
  leakyRelu: ([x], { slope }) => elementwise.leakyRelu(x!, slope),
  elu: ([x], { alpha }) => elementwise.elu(x!, alpha),
  clamp: ([x], { low, high }) => elementwise.clamp(x!, low, high),
  mish: ([x]) => elementwise.mish(x!),
  softcap: ([x], { cap }) => elementwise.softcap(x!, cap),
})

const running = (channels: number) => ({ runningMean: zeros([channels]), runningVariance: zeros([channels]) })

testAgainstTorch('norms', {
  layerNorm: ([x, w, b], { eps }) => layerNorm(x!, w, b, eps),
  groupNorm: ([x, weight, bias], { groups, eps }) => groupNorm(x!, groups, { weight, bias, eps }),
  instanceNorm: ([x, weight, bias]) => instanceNorm(x!, { weight, bias }),
  batchNorm: ([x, weight, bias]) => batchNorm(x!, { weight, bias, training: true, ...running(x!.shape[1]!) }),
  softmax: ([x], { axis }) => softmax(x!, axis),
  logSoftmax: ([x], { axis }) => logSoftmax(x!, axis),
  logSumExp: ([x], { axis }) => logSumExp(x!, axis),
})

test('softplus keeps its tails: e^x far below zero, x far above', async (t) => {
  const step = program((x) => elementwise.softplus(x!))
  const [low, high] = await (await step(tensor([-80, 80]))).data()
  t.true(Math.abs(Number(low) / Math.exp(-80) - 1) < 1e-5)
  t.is(high, 80)
})

test('a large mean takes no precision from layerNorm', async (t) => {
  const step = program((x) => layerNorm(x!, undefined, undefined, 0))
  const noise = randomNumbers(64, 3).map((value) => Math.fround(Math.round(value * 512) / 512))
  const plain = await (await step(tensor(noise, [1, 64]))).data()
  const shifted = await (
    await step(
      tensor(
        noise.map((value) => value + 4096),
        [1, 64],
      ),
    )
  ).data()
  t.true(plain.every((value, i) => Math.abs(Number(value) - Number(shifted[i])) < 1e-3))
})

test('softmax of equal infinities is not a number, of -inf beside a number is 0', async (t) => {
  const step = program((x) => ({ p: softmax(x!), s: logSumExp(x!) }))
  const { p, s } = await step(tensor([0, -Infinity, -Infinity, -Infinity], [2, 2]))
  t.deepEqual([...(await p.data())], [1, 0, NaN, NaN])
  t.deepEqual([...(await s.data())], [0, -Infinity])
})

test('the rows of a softmax Jacobian add up to 0: the sum of a softmax has no gradient', async (t) => {
  const step = program(async (x) => gradients(sum(softmax(x!)), [x!]))
  const [dx] = await step(tensor(randomNumbers(12, 4), [3, 4]))
  t.true((await dx!.data()).every((value) => Math.abs(Number(value)) < 1e-7))
})

test('batchNorm lets running statistics follow the batches, and evaluates with them', async (t) => {
  const state = { runningMean: tensor([1, 0]), runningVariance: tensor([1, 4]) }
  const train = program((x) => batchNorm(x!, { ...state, training: true, momentum: 0.5, eps: 0 }))
  const evaluate = program((x) => batchNorm(x!, { ...state, training: false, eps: 0 }))
  const x = tensor([1, 0, 3, 0], [2, 2])
  await train(x)
  // Means 2 and 0; unbiased variances 2 and 0.
  t.deepEqual([...(await state.runningMean.data())], [1.5, 0])
  t.deepEqual([...(await state.runningVariance.data())], [1.5, 2])
  const expected = [(1 - 1.5) / Math.sqrt(1.5), 0, (3 - 1.5) / Math.sqrt(1.5), 0]
  const found = [...(await (await evaluate(x)).data())].map(Number)
  t.true(found.every((value, i) => Math.abs(value - expected[i]!) < 1e-6))
  t.deepEqual([...(await state.runningMean.data())], [1.5, 0])
})

test('silu is x · sigmoid(x) bit for bit, alone and where the sigmoid is computed too', async (t) => {
  const x = tensor(Float32Array.of(...randomNumbers(500, 8), -1e-30, 1e-30, -90, 90, 0, Number.NaN))
  const alone = await program((v) => elementwise.silu(v!))(x)
  const product = await program((v) => elementwise.mul(v!, elementwise.sigmoid(v!)))(x)
  const both = await program((v) => ({ silu: elementwise.silu(v!), sigmoid: elementwise.sigmoid(v!) }))(x)
  t.deepEqual(await alone.data(), await product.data())
  t.deepEqual(await both.silu.data(), await alone.data())
})
