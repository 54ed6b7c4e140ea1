// Projections onto Monarch and Kronecker matrices: golden numbers, error formulas, and families of matrices that are
// represented exactly.
import test from 'ava'
import { svd } from '../lib/linalg/factorise.js'
import { kroneckerMatrix } from '../lib/structured/kronecker_matrix.js'
import { lowRankMatrix } from '../lib/structured/low_rank_matrix.js'
import { monarchMatrix } from '../lib/structured/monarch_matrix.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'

const numbers = async (value: Tensor): Promise<number[]> => [...(await value.data())].map(Number)
const matrixOf = (rows: number, columns: number, entry: (row: number, column: number) => number): Tensor =>
  tensor(
    Float32Array.from({ length: rows * columns }, (_, at) => entry(Math.floor(at / columns), at % columns)),
    [rows, columns],
  )
const noise = (rows: number, columns: number, seed: number): Tensor =>
  tensor(randomNumbers(rows * columns, seed), [rows, columns])

test('the Monarch projection of 1 … 16, with the numbers of the reference code', async (t) => {
  const w = matrixOf(4, 4, (row, column) => 4 * row + column + 1)
  const { matrix, error } = await monarchMatrix.fromDense(w, { nblocks: 2 })
  t.true(Math.abs(error ** 2 - 0.8236) < 1e-3)
  const expected = [
    [1.4336, 1.6152, 3.3338, 3.6991],
    [5.2649, 5.7578, 7.2168, 7.7994],
    [8.9304, 10.0618, 10.8979, 12.092],
    [12.8918, 14.0989, 14.8949, 16.0972],
  ].flat()
  for (const [i, value] of (await numbers(await matrix.dense())).entries())
    t.true(Math.abs(value - expected[i]!) < 1e-3, `entry ${i}: ${value}`)
})

for (const [m, n, options, pairs] of [
  [24, 36, { sizes: [4, 3], rank: 2 }, 2],
  [30, 20, { sizes: [5, 6], rank: 1 }, 1],
] as const)
  test(`[${m}, ${n}] with ${JSON.stringify(options)}: the squared error is what the singular values leave`, async (t) => {
    const w = noise(m, n, 3)
    const { error } = await monarchMatrix.fromDense(w, options)
    const [blocks, phases] = options.sizes
    const values = await numbers(w)
    let left = 0
    for (let k = 0; k < blocks; k += 1)
      for (let l = 0; l < phases; l += 1) {
        const part = matrixOf(m / phases, n / blocks, (s, p) => values[(s * phases + l) * n + (k * n) / blocks + p]!)
        const { s } = await svd(part)
        for (const sigma of (await numbers(s)).slice(pairs)) left += sigma ** 2
      }
    t.true(Math.abs(error ** 2 - left) < 1e-4 * left)
  })

for (const m of [2, 4, 8, 16])
  test(`the Hadamard matrix of ${m * m} rows is a Monarch matrix`, async (t) => {
    const bits = (x: number): number => [...x.toString(2)].filter((bit) => bit === '1').length
    const h = matrixOf(m * m, m * m, (row, column) => (bits(row & column) % 2 === 0 ? 1 : -1))
    const { matrix, relativeError } = await monarchMatrix.fromDense(h, { nblocks: m })
    t.true(relativeError < 1e-6, `${relativeError}`)
    t.is(matrix.parameterCount, 2 * m ** 3)
  })

for (const [m, k] of [
  [2, 2],
  [4, 4],
  [8, 8],
  [3, 5],
] as const)
  test(`the DFT of ${m * k} numbers, its inputs in the order of a stride permutation, is a Monarch matrix`, async (t) => {
    // Complex numbers as pairs; a complex number as a factor is a block [[re, −im], [im, re]].
    const n = m * k
    const angle = (row: number, column: number): number => (-2 * Math.PI * ((row * column) % n)) / n
    const dft = matrixOf(2 * n, 2 * n, (row, column) => {
      // Block j of inputs holds the numbers j, j + m, j + 2m, …
      const [j, i] = [Math.floor(column / 2 / k), Math.floor(column / 2) % k]
      const turn = angle(Math.floor(row / 2), i * m + j)
      const [real, imaginary] = [Math.cos(turn), Math.sin(turn)]
      if (row % 2 === column % 2) return real / Math.sqrt(n)
      return (row % 2 === 0 ? -imaginary : imaginary) / Math.sqrt(n)
    })
    const { relativeError } = await monarchMatrix.fromDense(dft, { sizes: [m, 2 * k], rank: 2 })
    t.true(relativeError < 2e-6, `${relativeError}`)
  })

test('a Monarch matrix under noise is found again, a low-rank pair of the same size is lost', async (t) => {
  const w = await numbers(await (await monarchMatrix.random([64, 64], { nblocks: 8, seed: 4 })).dense())
  const scale = Math.hypot(...w) / 64
  const added = randomNumbers(64 * 64, 5)
  const noisy = tensor(
    Float32Array.from(w, (value, i) => value + 0.1 * scale * added[i]!),
    [64, 64],
  )
  const { relativeError, matrix } = await monarchMatrix.fromDense(noisy, { nblocks: 8 })
  t.true(relativeError < 0.06)
  const pair = await lowRankMatrix.fromDense(noisy, { rank: 8 })
  t.is(pair.matrix.parameterCount, matrix.parameterCount)
  t.true(pair.relativeError > 0.5, `${pair.relativeError}`)
})

test('parameter counts of the reference layer, from three architectures', async (t) => {
  for (const [inner, out, count] of [
    [768, 3072, 737_280],
    [3072, 768, 737_280],
    [768, 768, 294_912],
  ] as const)
    t.is((await monarchMatrix.random([out, inner], { nblocks: 4 })).parameterCount, count)
})

test('the squared error of a sum of Kronecker products is what the singular values of the rearrangement leave', async (t) => {
  const w = noise(12, 20, 6)
  const values = await numbers(w)
  const rearranged = matrixOf(3 * 4, 4 * 5, (block, at) => {
    const [i, j, s, q] = [Math.floor(block / 4), block % 4, Math.floor(at / 5), at % 5]
    return values[(i * 4 + s) * 20 + j * 5 + q]!
  })
  const sigma = await numbers((await svd(rearranged)).s)
  for (const terms of [1, 3, 12, 14]) {
    const factors = [
      [3, 4],
      [4, 5],
    ] as const
    const { error } = await kroneckerMatrix.fromDense(w, { factors, terms })
    const left = sigma.slice(terms).reduce((sum, value) => sum + value ** 2, 0)
    t.true(Math.abs(error ** 2 - left) < 1e-4, `${terms} terms: ${error ** 2} and ${left}`)
  }
})

test('a Kronecker product of three factors is found exactly', async (t) => {
  const factors = [
    [2, 3],
    [4, 2],
    [3, 5],
  ] as const
  const w = await (await kroneckerMatrix.random([24, 30], { factors, seed: 7 })).dense()
  const { relativeError, matrix } = await kroneckerMatrix.fromDense(w, { factors })
  t.true(relativeError < 1e-6)
  t.is(matrix.parameterCount, 6 + 8 + 15)
})

test('cuts that do not fit are refused, naming the option', async (t) => {
  const w = noise(6, 4, 8)
  const place = (place: string) => ({ code: 'ERR_HEDDLE_ARGUMENT', place })
  const refused = async (fn: () => Promise<unknown>, expected: string) => {
    const error = await t.throwsAsync(fn)
    t.like(error, place(expected))
  }
  await refused(() => monarchMatrix.fromDense(w, { nblocks: 5 }), 'monarchMatrix')
  await refused(() => monarchMatrix.fromDense(w, { nblocks: 2, rank: 2 }), 'monarchMatrix.nblocks')
  await refused(() => monarchMatrix.fromDense(w, { rank: 2 }), 'monarchMatrix.rank')
  await refused(() => kroneckerMatrix.fromDense(w, { factors: [[2, 2]] }), 'kroneckerMatrix.factors')
  await refused(() => lowRankMatrix.fromDense(w, { rank: 5 }), 'lowRankMatrix.rank')
})
