// Convolutions and pooling: values and gradients as torch has them, on any number of threads.
import test from 'ava'
import fc from 'fast-check'
import { gradients } from '../lib/graph/grad.js'
import { conv1d, conv2d } from '../lib/graph/ops/conv.js'
import { cast, mul } from '../lib/graph/ops/elementwise.js'
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

test('windows that move by one pixel, of any size, padding and dilation, give what f64 gives, and so do gradients', async (t) => {
  const along = fc.record({
    size: fc.integer({ min: 1, max: 4 }),
    dilation: fc.integer({ min: 1, max: 2 }),
    padding: fc.integer({ min: 0, max: 4 }),
    extra: fc.integer({ min: 0, max: 40 }),
  })
  const channels = fc.constantFrom(1, 3, 20, 45, 67)
  const cases = fc.record({ y: along, x: along, c: channels, o: channels, n: fc.constantFrom(1, 3), seed: fc.nat(99) })
  await fc.assert(
    fc.asyncProperty(cases, async ({ y, x, c, o, n, seed }) => {
      const reach = ({ size, dilation }: typeof y): number => (size - 1) * dilation + 1
      const image = [n, c, reach(y) + y.extra, reach(x) + x.extra]
      const kernel = [o, c, y.size, x.size]
      const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b)
      const [input, weight] = [randomNumbers(count(image), seed), randomNumbers(count(kernel), seed + 1)]
      const found = await Promise.all(
        (['f32', 'f64'] as const).map(async (dtype) => {
          const run = program(async (...given) => {
            const [a, w, bias] = given.map((each) => cast(each, dtype))
            const padding = [y.padding, x.padding] as const
            const z = conv2d(a!, w!, { padding, dilation: [y.dilation, x.dilation], bias })
            return [z, ...(await gradients(sum(mul(z, z)), [a!, w!]))]
          })
          const results = await run(tensor(input, image), tensor(weight, kernel), tensor(randomNumbers(o, 7)))
          return Promise.all(results.map(async (each) => Array.from(await each.data(), Number)))
        }),
      )
      for (const [i, exact] of found[1]!.entries()) {
        const largest = (of: (value: number, at: number) => number): number =>
          exact.reduce((most, value, at) => Math.max(most, Math.abs(of(value, at))), 0)
        const error = largest((value, at) => value - found[0]![i]![at]!) / largest((value) => value)
        t.true(error < 1e-5, `result ${i}: ${error}`)
      }
    }),
    { numRuns: 30, seed: 4 },
  )
})

for (const stride of [1, 2])
  test.serial(
    `a convolution and its gradients are the same on one thread and on three, stride ${stride}`,
    async (t) => {
      const shape = [5, 24, 13, 11]
      const step = program(async (x, w) => {
        const y = conv2d(x!, w!, { padding: 1, stride })
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
    },
  )

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
