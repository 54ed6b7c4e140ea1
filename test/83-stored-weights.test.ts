// Precision "stored": products computed from the quantised blocks of a file equal those with the decoded weights.
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { groupedLowRank } from '../lib/graph/ops/grouped_low_rank.js'
import { gatherRows } from '../lib/graph/ops/index.js'
import { matmul, type Precision } from '../lib/graph/ops/matmul.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { loadModel, tensor } from '../lib/index.js'
import { addon, type Encoding } from '../lib/native.js'
import { Tensor } from '../lib/tensor/tensor.js'
import { fetchModel } from './models/fetch.js'
import { temporaryFolder } from './support/temporary_folder.js'

const blockBytes = { q4_0: 18, q4_1: 20, q8_0: 34 } as const
type BlockEncoding = keyof typeof blockBytes

/** Numbers in [0, 1), the same for the same seed. */
function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

const numbers = (count: number, seed: number): Float32Array => {
  const next = random(seed)
  return Float32Array.from({ length: count }, () => next() * 2 - 1)
}

/** A file of random codes whose scales and minima are halves of about 0.01 to 0.1, as a matrix [n, k]. */
async function blockMatrix(encoding: BlockEncoding, n: number, k: number, interleavedHeads?: number): Promise<Tensor> {
  const next = random(n * 1000 + k)
  const size = blockBytes[encoding]
  const bytes = Uint8Array.from({ length: (n * k * size) / 32 }, () => next() * 256)
  const halves = encoding === 'q4_1' ? [1, 3] : [1]
  for (let block = 0; block < bytes.length; block += size)
    for (const at of halves) bytes[block + at] = (next() < 0.5 ? 0x80 : 0) | (0x20 + Math.floor(next() * 12))
  const path = join(temporaryFolder(), 'blocks')
  await writeFile(path, bytes)
  const file = await addon.openFile(path)
  const heads = interleavedHeads === undefined ? {} : { interleavedHeads }
  return new Tensor(file.tensor({ encoding: encoding as Encoding, dtype: 'f32', shape: [n, k], offset: 0, ...heads }))
}

interface Addition {
  readonly alpha?: number
  readonly addend?: Tensor
}

async function product(x: Tensor, w: Tensor, precision: Precision, { alpha = 1, addend }: Addition = {}) {
  const run = program((input) =>
    matmul(input!, read(w), { transposeB: true, precision, alpha, ...(addend ? { addend: read(addend) } : {}) }),
  )
  const y = (await (await run(x)).data()) as Float32Array
  run.dispose()
  return y
}

/** Largest difference, relative to the largest element. */
function error(actual: Float32Array, expected: Float32Array): number {
  const largest = expected.reduce((top, value) => Math.max(top, Math.abs(value)), 0)
  return actual.reduce((top, value, i) => Math.max(top, Math.abs(value - expected[i]!)), 0) / largest
}

for (const encoding of ['q4_0', 'q4_1', 'q8_0'] as const)
  test(`${encoding}: 1 to 32 rows, within the rounding of activations to 16 bits`, async (t) => {
    for (const [rows, n, k] of [
      [1, 48, 64],
      [2, 16, 32],
      [3, 7, 96],
      [5, 130, 576],
      [32, 33, 64],
    ] as const) {
      const w = await blockMatrix(encoding, n, k)
      const x = tensor(numbers(rows * k, rows), [rows, k])
      const expected = await product(x, w, 'f32')
      const actual = await product(x, w, 'stored')
      t.true(error(actual, expected) < 4e-5, `${rows}x${n}x${k}: ${error(actual, expected)}`)
      t.notDeepEqual(actual, expected)
    }
  })

test('a factor, a bias and an addend of the full shape are applied', async (t) => {
  const w = await blockMatrix('q4_1', 20, 64)
  const x = tensor(numbers(128, 1), [2, 64])
  for (const addend of [tensor(numbers(20, 2)), tensor(numbers(40, 3), [2, 20])]) {
    const expected = await product(x, w, 'f32', { alpha: 0.5, addend })
    t.true(error(await product(x, w, 'stored', { alpha: 0.5, addend }), expected) < 4e-5)
  }
})

test('a product that asks for the factors behind it, wherever they are said to be, changes nothing', async (t) => {
  const w = await blockMatrix('q4_1', 130, 576)
  const x = tensor(numbers(16 * 576, 5), [16, 576])
  const [a, b] = [tensor(numbers(40 * 576, 6), [40, 576]), tensor(numbers(40 * 130, 7), [40, 130])]
  const scales = tensor(new Float32Array(16).fill(1))
  const updated = (y: Sym, x: Sym, ranges: Sym) =>
    groupedLowRank(y, x, read(a), read(b), { ranges, scales: read(scales) })
  const together = program((x, ranges) =>
    updated(matmul(x!, read(w), { transposeB: true, precision: 'stored' }), x!, ranges!),
  )
  const rangesOf = (first: number): Tensor =>
    tensor(
      Int32Array.from({ length: 32 }, (_, i) => (i % 2 ? 1 + (i % 8) : first)),
      [16, 2],
    )
  const y = tensor(await product(x, w, 'stored'), [16, 130])
  const expected = await program((y, x, ranges) => updated(y!, x!, ranges!))(y, x, rangesOf(3))
  t.deepEqual(await (await together(x, rangesOf(3))).data(), await expected.data())
  for (const first of [-1, 39, 2 ** 31 - 1])
    await t.throwsAsync(together(x, rangesOf(first)), { code: 'ERR_HEDDLE_ARGUMENT', message: /within the 40 rows/ })
  t.deepEqual(await (await together(x, rangesOf(3))).data(), await expected.data())
})

test('rows that the file holds in another order come out in theirs', async (t) => {
  const w = await blockMatrix('q4_0', 32, 64, 2)
  const x = tensor(numbers(64, 4), [1, 64])
  t.true(error(await product(x, w, 'stored'), await product(x, w, 'f32')) < 4e-5)
})

test('a row of zeros, tiny numbers and large ones', async (t) => {
  const w = await blockMatrix('q8_0', 16, 64)
  const rows = [numbers(64, 5).map(() => 0), numbers(64, 6).map((v) => v * 1e-30), numbers(64, 7).map((v) => v * 1e30)]
  for (const row of rows) {
    const x = tensor(row, [1, 64])
    const expected = await product(x, w, 'f32')
    const actual = await product(x, w, 'stored')
    if (row.every((value) => value === 0)) t.deepEqual(actual, expected)
    else t.true(error(actual, expected) < 4e-5)
  }
})

test('a value that is not finite makes its row NaN, and no other', async (t) => {
  const w = await blockMatrix('q4_0', 16, 64)
  const row = numbers(128, 8)
  row[70] = Number.POSITIVE_INFINITY
  const y = await product(tensor(row, [2, 64]), w, 'stored')
  t.true(y.subarray(0, 16).every(Number.isFinite))
  t.true(y.subarray(16).every(Number.isNaN))
})

test('more rows, and weights without blocks, are multiplied in bf16', async (t) => {
  const blocks = await blockMatrix('q4_0', 16, 64)
  const dense = tensor(numbers(16 * 64, 9), [16, 64])
  for (const [w, rows] of [
    [blocks, 33],
    [dense, 1],
  ] as const) {
    const x = tensor(numbers(rows * 64, 10), [rows, 64])
    t.deepEqual(await product(x, w, 'stored'), await product(x, w, 'bf16'))
  }
})

test('rows are gathered from the blocks without decoding the whole matrix', async (t) => {
  const w = await blockMatrix('q8_0', 40, 64)
  const run = program((ids) => gatherRows(read(w), ids!))
  const rows = (await (await run(tensor(Int32Array.of(39, 0, 7)))).data()) as Float32Array
  run.dispose()
  const all = (await w.data()) as Float32Array
  t.deepEqual(rows, Float32Array.from([39, 0, 7].flatMap((row) => [...all.subarray(row * 64, row * 64 + 64)])))
})

test('SmolLM2 says the same from its blocks as with decoded weights', async (t) => {
  const path = await fetchModel('smollm2')
  const texts: string[] = []
  for (const precision of ['f32', 'stored'] as const) {
    const model = await loadModel(path, { precision })
    let text = ''
    for await (const piece of model.generate('What is the capital of France?', { maxTokens: 12 })) text += piece
    texts.push(text)
    await model.dispose()
  }
  t.true(texts[0]!.includes('Paris'))
  t.is(texts[1], texts[0])
})
