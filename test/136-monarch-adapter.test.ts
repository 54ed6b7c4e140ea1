// Monarch adapters: the change of a weight as two block-diagonal factors with a permutation between them.
import test from 'ava'
import { Adapter } from '../lib/adapters/adapter.js'
import { asLora } from '../lib/adapters/as_lora.js'
import { monarchAdapter } from '../lib/adapters/methods/monarch_adapter.js'
import { svd } from '../lib/linalg/factorise.js'
import { tensor } from '../lib/tensor/tensor.js'
import { disturb, gradientsAt, mergedWeight, near, numbers, oneSite, outputOf, setTensors } from './support/one_site.js'

const zeros = (rows: number, columns: number): number[][] =>
  Array.from({ length: rows }, () => new Array<number>(columns).fill(0))

const byHand = { blkdiag1: [1, 2, 3, 4, 5, 6, 7, 8], blkdiag2: [1, 0, 2, 1, 0, 1, 1, 1] }
const dense = [
  [1, 2, 0, 0],
  [0, 0, 7, 8],
  [2, 4, 5, 6],
  [3, 4, 7, 8],
]

test("the layout of the reference code: the sheet's 4 × 4 example", async (t) => {
  const at = oneSite(zeros(4, 4))
  const adapter = await Adapter.attach(at.network, monarchAdapter({ nblocks: 2, blk_r: 2, target_modules: ['proj'] }))
  await setTensors(at, adapter, byHand)
  t.deepEqual(await outputOf(at, [[1, 0, 0, 1]], adapter), [1, 8, 8, 11])
  t.deepEqual(await mergedWeight(at, adapter), dense.flat())
})

test('a weight that is stored [in, out] gets the transposed change', async (t) => {
  const at = oneSite(zeros(4, 4), { transposed: true, bias: tensor([1, 1, 1, 1]) })
  const adapter = await Adapter.attach(at.network, monarchAdapter({ nblocks: 2, blk_r: 2, target_modules: ['proj'] }))
  await setTensors(at, adapter, byHand)
  t.deepEqual(await outputOf(at, [[1, 0, 0, 1]], adapter), [2, 9, 9, 12])
  t.deepEqual(
    await mergedWeight(at, adapter),
    dense[0]!.flatMap((_, i) => dense.map((row) => row[i]!)),
  )
})

test('with the numbers of a LoRA of rank r it has rank N r', async (t) => {
  const at = oneSite(zeros(24, 32))
  const adapter = await Adapter.attach(at.network, monarchAdapter({ nblocks: 4, blk_r: 3, target_modules: ['proj'] }))
  t.is(adapter.parameterCount, 3 * (24 + 32))
  await disturb(adapter)
  const { s } = await svd(tensor(Float32Array.from(await mergedWeight(at, adapter)), [24, 32]))
  const values = await numbers(s)
  t.is(values.filter((value) => value > 1e-5 * values[0]!).length, 12)
})

test('rows o ≡ l (mod N) and the columns of a block have rank r / N', async (t) => {
  const at = oneSite(zeros(12, 12))
  const adapter = await Adapter.attach(at.network, monarchAdapter({ nblocks: 3, blk_r: 3, target_modules: ['proj'] }))
  await disturb(adapter)
  const w = await mergedWeight(at, adapter)
  for (const phase of [0, 1, 2])
    for (const block of [0, 1, 2]) {
      const rows = [0, 1, 2, 3].map((i) =>
        w.slice((3 * i + phase) * 12 + 4 * block, (3 * i + phase) * 12 + 4 * block + 4),
      )
      const { s } = await svd(tensor(Float32Array.from(rows.flat()), [4, 4]))
      const [first, second] = await numbers(s)
      t.true(first! > 1e-3 && second! < 1e-6 * first!)
    }
})

test('sizes that the blocks do not divide: merge, product and plain LoRA are the same', async (t) => {
  const at = oneSite(zeros(7, 10))
  const adapter = await Adapter.attach(at.network, monarchAdapter({ nblocks: 3, blk_r: 2, target_modules: ['proj'] }))
  await disturb(adapter, 1)
  const x = [Array.from({ length: 10 }, (_, i) => Math.sin(i + 1))]
  const w = await mergedWeight(at, adapter)
  const product = Array.from({ length: 7 }, (_, o) =>
    x[0]!.reduce((total, value, i) => total + value * w[10 * o + i]!, 0),
  )
  t.true(near(await outputOf(at, x, adapter), product))
  const plain = await asLora(adapter)
  t.is(plain.parameters().get('model.proj.lora_A.weight')!.shape[0], 6)
  t.true(near(await outputOf(at, x, plain), product))
})

test('at the first step only the second factor has a gradient', async (t) => {
  const at = oneSite(zeros(4, 4))
  const adapter = await Adapter.attach(at.network, monarchAdapter({ nblocks: 2, blk_r: 2, target_modules: ['proj'] }))
  const { blkdiag1, blkdiag2 } = await gradientsAt(at, adapter, [[1, 2, 3, 4]], [[1, 1, 1, 1]])
  t.true(blkdiag1!.every((value) => value === 0))
  t.true(blkdiag2!.every((value) => value !== 0))
})

test('the first factor begins uniform on ±1/√p', async (t) => {
  const at = oneSite(zeros(64, 256))
  const adapter = await Adapter.attach(at.network, monarchAdapter({ target_modules: ['proj'] }))
  const values = await numbers(adapter.parameters().get('model.proj.blkdiag1')!)
  const largest = Math.max(...values.map(Math.abs))
  t.true(largest <= 1 / 8 && largest > 0.12)
})
