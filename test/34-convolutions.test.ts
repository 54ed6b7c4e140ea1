// Convolutions and pooling: values and gradients as torch has them, on any number of threads.
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { conv1d, conv2d } from '../lib/graph/ops/conv.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { pad } from '../lib/graph/ops/gather.js'
import { adaptiveAvgPool2d, avgPool2d, maxPool2d, upsample2d } from '../lib/graph/ops/pool.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { addon } from '../lib/native.js'
import { tensor } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { testAgainstTorch } from './support/golden_operators.js'

testAgainstTorch('convolutions', {
  conv2d: ([x, w, bias], options) => conv2d(x!, w!, { ...options, bias }),
  conv1d: ([x, w, bias], options) => conv1d(x!, w!, { ...options, bias }),
})

testAgainstTorch('images', {
  maxPool2d: ([x], { size, ...options }) => maxPool2d(x!, size, options),
  avgPool2d: ([x], { size, ...options }) => avgPool2d(x!, size, options),
  adaptiveAvgPool2d: ([x], { size }) => adaptiveAvgPool2d(x!, size),
  upsample2d: ([x], { size, ...options }) => upsample2d(x!, size, options),
  pad: ([x], { widths, ...options }) => pad(x!, widths, options),
})

test.serial('a convolution and its gradients are the same on one thread and on three', async (t) => {
  const shape = [5, 24, 13, 11]
  const step = program(async (x, w) => {
    const y = conv2d(x!, w!, { padding: 1, stride: 2 })
    return [y, ...(await gradients(sum(mul(y, y)), [x!, w!]))]
  })
  const inputs = [
    tensor(randomNumbers(5 * 24 * 13 * 11, 1), shape),
    tensor(randomNumbers(40 * 24 * 9, 2), [40, 24, 3, 3]),
  ]
  const threads = addon.threads()
  t.teardown(() => addon.setThreads(threads))
  const results: unknown[] = []
  for (const count of [1, 3]) {
    addon.setThreads(count)
    results.push(await Promise.all((await step.run(inputs)).map(async (result) => result!.data())))
  }
  t.deepEqual(results[0], results[1])
})

test('a frozen weight gives what a given one does, also after it has been packed', async (t) => {
  const weight = tensor(randomNumbers(20 * 6 * 9, 2), [20, 6, 3, 3])
  const x = tensor(randomNumbers(2 * 6 * 49, 1), [2, 6, 7, 7])
  const given = await program((a, w) => conv2d(a!, w!, { padding: 1 }))(x, weight)
  const frozen = program((a) => conv2d(a!, read(weight), { padding: 1 }))
  for (let run = 0; run < 2; ++run) t.deepEqual(await (await frozen(x)).data(), await given.data())
})

test('channels, bias and windows that do not fit are refused', async (t) => {
  const refused = async (options: Parameters<typeof conv2d>[2], weight = [4, 3, 3, 3]) =>
    t.throwsAsync(
      program((x, w) => conv2d(x!, w!, options))(
        tensor(randomNumbers(3 * 25, 1), [1, 3, 5, 5]),
        tensor(
          randomNumbers(
            weight.reduce((a, b) => a * b),
            2,
          ),
          weight,
        ),
      ),
      { code: 'ERR_HEDDLE_SHAPE', message: /conv2d/ },
    )
  await refused({}, [4, 2, 3, 3])
  await refused({ groups: 2 })
  await refused({}, [4, 3, 6, 6])
  await refused({ stride: 0 })
  await refused({ padding: -1 })
  await refused({ padding: 'same', stride: 2 })
})

test('maxPool2d passes a NaN on and never gives its padding', async (t) => {
  const pool = program((x) => maxPool2d(x!, 2, { padding: 1 }))
  const y = await pool(tensor([-5, -6, NaN, -8], [1, 1, 2, 2]))
  t.deepEqual([...(await y.data())], [-5, -6, NaN, -8])
})

test('pooling and padding refuse what would make no sense', async (t) => {
  const x = tensor(randomNumbers(16, 1), [1, 1, 4, 4])
  for (const fn of [
    (value: Sym) => maxPool2d(value, 2, { padding: 2 }),
    (value: Sym) => avgPool2d(value, 5),
    (value: Sym) => pad(value, [[4, 0]], { mode: 'reflect' }),
    (value: Sym) => pad(value, [[-1, 0]]),
    (value: Sym) => upsample2d(value, 0),
  ])
    await t.throwsAsync(program((value) => fn(value!))(x), { code: 'ERR_HEDDLE_SHAPE' })
})
