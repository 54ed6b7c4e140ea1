// Matrices that a GPU factorises by cuSOLVER, in place of a block of threads for each: what it gives is held against the
// CPU, or, where factors are not unique, multiplied back.

import test from 'ava'
import { onDevice } from '../lib/graph/device.js'
import { cholesky, eigh, lu, qr, qrPivoted, svd, svdvals } from '../lib/linalg/factorise.js'
import { solve } from '../lib/linalg/solve.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'
import { emulated, inject } from './support/cuda_host.js'
import {
  distance,
  epsilonOf,
  matrixOf,
  notOrthonormal,
  numbersOf,
  product,
  scaled,
  transposed,
} from './support/matrices.js'

type Float = 'f32' | 'f64'

const onGpu = <T>(fn: () => T): T => onDevice('cuda', fn)
const onCpu = <T>(fn: () => T): T => onDevice('cpu', fn)

/** Numbers whose squares overflow in f32. */
const random = (count: number, m: number, n: number, dtype: Float, seed = 1): Tensor =>
  matrixOf(
    randomNumbers(count * m * n, seed).map((value) => value * 1e25),
    [count, m, n],
    dtype,
  )

/** Symmetric and positive definite. */
const definite = (count: number, n: number, dtype: Float): Tensor =>
  matrixOf(
    randomNumbers(count * n * n, 7).map((value, at) => value / n + (Math.floor(at / n) % n === at % n ? 2 : 0)),
    [count, n, n],
    dtype,
  )

const bound = (dtype: Float, size: number): number => 8 * size * epsilonOf[dtype]

/** Each tensor of a result against the CPU's, relative to its largest number. */
async function same(
  found: Readonly<Record<string, Tensor>>,
  expected: Readonly<Record<string, Tensor>>,
  limit: number,
) {
  for (const [name, tensor] of Object.entries(expected)) {
    const [a, b] = [
      Float64Array.from((await found[name]!.data()) as Float32Array),
      (await tensor.data()) as Float32Array,
    ]
    const scale = b.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-300)
    const wrong = a.findIndex((value, i) => !(Math.abs(value - b[i]!) <= limit * scale))
    if (wrong >= 0) return `${name}[${wrong}] is ${a[wrong]} instead of ${b[wrong]}`
  }
  return undefined
}

for (const [dtype, count, m, n, full] of [
  ['f32', 2, 256, 270, false],
  ['f64', 1, 280, 256, false],
  ['f64', 1, 20, 260, true],
] as const)
  test.serial(`svd of ${dtype} [${count}, ${m}, ${n}]${full ? ', full' : ''}`, async (t) => {
    const a = random(count, m, n, dtype)
    const { u, s, vh } = await onGpu(() => svd(a, { full }))
    const k = Math.min(m, n)
    const values = ((await s.data()) as Float64Array).slice((count - 1) * k)
    const [left, right] = [await numbersOf(u, count - 1), await numbersOf(vh, count - 1)]
    t.deepEqual([left.columns, right.rows], full ? [m, n] : [k, k])
    const first = { ...right, rows: k, values: right.values.slice(0, k * n) }
    t.true(
      distance(product(scaled({ ...left }, values), m < n || !full ? first : right), await numbersOf(a, count - 1)) <
        bound(dtype, n),
    )
    t.true(notOrthonormal(left) < bound(dtype, n) && notOrthonormal(transposed(right)) < bound(dtype, n))
    t.true(values.every((value, i) => value >= 0 && (i === 0 || value <= values[i - 1]!)))
    t.is(await same({ s: await onGpu(() => svdvals(a)) }, { s }, bound(dtype, n)), undefined)
  })

for (const [dtype, m, n, full] of [
  ['f32', 280, 256, false],
  ['f64', 256, 300, false],
  ['f64', 270, 4, true],
] as const)
  test.serial(`qr of ${dtype} [2, ${m}, ${n}]${full ? ', full' : ''} has the CPU's signs`, async (t) => {
    const a = random(2, m, n, dtype)
    const [found, expected] = [await onGpu(() => qr(a, { full })), await onCpu(() => qr(a, { full }))]
    t.is(await same(found as never, expected as never, 4 * bound(dtype, m)), undefined)
  })

test.serial("qr with pivots has the CPU's pivots", async (t) => {
  const a = random(1, 256, 257, 'f64')
  const [found, expected] = [await onGpu(() => qrPivoted(a)), await onCpu(() => qrPivoted(a))]
  t.deepEqual([...(await found.pivots.data())], [...(await expected.pivots.data())])
  t.is(await same(found as never, expected as never, bound('f64', 256)), undefined)
})

test.serial('eigh reads the lower triangle, and its vectors multiply back', async (t) => {
  const n = 260
  const a = random(2, n, n, 'f32')
  const { w, v } = await onGpu(() => eigh(a))
  const [vectors, values] = [await numbersOf(v, 1), ((await w.data()) as Float32Array).slice(n)]
  const given = await numbersOf(a, 1)
  const symmetric = given.values.map((value, at) =>
    at % n > Math.floor(at / n) ? given.values[(at % n) * n + Math.floor(at / n)]! : value,
  )
  t.true(
    distance(product(scaled(vectors, values), transposed(vectors)), { ...given, values: symmetric }) < bound('f32', n),
  )
  t.true(notOrthonormal(vectors) < bound('f32', n))
  t.is(await same({ w }, { w: (await onCpu(() => eigh(a))).w }, bound('f32', n)), undefined)
})

test.serial('cholesky, lu and solve agree with the CPU', async (t) => {
  const a = definite(2, 260, 'f64')
  const general = random(1, 256, 300, 'f32')
  const b = matrixOf(randomNumbers(2 * 260 * 3, 3), [2, 260, 3], 'f64')
  const limit = bound('f64', 260)
  t.is(await same({ l: await onGpu(() => cholesky(a)) }, { l: await onCpu(() => cholesky(a)) }, limit), undefined)
  t.is(await same({ x: await onGpu(() => solve(a, b)) }, { x: await onCpu(() => solve(a, b)) }, limit), undefined)
  const [found, expected] = [await onGpu(() => lu(general)), await onCpu(() => lu(general))]
  t.is(await same(found as never, expected as never, 4 * bound('f32', 300)), undefined)
})

test.serial('what is wrong about a large matrix is said as on the CPU', async (t) => {
  const n = 256
  const broken = tensor(
    Float32Array.from({ length: n * n }, (_, at) => (at === 77 ? Number.NaN : at % 7)),
    [n, n],
  )
  for (const factorise of [svd, svdvals, qr, qrPivoted, eigh, lu, cholesky])
    await t.throwsAsync(onGpu(() => factorise(broken)) as Promise<unknown>, {
      code: 'ERR_HEDDLE_ARGUMENT',
      message: /finite numbers, got NaN or infinity/,
    })
  const diagonal = (value: number) =>
    tensor(
      Float32Array.from({ length: n * n }, (_, at) => (at % (n + 1) !== 0 ? 0 : at === 40 * (n + 1) ? value : 1)),
      [n, n],
    )
  await t.throwsAsync(
    onGpu(() => cholesky(diagonal(-1))),
    { code: 'ERR_HEDDLE_ARGUMENT', message: /minor of order 41/ },
  )
  await t.throwsAsync(
    onGpu(() => solve(diagonal(0), tensor(new Float32Array(n), [n, 1]))),
    {
      code: 'ERR_HEDDLE_ARGUMENT',
      message: /an invertible matrix, got one whose pivot 41 is zero/,
    },
  )
})

const emulatedOnly = emulated ? test.serial : test.serial.skip

emulatedOnly(
  'an iteration that does not converge is the error that it is on the CPU, and the next one works',
  async (t) => {
    const a = random(1, 256, 256, 'f32')
    for (const factorise of [svd, eigh]) {
      inject('convergence')
      await t.throwsAsync(onGpu(() => factorise(a)) as Promise<unknown>, {
        code: 'ERR_HEDDLE_INTERNAL',
        message: /^(svd|eigh): expected an iteration that converges, got one that does not/,
      })
      await t.notThrowsAsync(onGpu(() => factorise(a)) as Promise<unknown>)
    }
  },
)
