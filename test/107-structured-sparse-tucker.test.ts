// Sparse + low-rank and Tucker weights behind the interface of structured matrices: products, gradients, projections
// with their errors, files.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { transpose } from '../lib/graph/ops/index.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { loadStructured, restoreStructured, saveStructured } from '../lib/structured/saved_matrices.js'
import { sparseLowRankMatrix } from '../lib/structured/sparse_low_rank.js'
import { type StructuredMatrix, savedStructure } from '../lib/structured/structured_matrix.js'
import { tuckerMatrix } from '../lib/structured/tucker_matrix.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { randomTensor } from './random_numbers.js'

const values = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number)
async function results(fn: () => readonly Sym[] | Promise<readonly Sym[]>): Promise<number[][]> {
  return Promise.all((await program(fn)()).map(values))
}

const distance = (a: readonly number[], b: readonly number[]): number =>
  Math.max(0, ...a.map((value, i) => Math.abs(value - b[i]!))) / Math.max(1e-30, ...b.map(Math.abs))

const kinds: Readonly<Record<string, () => Promise<StructuredMatrix>>> = {
  'sparse + low-rank': async () => {
    const dense = randomTensor([24, 18], 1)
    return (await sparseLowRankMatrix.fromDense(dense, { rank: 3, density: 0.1, scale: 0.5 })).matrix
  },
  'tucker of two axes': () => tuckerMatrix.random([24, 18], { ranks: [5, 4], seed: 1 }),
  'tucker of five axes': () =>
    tuckerMatrix.random([24, 18], { outShape: [4, 6], inShape: [3, 2, 3], ranks: [2, 3, 2, 2, 3], seed: 2 }),
}

for (const [name, make] of Object.entries(kinds)) {
  test(`${name}: x Wᵀ and x W are those of the dense matrix, with all gradients`, async (t) => {
    const matrix = await make()
    const leaves = [...matrix.parameters().values()]
    for (const each of [matrix, matrix.transpose()]) {
      const [x, g] = [randomTensor([2, 7, each.shape[1]], 3), randomTensor([2, 7, each.shape[0]], 4)]
      const [own, dense] = await Promise.all(
        [(y: Sym) => each.matmul(y), (y: Sym) => matmul(y, each.toDense(), { transposeB: true })].map((apply) =>
          results(async () => {
            const y = apply(read(x))
            return [y, ...(await gradients(sum(mul(y, read(g))), [read(x), ...leaves.map(read)]))]
          }),
        ),
      )
      for (const [i, value] of own!.entries()) t.true(distance(value, dense![i]!) < 1e-5, `${i}`)
    }
  })

  test(`${name}: a file brings back the same matrix and its transpose`, async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'heddle-'))
    t.teardown(() => rm(folder, { recursive: true }))
    const matrix = await make()
    const path = join(folder, 'matrices.safetensors')
    await saveStructured(path, { plain: matrix, turned: matrix.transpose() })
    const { plain, turned } = await loadStructured(path)
    t.deepEqual(await values(await plain!.dense()), await values(await matrix.dense()))
    const [whole] = await results(() => [transpose(matrix.toDense())])
    t.deepEqual(await values(await turned!.dense()), whole)
    t.is(plain!.parameterCount, matrix.parameterCount)
  })
}

test('sparse + low-rank: parameter counts are those of SLTrain, and training starts at the sparse part alone', async (t) => {
  const matrix = await sparseLowRankMatrix.random([1376, 512], { rank: 128, density: 0.03, scale: 0.25, seed: 3 })
  t.is(matrix.parameterCount, 262_799)
  const dense = await values(await matrix.dense())
  t.is(dense.filter((value) => value !== 0).length, 21_135)
  t.true(dense.every((value) => Math.abs(value) <= 1 / Math.sqrt(512)))
})

test('sparse + low-rank of such a matrix is exact when the sparse part does not hide the low rank', async (t) => {
  const [b, a] = [randomTensor([40, 2], 5), randomTensor([2, 30], 6)]
  const [low] = await results(() => [matmul(read(b), read(a))])
  const few = tensor(
    Float32Array.from(low!, (value, i) => value + (i % 401 === 7 ? 1e-3 : 0)),
    [40, 30],
  )
  const found = await sparseLowRankMatrix.fromDense(few, { rank: 2, density: 0.01 })
  t.true(found.relativeError < 5e-5, String(found.relativeError))
  const noise = randomTensor([40, 30], 7)
  const errors: number[] = []
  for (const density of [0.01, 0.1, 0.5])
    errors.push((await sparseLowRankMatrix.fromDense(noise, { rank: 4, density })).relativeError)
  t.true(errors[0]! > errors[1]! && errors[1]! > errors[2]!)
})

test('Tucker of full ranks is exact, and its error is measured', async (t) => {
  const weight = randomTensor([12, 8], 8)
  const full = await tuckerMatrix.fromDense(weight, { outShape: [3, 4], inShape: [4, 2], ranks: 4 })
  t.true(full.relativeError < 1e-5)
  const part = await tuckerMatrix.fromDense(weight, { outShape: [3, 4], inShape: [4, 2], ranks: 2 })
  t.is(part.matrix.parameterCount, 16 + 2 * (3 + 4 + 4 + 2))
  const [dense, whole] = [await values(await part.matrix.dense()), await values(weight)]
  const measured = Math.hypot(...dense.map((value, i) => value - whole[i]!)) / Math.hypot(...whole)
  t.true(Math.abs(measured - part.relativeError) < 1e-5)
})

test('a file whose support is not one is refused', async (t) => {
  const matrix = await sparseLowRankMatrix.random([6, 5], { rank: 2, density: 0.2, seed: 1 })
  const parts = new Map([...matrix.parameters(), ...matrix.buffers()])
  const format = { code: 'ERR_HEDDLE_FORMAT' }
  const restore = (name: string, part: Tensor) =>
    restoreStructured(savedStructure(matrix), new Map(parts).set(name, part))
  await t.throwsAsync(restore('column_indices', tensor(Int32Array.of(0, 1, 2, 3, 4, 9))), format)
  await t.throwsAsync(restore('row_pointers', tensor(Int32Array.of(0, 1, 2, 3, 4, 5, 7))), format)
  await t.throwsAsync(restore('sparse_value', tensor([1, 2])), format)
})

test('options that cannot be are refused', async (t) => {
  const argument = { code: 'ERR_HEDDLE_ARGUMENT' }
  await t.throwsAsync(sparseLowRankMatrix.random([6, 5], { rank: 6, density: 0.1 }), argument)
  await t.throwsAsync(sparseLowRankMatrix.random([6, 5], { rank: 2, density: 1 }), argument)
  await t.throwsAsync(sparseLowRankMatrix.random([6, 5], { rank: 2, density: 0.1, scale: 0 }), argument)
  await t.throwsAsync(tuckerMatrix.random([6, 5], { ranks: [7, 5] }), argument)
  await t.throwsAsync(tuckerMatrix.random([6, 5], { outShape: [4, 2], ranks: 2 }), argument)
})
