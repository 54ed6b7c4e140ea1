// Sparse matrices of a fixed support: products against dense ones, in both orders and transposed, in f32 and f64; the
// support from entries, rows, masks and draws; and what is refused.
import test from 'ava'
import fc from 'fast-check'
import { gradients } from '../lib/graph/grad.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { transpose } from '../lib/graph/ops/index.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { sum } from '../lib/graph/ops/reduce.js'
import {
  type SparseSupport,
  sddmm,
  sparseGather,
  sparseLowRankLinear,
  sparseLowRankPath,
  sparseToDense,
  spmm,
} from '../lib/graph/ops/sparse.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { addon } from '../lib/native.js'
import {
  nmMask,
  randomSupport,
  supportFromEntries,
  supportFromMask,
  supportFromRows,
} from '../lib/structured/sparse.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { goldenJson } from './golden.js'
import { randomNumbers } from './random_numbers.js'

const values = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number)

/** Tensors of one seed after the other, f32 or f64. */
const drawn = (shape: readonly number[], seed: number, dtype: 'f32' | 'f64' = 'f32'): Tensor => {
  const numbers = randomNumbers(
    shape.reduce((a, b) => a * b, 1),
    seed,
  )
  return tensor(dtype === 'f64' ? Float64Array.from(numbers) : numbers, shape)
}

async function results(fn: () => readonly Sym[] | Promise<readonly Sym[]>): Promise<number[][]> {
  const step = program(fn)
  const tensors = await step()
  return Promise.all(tensors.map(values))
}

function distance(a: readonly number[], b: readonly number[]): number {
  const largest = Math.max(1e-30, ...b.map(Math.abs))
  return Math.max(0, ...a.map((value, i) => Math.abs(value - b[i]!))) / largest
}

test('spmm equals the dense product in both orders, transposed or not, for any shape', async (t) => {
  const shapes = fc.record({
    rows: fc.integer({ min: 1, max: 70 }),
    columns: fc.integer({ min: 1, max: 70 }),
    n: fc.integer({ min: 1, max: 150 }),
    density: fc.double({ min: 0.01, max: 1, noNaN: true }),
    seed: fc.integer({ min: 0, max: 1000 }),
    dtype: fc.constantFrom('f32' as const, 'f64' as const),
  })
  await fc.assert(
    fc.asyncProperty(shapes, async ({ rows, columns, n, density, seed, dtype }) => {
      const support = await randomSupport([rows, columns], { density, seed })
      const v = drawn([support.count], seed, dtype)
      const x = drawn([columns, n], seed + 1, dtype)
      const g = drawn([rows, n], seed + 2, dtype)
      const found = await results(() => {
        const [s, right, left] = [read(v), read(x), read(g)]
        const dense = sparseToDense(support, s)
        return [
          spmm(support, s, right),
          matmul(dense, right),
          spmm(support, s, transpose(right), { side: 'right' }),
          matmul(transpose(right), dense, { transposeB: true }),
          spmm(support, s, left, { transpose: true }),
          matmul(dense, left, { transposeA: true }),
          spmm(support, s, transpose(left), { transpose: true, side: 'right' }),
          matmul(transpose(left), dense),
          sddmm(support, left, right),
          sparseGather(support, matmul(left, right, { transposeB: true })),
          sddmm(support, transpose(left), transpose(right), { side: 'right' }),
          sparseGather(support, matmul(left, right, { transposeB: true })),
        ]
      })
      const limit = dtype === 'f64' ? 1e-13 : 1e-5
      for (let i = 0; i < found.length; i += 2) t.true(distance(found[i]!, found[i + 1]!) < limit, `product ${i / 2}`)
    }),
    { numRuns: 25, seed: 1 },
  )
})

test('CSR and CSC products and sampled products are those of numpy, walked through entry by entry', async (t) => {
  const { sparse: golden } = goldenJson<{ readonly sparse: Readonly<Record<string, number[]>> }>('structured.json')
  const pointers = tensor(Int32Array.from(golden.rowPointers!))
  const support = await supportFromRows(pointers, tensor(Int32Array.from(golden.columnIndices!)), [7, 9])
  t.deepEqual(await values(support.columnPointers), golden.columnPointers!)
  t.deepEqual(await values(support.rowIndices), golden.rowIndices!)
  for (const dtype of ['f32', 'f64'] as const) {
    const given = (name: string, shape: readonly number[]): Sym =>
      read(tensor(dtype === 'f64' ? Float64Array.from(golden[name]!) : Float32Array.from(golden[name]!), shape))
    const found = await results(() => {
      const [v, x, g] = [given('values', [support.count]), given('x', [9, 5]), given('g', [7, 5])]
      return [
        spmm(support, v, x),
        spmm(support, v, g, { transpose: true }),
        spmm(support, v, given('rows', [4, 9]), { side: 'right' }),
        sddmm(support, g, x),
      ]
    })
    for (const [i, name] of ['spmm', 'spmmTransposed', 'spmmRight', 'sddmm'].entries())
      t.true(distance(found[i]!, golden[name]!) < (dtype === 'f64' ? 1e-14 : 1e-6), `${name} in ${dtype}`)
  }
})

test('the gradients of a product are those of the dense product on the support', async (t) => {
  const support = await randomSupport([33, 20], { density: 0.2, seed: 3 })
  const [v, x, g] = [drawn([support.count], 1), drawn([130, 20], 2), drawn([130, 33], 3)]
  const both = await results(async () => {
    const sparse = spmm(support, read(v), read(x), { side: 'right' })
    const dense = matmul(read(x), sparseToDense(support, read(v)), { transposeB: true })
    const found: Sym[] = []
    for (const y of [sparse, dense]) found.push(...(await gradients(sum(mul(y, read(g))), [read(v), read(x)])))
    return found
  })
  t.true(distance(both[0]!, both[2]!) < 1e-5)
  t.true(distance(both[1]!, both[3]!) < 1e-5)
})

test('results do not depend on the number of threads', async (t) => {
  const support = await randomSupport([300, 200], { density: 0.1, seed: 1 })
  const [v, x, g] = [drawn([support.count], 1), drawn([700, 200], 2), drawn([700, 300], 3)]
  const run = (): Promise<number[][]> =>
    results(() => [
      spmm(support, read(v), read(x), { side: 'right' }),
      sddmm(support, read(g), read(x), { side: 'right' }),
    ])
  try {
    addon.setThreads(1)
    const one = await run()
    addon.setThreads(3)
    t.deepEqual(await run(), one)
  } finally {
    addon.setThreads(2)
  }
})

test('x Wᵀ with W = s B A + S by hand (SLTrain), forward and all gradients, split and materialised', async (t) => {
  const { support } = await supportFromEntries(
    { rows: Int32Array.of(0, 1, 2), columns: Int32Array.of(1, 2, 3) },
    [3, 4],
  )
  const leaves = [tensor([1, 0, 0, 1, 1, 1], [3, 2]), tensor([1, 2, 3, 4, 0, 1, 0, -1], [2, 4]), tensor([0.5, -1, 2])]
  const x = tensor([1, 2, 3, 4], [1, 4])
  const g = tensor([1, -1, 2], [1, 3])
  for (const path of ['split', 'materialised'] as const) {
    const [y, ...found] = await results(async () => {
      const [b, a, v] = leaves.map(read)
      const out = sparseLowRankLinear(read(x), { b: b!, a: a!, support, values: v!, scale: 0.25 }, { path })
      return [out, ...(await gradients(sum(mul(out, read(g))), [b!, a!, v!, read(x)]))]
    })
    t.deepEqual(y, [8.5, -3.5, 15], path)
    t.deepEqual(found, [
      [7.5, -0.5, -7.5, 0.5, 15, -1],
      [0.75, 1.5, 2.25, 3, 0.25, 0.5, 0.75, 1],
      [2, -3, 8],
      [0.75, 2.25, 3.25, 6.75],
    ])
  }
})

test('both paths of a sparse + low-rank layer agree on a real size', async (t) => {
  const support = await randomSupport([96, 64], { density: 0.05, seed: 7 })
  const [a, b, v] = [drawn([8, 64], 1), drawn([96, 8], 2), drawn([support.count], 3)]
  const [x, g] = [drawn([2, 40, 64], 4), drawn([2, 40, 96], 5)]
  const [split, whole] = await Promise.all(
    (['split', 'materialised'] as const).map((path) =>
      results(async () => {
        const parts = { b: read(b), a: read(a), support, values: read(v), scale: 0.5 }
        const y = sparseLowRankLinear(read(x), parts, { path })
        return [y, ...(await gradients(sum(mul(y, read(g))), [parts.b, parts.a, parts.values, read(x)]))]
      }),
    ),
  )
  for (const [i, each] of split!.entries()) t.true(distance(each, whole![i]!) < 1e-5)
})

test('the cost model splits for thin layers and materialises where rank and density are high', (t) => {
  const sizes = { n: 1024, in: 2048, out: 2048, rank: 128, count: 125_829 }
  t.is(sparseLowRankPath(sizes), 'split')
  t.is(sparseLowRankPath({ ...sizes, n: 1 }), 'split')
  t.is(sparseLowRankPath({ ...sizes, n: 8192, rank: 1024, count: 419_430 }), 'materialised')
})

test('entries come in any order and are sorted by rows and by columns', async (t) => {
  const { support, source } = await supportFromEntries(
    { rows: Int32Array.of(2, 0, 2, 1, 0), columns: Int32Array.of(1, 3, 0, 3, 0) },
    [4, 4],
  )
  t.deepEqual(await values(support.rowPointers), [0, 2, 3, 5, 5])
  t.deepEqual(await values(support.columnIndices), [0, 3, 3, 0, 1])
  t.deepEqual(await values(source), [4, 1, 3, 2, 0])
  t.deepEqual(await values(support.columnPointers), [0, 2, 3, 3, 5])
  t.deepEqual(await values(support.rowIndices), [0, 2, 2, 0, 1])
  t.deepEqual(await values(support.columnOrder), [0, 3, 4, 1, 2])
})

test('an entry outside of the matrix, or given twice, is refused', async (t) => {
  const from = (rows: number[], columns: number[]) =>
    supportFromEntries({ rows: Int32Array.from(rows), columns: Int32Array.from(columns) }, [2, 3])
  await t.throwsAsync(from([2], [0]), { code: 'ERR_HEDDLE_ARGUMENT', message: /a row in \[0, 2\), got 2/ })
  await t.throwsAsync(from([0], [-1]), { code: 'ERR_HEDDLE_ARGUMENT', message: /a column in \[0, 3\), got -1/ })
  await t.throwsAsync(from([1, 0, 1], [2, 0, 2]), { code: 'ERR_HEDDLE_ARGUMENT', message: /\[1, 2\] twice/ })
  await t.throwsAsync(from([1, 0], [2]), { code: 'ERR_HEDDLE_SHAPE' })
})

test('rows from a file are checked in every respect', async (t) => {
  const from = (pointers: number[], indices: number[]) =>
    supportFromRows(tensor(Int32Array.from(pointers)), tensor(Int32Array.from(indices)), [2, 3])
  t.is((await from([0, 2, 3], [0, 2, 1])).count, 3)
  const format = { code: 'ERR_HEDDLE_FORMAT' }
  await t.throwsAsync(from([0, 3], [0, 2, 1]), format)
  await t.throwsAsync(from([1, 2, 3], [0, 2, 1]), format)
  await t.throwsAsync(from([0, 4, 3], [0, 2, 1]), format)
  await t.throwsAsync(from([0, 2, 4], [0, 2, 1]), format)
  await t.throwsAsync(from([0, 2, 3], [2, 0, 1]), format)
  await t.throwsAsync(from([0, 2, 3], [1, 1, 1]), format)
  await t.throwsAsync(from([0, 2, 3], [0, 3, 1]), format)
})

test('a product over indices that a stranger made is refused at the run', async (t) => {
  const good = await randomSupport([4, 4], { density: 0.5 })
  const bad: SparseSupport = { ...good, columnIndices: tensor(new Int32Array(good.count).fill(9)) }
  const step = program(() => spmm(bad, read(tensor(new Float32Array(good.count))), read(drawn([4, 2], 1))))
  await t.throwsAsync(step(), { code: 'ERR_HEDDLE_ARGUMENT', message: /indices within the matrix/ })
})

test('a random support has ⌊density · size⌋ distinct entries, sorted, the same for the same seed', async (t) => {
  const support = await randomSupport([512, 512], { density: 0.03, seed: 5 })
  t.is(support.count, 7864)
  const [pointers, columns] = [await values(support.rowPointers), await values(support.columnIndices)]
  for (let row = 0; row < 512; row += 1)
    for (let i = pointers[row]! + 1; i < pointers[row + 1]!; i += 1) t.true(columns[i - 1]! < columns[i]!)
  t.deepEqual(await values((await randomSupport([512, 512], { density: 0.03, seed: 5 })).columnIndices), columns)
  t.notDeepEqual(await values((await randomSupport([512, 512], { density: 0.03, seed: 6 })).columnIndices), columns)
})

test('every entry is as likely as any other in a random support', async (t) => {
  const hits = new Array<number>(12).fill(0)
  for (let seed = 0; seed < 600; seed += 1) {
    const support = await randomSupport([3, 4], { density: seed % 2 ? 0.25 : 0.75, seed })
    const pointers = await values(support.rowPointers)
    for (const [i, column] of (await values(support.columnIndices)).entries()) {
      const row = pointers.findIndex((_, at) => pointers[at]! <= i && i < pointers[at + 1]!)
      hits[row * 4 + column]! += 1
    }
  }
  // 300 expected, standard deviation 10.6.
  for (const each of hits) t.true(Math.abs(each - 300) < 50, String(hits))
})

test('the rank of a random sparse matrix plus one of rank 8 is full (SLTrain, proposition 1)', async (t) => {
  const support = await randomSupport([256, 256], { density: 0.03, seed: 0 })
  const [a, b, v] = [drawn([8, 256], 1), drawn([256, 8], 2), drawn([support.count], 3)]
  const step = program(() => sparseToDense(support, read(v), matmul(read(b), read(a))))
  const { svd } = await import('../lib/linalg/factorise.js')
  const { s } = await svd(await step())
  const singular = await values(s)
  // Rounding leaves about 1e-5 of a matrix of rank 255 whose largest singular value is 100.
  t.true(singular.at(-1)! > 2e-4)
})

test('2:4 keeps the two largest magnitudes of every four, the first among equals', async (t) => {
  const weight = tensor([1, -3, 2, 0.5, 1, 1, 1, 1], [2, 4])
  const step = program(() => nmMask(read(weight), 2, 4))
  const mask = await step()
  t.deepEqual(await values(mask), [0, 1, 1, 0, 1, 1, 0, 0])
  const support = await supportFromMask(mask)
  t.deepEqual(await values(support.columnIndices), [1, 2, 0, 1])
})

test('an n:m mask keeps n of every m and never a smaller magnitude than it drops', async (t) => {
  const cases = fc.record({
    m: fc.integer({ min: 1, max: 9 }),
    groups: fc.integer({ min: 1, max: 20 }),
    seed: fc.nat(99),
  })
  await fc.assert(
    fc.asyncProperty(cases, fc.nat(9), async ({ m, groups, seed }, draw) => {
      const n = draw % (m + 1)
      const weight = drawn([2, groups * m], seed)
      const [mask] = await results(() => [nmMask(read(weight), n, m)])
      const magnitudes = (await values(weight)).map(Math.abs)
      for (let at = 0; at < magnitudes.length; at += m) {
        const kept = magnitudes.slice(at, at + m).filter((_, i) => mask![at + i] === 1)
        const dropped = magnitudes.slice(at, at + m).filter((_, i) => mask![at + i] === 0)
        t.is(kept.length, n)
        t.true(Math.min(...kept, 2) >= Math.max(...dropped, -1))
      }
    }),
    { numRuns: 30, seed: 2 },
  )
})

test('a mask whose groups do not divide the axis is refused', async (t) => {
  const step = program((x) => nmMask(x!, 2, 4))
  await t.throwsAsync(step(tensor([1, 2, 3], [1, 3])), { code: 'ERR_HEDDLE_SHAPE', message: /2:4/ })
})
