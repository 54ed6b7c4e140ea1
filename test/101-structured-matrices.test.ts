// Every kind of structured matrix keeps the same promises: it multiplies as the dense matrix that it says it is, so does
// its transpose, its parameters are counted, trained and saved, and a projection's error is what it says.

import { join } from 'node:path'
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { mul, sub } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { mean, sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read } from '../lib/graph/sym.js'
import { blockDiagonalMatrix } from '../lib/structured/block_diagonal_matrix.js'
import { denseMatrix } from '../lib/structured/dense_matrix.js'
import { kroneckerMatrix } from '../lib/structured/kronecker_matrix.js'
import { lowRankMatrix } from '../lib/structured/low_rank_matrix.js'
import { monarchMatrix } from '../lib/structured/monarch_matrix.js'
import { structures } from '../lib/structured/registry.js'
import { loadStructured, saveStructured } from '../lib/structured/saved_matrices.js'
import type { Projection, StructuredMatrix } from '../lib/structured/structured_matrix.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { randomTensor } from './random_numbers.js'
import { temporaryFolder } from './support/temporary_folder.js'

const [out, inner] = [24, 36]
const numbers = async (value: Tensor): Promise<number[]> => [...(await value.data())].map(Number)
async function distance(a: Tensor, b: Tensor): Promise<number> {
  const [left, right] = [await numbers(a), await numbers(b)]
  return Math.hypot(...left.map((value, i) => value - right[i]!))
}

interface Kind {
  readonly count: number
  readonly random: (seed: number) => Promise<StructuredMatrix>
  readonly fromDense: (weight: Tensor) => Promise<Projection>
}

const shape = [out, inner] as const
const factors = [
  [4, 6],
  [6, 6],
] as const
/** Kinds with the number of parameters of a [24, 36] matrix. */
const kinds: Readonly<Record<string, Kind>> = {
  dense: {
    count: 864,
    random: (seed) => denseMatrix.random(shape, { seed }),
    fromDense: (weight) => denseMatrix.fromDense(weight, {}),
  },
  low_rank: {
    count: 5 * 60,
    random: (seed) => lowRankMatrix.random(shape, { rank: 5, seed }),
    fromDense: (weight) => lowRankMatrix.fromDense(weight, { rank: 5 }),
  },
  kronecker: {
    count: 3 * (24 + 36),
    random: (seed) => kroneckerMatrix.random(shape, { factors, terms: 3, seed }),
    fromDense: (weight) => kroneckerMatrix.fromDense(weight, { factors, terms: 3 }),
  },
  monarch: {
    count: 4 * 6 * 9 + 4 * 6 * 6,
    random: (seed) => monarchMatrix.random(shape, { nblocks: 4, seed }),
    fromDense: (weight) => monarchMatrix.fromDense(weight, { nblocks: 4 }),
  },
  block_diagonal: {
    count: 864 / 4,
    random: (seed) => blockDiagonalMatrix.random(shape, { blocks: 4, seed }),
    fromDense: (weight) => blockDiagonalMatrix.fromDense(weight, { blocks: 4 }),
  },
}

for (const [kind, { random, fromDense, count }] of Object.entries(kinds)) {
  test(`${kind}: it multiplies as its dense matrix, and so does its transpose`, async (t) => {
    const w = await random(1)
    t.deepEqual([w.kind, w.shape, w.parameterCount], [kind, [out, inner], count])
    for (const matrix of [w, w.transpose(), w.transpose().transpose()]) {
      const x = randomTensor([2, 3, matrix.shape[1]], 2)
      const dense = await matrix.dense()
      t.deepEqual(dense.shape, matrix.shape)
      const y = await program((v) => matrix.matmul(v!))(x)
      const expected = await program((v) => matmul(v!, read(dense), { transposeB: true }))(x)
      t.deepEqual(y.shape, [2, 3, matrix.shape[0]])
      t.true((await distance(y, expected)) < 1e-5)
    }
  })

  test(`${kind}: the transpose shares the parameters and is as trainable`, async (t) => {
    const w = await random(3)
    const turned = w.transpose()
    t.deepEqual([...turned.parameters().values()], [...w.parameters().values()])
    const [x, c] = [randomTensor([5, out], 4), randomTensor([5, inner], 5)]
    const own = (matmulOf: (dense: boolean) => Promise<readonly Tensor[]>) =>
      Promise.all([matmulOf(false), matmulOf(true)])
    const [direct, dense] = await own((viaDense) =>
      program(async () => {
        const y = viaDense ? matmul(read(x), w.toDense()) : turned.matmul(read(x))
        return gradients(sum(mul(y, read(c))), [...w.parameters().values()].map(read))
      })(),
    )
    for (const [i, gradient] of direct!.entries()) t.true((await distance(gradient, dense![i]!)) < 1e-4)
  })

  test(`${kind}: a matrix of the structure is its own projection`, async (t) => {
    const w = await (await random(6)).dense()
    const { matrix, error, relativeError } = await fromDense(w)
    t.true(relativeError < 1e-5, `${relativeError}`)
    t.true(error < 1e-4)
    t.true((await distance(await matrix.dense(), w)) < 1e-4)
  })

  test(`${kind}: the error of a projection is its distance, and no change of parameters makes it smaller`, async (t) => {
    const w = randomTensor([out, inner], 7)
    const { matrix, error, relativeError } = await fromDense(w)
    const norm = Math.hypot(...(await numbers(w)))
    t.true(Math.abs(error - (await distance(await matrix.dense(), w))) < 1e-4)
    t.true(Math.abs(relativeError - error / norm) < 1e-6)
    const parameters = [...matrix.parameters().values()]
    const best = await Promise.all(parameters.map((each) => each.data()))
    for (let seed = 0; seed < 20; seed += 1) {
      const step = 10 ** -(seed % 4)
      const moved = parameters.map((each, i) => randomTensor(each.shape, 100 * seed + i))
      const apply = program(async () => {
        for (const [i, each] of parameters.entries()) assign(each, mul(1, sub(read(each), mul(step, read(moved[i]!)))))
        return []
      })
      await apply()
      t.true((await distance(await matrix.dense(), w)) >= error - 1e-5)
      const restore = program(async () => {
        for (const [i, each] of parameters.entries()) assign(each, read(tensor(best[i]!, each.shape)))
        return []
      })
      await restore()
    }
  })

  test(`${kind}: training its parameters reduces a loss`, async (t) => {
    const w = await random(8)
    const [x, goal] = [randomTensor([40, inner], 9), randomTensor([40, out], 10)]
    const parameters = [...w.parameters().values()]
    const step = program(async () => {
      const error = sub(w.matmul(read(x)), read(goal))
      const loss = mean(mul(error, error))
      const found = await gradients(loss, parameters.map(read))
      for (const [i, each] of parameters.entries()) assign(each, sub(read(each), mul(0.2, found[i]!)))
      return loss
    })
    const losses: number[] = []
    for (let i = 0; i < 30; i += 1) losses.push((await step()).item())
    t.true(losses.at(-1)! < losses[0]! * 0.95, `${losses[0]} to ${losses.at(-1)}`)
    const y = await program(() => w.matmul(read(x)))()
    const dense = await w.dense()
    t.true((await distance(y, await program(() => matmul(read(x), read(dense), { transposeB: true }))())) < 1e-4)
  })
}

test('matrices of all kinds come back from one file as they were, transposes too', async (t) => {
  const path = join(temporaryFolder(), 'matrices.safetensors')
  const entries = await Promise.all(
    Object.entries(kinds).map(async ([kind, { random }]) => [`layers.0.${kind}`, await random(11)] as const),
  )
  const turned = entries.map(([name, matrix]) => [`turned.${name}`, matrix.transpose()] as const)
  const matrices = Object.fromEntries([...entries, ...turned])
  await saveStructured(path, matrices)
  const loaded = await loadStructured(path)
  t.deepEqual(Object.keys(loaded).sort(), Object.keys(matrices).sort())
  for (const [name, matrix] of Object.entries(matrices)) {
    t.deepEqual(
      [loaded[name]!.kind, loaded[name]!.shape, loaded[name]!.config],
      [matrix.kind, matrix.shape, matrix.config],
    )
    t.deepEqual(await numbers(await loaded[name]!.dense()), await numbers(await matrix.dense()))
  }
})

test('every registered kind is tested here', (t) => {
  // Tucker and sparse + low-rank have files of their own.
  const elsewhere = ['tucker', 'sparse_low_rank']
  t.deepEqual([...structures.keys()].filter((kind) => !elsewhere.includes(kind)).sort(), Object.keys(kinds).sort())
})

test('x of another width is refused', async (t) => {
  const w = await kinds.monarch!.random(1)
  await t.throwsAsync(() => program((x) => w.matmul(x!))(randomTensor([2, 35], 1)), {
    code: 'ERR_HEDDLE_SHAPE',
    message: 'monarch: expected x [..., 36], got [2, 35]',
  })
})
