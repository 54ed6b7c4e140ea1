// What depends on constants alone is computed while a program is compiled: the instruction goes, the values stay.
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { add, broadcastTo, cast, constant, div, exp, log, mul, sub } from '../lib/graph/ops/elementwise.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { cumsum } from '../lib/graph/ops/scan.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'

const list = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number)

/** A kernel and elementwise operators on constants: log(e^(s/3) of running sums), `f32 [count]`. */
const weights = (count: number, one: (value: number) => Sym = constant): Sym =>
  log(exp(div(cumsum(broadcastTo(one(0.7), [count]), 0), one(3))))

test('instructions on constants alone disappear, and the values are the same bit for bit', async (t) => {
  const x = tensor([1, -2, 3, 0.5, 7, -1])
  const folded = program((value) => mul(value!, weights(6)))
  // The same numbers as inputs cannot be folded.
  const plain = program((value, seven, three) =>
    mul(
      value!,
      weights(6, (number) => (number === 3 ? three! : seven!)),
    ),
  )
  const [seven, three] = [tensor([0.7], []), tensor([3], [])]
  t.is((await folded.plan([x])).instructions, 1)
  t.true((await plain.plan([x, seven, three])).instructions > 2)
  t.deepEqual(await list(await folded(x)), await list(await plain(x, seven, three)))
})

test('a number made of numbers stays inside the instruction that uses it', async (t) => {
  const x = tensor([1, 2, 4])
  const step = program((value) => add(mul(value!, exp(div(constant(1), 3))), sub(constant(1), 0.75)))
  t.is((await step.plan([x])).instructions, 1)
  const factor = Math.fround(Math.exp(Math.fround(1 / 3)))
  for (const [i, found] of (await list(await step(x))).entries())
    t.true(Math.abs(found - ([1, 2, 4][i]! * factor + 0.25)) < 1e-6)
})

test('derivatives pass through what is left', async (t) => {
  const step = program(async (x) => (await gradients(sum(mul(mul(x!, x!), weights(3))), [x!]))[0]!)
  const found = await list(await step(tensor([1, 1, 2])))
  for (const [i, weight] of [0.7, 1.4, 2.1].entries())
    t.true(Math.abs(found[i]! - ((2 * weight) / 3) * [1, 1, 2][i]!) < 1e-6, `${found}`)
})

test('results that are large are computed in every run and take no memory between runs', async (t) => {
  const x = tensor(new Float32Array(5000), [5000])
  const step = program((value) => add(value!, cumsum(broadcastTo(constant(1), [5000]), 0)))
  t.true((await step.plan([x])).instructions > 1)
  t.is((await list(await step(x))).at(-1), 5000)
})

test('a tensor that is read is no constant: what is written to it counts', async (t) => {
  const state = tensor([1, 2])
  const count = program(() => {
    assign(state, mul(read(state), 2))
    return cumsum(read(state), 0)
  })
  t.deepEqual(await list(await count()), [1, 3])
  t.deepEqual(await list(await count()), [2, 6])
})

test('a program of constants only gives tensors of their own, of any dtype', async (t) => {
  const step = program(() => [cast(weights(3), 'i32'), weights(3), exp(constant(0, 'f64'))])
  const first = await step()
  for (const each of first) each.dispose()
  const [whole, fractions, one] = await step()
  t.deepEqual(await list(whole!), [0, 0, 0])
  t.deepEqual((await list(fractions!)).length, 3)
  t.is(one!.dtype, 'f64')
  t.deepEqual(await list(one!), [1])
})
