// Gathers and scatters along any axis, order, recurrences and rearrangements, as torch has them.
import test from 'ava'
import * as gather from '../lib/graph/ops/gather.js'
import { argmax, argmin, min, std, variance } from '../lib/graph/ops/reduce.js'
import { cumprod, cumsum, linearScan, logCumSumExp, prod } from '../lib/graph/ops/scan.js'
import { argsort, sort, topk } from '../lib/graph/ops/sort.js'
import { program } from '../lib/graph/program.js'
import { read } from '../lib/graph/sym.js'
import { tensor } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { testAgainstTorch } from './support/golden_operators.js'

testAgainstTorch('indexing', {
  gather: ([x, index], { axis }) => gather.gather(x!, axis, index!),
  takeAlongAxis: ([x, index], { axis }) => gather.takeAlongAxis(x!, index!, axis),
  scatterAdd: ([source, index], { size, axis }) => gather.scatterAdd(index!, source!, size, axis),
  indexSelect: ([x, index], { axis }) => gather.indexSelect(x!, axis, index!),
  sort: ([x], options) => sort(x!, options).values,
  topk: ([x], { k, ...options }) => topk(x!, k, options).values,
  flip: ([x], { axis }) => gather.flip(x!, axis),
  cumsum: ([x], { axis }) => cumsum(x!, axis),
  cumprod: ([x], { axis }) => cumprod(x!, axis),
  prod: ([x], { axis }) => prod(x!, axis),
  linearScan: ([a, b, initial], options) => linearScan(a!, b!, { ...options, initial }),
  variance: ([x], options) => variance(x!, options),
  std: ([x], options) => std(x!, options),
  min: ([x], options) => min(x!, options),
  tril: ([x], { diagonal }) => gather.tril(x!, diagonal),
  triu: ([x], { diagonal }) => gather.triu(x!, diagonal),
  repeat: ([x], { counts }) => gather.repeat(x!, counts),
  repeatInterleave: ([x], { count, axis }) => gather.repeatInterleave(x!, count, axis),
  stack: ([a, b], { axis }) => gather.stack([a!, b!], axis),
  split: ([x], { size, axis, part }) => gather.split(x!, size, axis)[part]!,
  logCumSumExp: ([x], { axis }) => logCumSumExp(x!, axis),
})

const list = async (result: { data(): Promise<ArrayLike<unknown>> }) => Array.from(await result.data(), Number)

test('logCumSumExp neither overflows nor forgets: numbers far apart, infinities, NaN, from either end', async (t) => {
  const step = program((x) => [logCumSumExp(x!, 0), logCumSumExp(x!, 0, { reverse: true })])
  const [up, down] = await step(tensor([-Infinity, -2000, -2000, 3000, 0, 3000]))
  const near = (found: readonly number[], should: readonly number[]) =>
    t.true(
      found.every((x, i) => x === should[i] || Math.abs(x - should[i]!) < 1e-3),
      `${found}`,
    )
  near(await list(up!), [-Infinity, -2000, -2000 + Math.LN2, 3000, 3000, 3000 + Math.LN2])
  near(await list(down!), [...new Array(4).fill(3000 + Math.LN2), 3000, 3000])
  const [odd] = await step(tensor([1, Infinity, 2, NaN, 0]))
  t.deepEqual((await list(odd!)).slice(1), [Infinity, Infinity, NaN, NaN])
})

test('sorting is stable, takes -0 for 0, and puts NaN behind everything', async (t) => {
  const step = program((x) => ({ up: argsort(x!), down: argsort(x!, { descending: true }) }))
  const { up, down } = await step(tensor([0, NaN, -0, Infinity, -1, 0]))
  t.deepEqual(await list(up), [4, 0, 2, 5, 3, 1])
  t.deepEqual(await list(down), [1, 3, 0, 2, 5, 4])
})

test('topk gives the values at the positions that it names', async (t) => {
  const x = randomNumbers(300, 9)
  const { values, indices } = await program((value) => topk(value!, 5))(tensor(x))
  const expected = [...x].sort((a, b) => b - a).slice(0, 5)
  t.deepEqual(await list(values), expected)
  t.deepEqual(
    await list(indices),
    expected.map((value) => x.indexOf(value)),
  )
})

test('argmax and argmin name the first of equals along any axis', async (t) => {
  const step = program((x) => [argmax(x!, 0), argmin(x!, 1)])
  const [high, low] = await step(tensor([1, 5, 3, 5, 1, 1], [2, 3]))
  t.deepEqual(await list(high!), [1, 0, 0])
  t.deepEqual(await list(low!), [0, 1])
})

test('oneHot, arange, squeeze and expandDims', async (t) => {
  const step = program(() => ({
    hot: gather.oneHot(read(tensor(Int32Array.of(2, 0))), 3),
    range: gather.arange(4, { start: 1, step: 0.5, dtype: 'f32' }),
    thin: gather.squeeze(gather.expandDims(gather.arange(2), 1)),
  }))
  const { hot, range, thin } = await step()
  t.deepEqual(await list(hot), [0, 0, 1, 1, 0, 0])
  t.deepEqual(await list(range), [1, 1.5, 2, 2.5])
  t.deepEqual(thin.shape, [2])
})

test('a linear scan with a = 1 is a running sum; its state leaves the last one', async (t) => {
  const x = tensor(randomNumbers(12, 3), [4, 3])
  const step = program((value) => {
    const one = gather.repeat(gather.arange(1, { start: 1, dtype: 'f32' }), [4, 3])
    return [linearScan(one, value!, { axis: 0 }), cumsum(value!, 0)]
  })
  const [scan, sum] = await Promise.all((await step(x)).map(list))
  t.true(scan!.every((value, i) => Math.abs(value - sum![i]!) < 1e-6))
})

test('an index outside of the axis fails the run', async (t) => {
  const step = program((x, index) => gather.gather(x!, 0, index!))
  await t.throwsAsync(step(tensor([1, 2]), tensor(Int32Array.of(2))), {
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /gather/,
  })
})

test('an index of another rank, a k beyond the axis and parts that do not add up are refused', async (t) => {
  const x = tensor(randomNumbers(6, 1), [2, 3])
  const index = () => read(tensor(Int32Array.of(0)))
  for (const fn of [
    (value: Parameters<typeof sort>[0]) => gather.gather(value, 0, index()),
    (value: Parameters<typeof sort>[0]) => topk(value, 4).values,
    (value: Parameters<typeof sort>[0]) => gather.split(value, [1, 1], 1)[0]!,
    (value: Parameters<typeof sort>[0]) => cumsum(value, 2),
    (value: Parameters<typeof sort>[0]) => gather.squeeze(value, [0]),
  ])
    await t.throwsAsync(program((value) => fn(value!))(x), { code: 'ERR_HEDDLE_SHAPE' })
})
