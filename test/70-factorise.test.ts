// Factorisations: what defines them, checked by multiplying the factors back.
import test from 'ava'
import { mul } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { qr, svd } from '../lib/linalg/factorise.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'

const shapes = [
  [5, 5],
  [12, 5],
  [5, 12],
  [1, 4],
  [130, 70],
] as const

const random = (rows: number, columns: number): Tensor => tensor(randomNumbers(rows * columns, rows), [rows, columns])
const run = async (fn: () => Sym): Promise<Tensor> => {
  const compute = program(fn)
  const result = await compute()
  compute.dispose()
  return result
}
const identity = (size: number): Tensor =>
  tensor(
    Float32Array.from({ length: size * size }, (_, i) => (i % (size + 1) === 0 ? 1 : 0)),
    [size, size],
  )
const product = (a: Tensor, b: Tensor): Promise<Tensor> => run(() => matmul(read(a), read(b)))
const gram = (a: Tensor, side: 'rows' | 'columns'): Promise<Tensor> =>
  run(() => matmul(read(a), read(a), side === 'rows' ? { transposeB: true } : { transposeA: true }))

for (const [m, n] of shapes) {
  const k = Math.min(m, n)

  test(`svd of [${m}, ${n}]: u diag(s) vh is the matrix, u and vh are orthonormal, s falls`, async (t) => {
    const a = random(m, n)
    const { u, s, vh } = await svd(a)
    t.deepEqual([u.shape, s.shape, vh.shape], [[m, k], [k], [k, n]])
    t.true((await relativeError(await run(() => matmul(mul(read(u), read(s)), read(vh))), a)) < 1e-5)
    t.true((await relativeError(await gram(u, 'columns'), identity(k))) < 1e-5)
    t.true((await relativeError(await gram(vh, 'rows'), identity(k))) < 1e-5)
    const values = [...((await s.data()) as Float32Array)]
    t.deepEqual(
      values,
      values.toSorted((x, y) => y - x),
    )
  })

  test(`full svd of [${m}, ${n}]: all left and right vectors`, async (t) => {
    const { u, vh } = await svd(random(m, n), { full: true })
    t.deepEqual(
      [u.shape, vh.shape],
      [
        [m, m],
        [n, n],
      ],
    )
    t.true((await relativeError(await gram(u, 'columns'), identity(m))) < 1e-5)
    t.true((await relativeError(await gram(vh, 'rows'), identity(n))) < 1e-5)
  })

  test(`qr of [${m}, ${n}]: q r is the matrix, q is orthonormal, r is upper triangular`, async (t) => {
    const a = random(m, n)
    const { q, r } = await qr(a)
    t.deepEqual(
      [q.shape, r.shape],
      [
        [m, k],
        [k, n],
      ],
    )
    t.true((await relativeError(await product(q, r), a)) < 1e-5)
    t.true((await relativeError(await gram(q, 'columns'), identity(k))) < 1e-5)
    const values = (await r.data()) as Float32Array
    t.true(values.every((value, i) => Math.floor(i / n) <= i % n || value === 0))
  })
}

test('singular values of a diagonal matrix are its elements, sorted', async (t) => {
  const { s } = await svd(tensor([0, 3, 0, 0, 0, 5, 2, 0, 0], [3, 3]))
  t.deepEqual(
    [...((await s.data()) as Float32Array)].map((value) => Math.round(value * 1e5) / 1e5),
    [5, 3, 2],
  )
})

test('a matrix that is not finite is refused', async (t) => {
  const broken = tensor([1, Number.NaN, 3, 4], [2, 2])
  await t.throwsAsync(svd(broken), { code: 'ERR_HEDDLE_ARGUMENT' })
  await t.throwsAsync(qr(broken), { code: 'ERR_HEDDLE_ARGUMENT' })
})

test('what is no matrix is refused by its shape', async (t) => {
  await t.throwsAsync(svd(tensor([1, 2, 3])), { code: 'ERR_HEDDLE_SHAPE', message: /\[3\]/ })
  await t.throwsAsync(qr(tensor([1, 2, 3])), { code: 'ERR_HEDDLE_SHAPE', message: /\[3\]/ })
})
