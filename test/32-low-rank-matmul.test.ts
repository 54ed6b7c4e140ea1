// A frozen product and its low-rank update run as one instruction; it must compute what the separate ones compute.
import test from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { add, cast, mul } from '../lib/graph/ops/elementwise.js'
import { matmul, type Precision } from '../lib/graph/ops/matmul.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'
import { onGpu } from './support/backend.js'

const [k, n, r] = [96, 144, 8]
const matrix = (rows: number, columns: number, seed: number): Tensor =>
  tensor(randomNumbers(rows * columns, seed), [rows, columns])
const w = matrix(n, k, 1)
const a = matrix(r, k, 2)
const b = matrix(n, r, 3)

interface Linear {
  readonly y: Sym
  /** The adapter's inner value. Giving it out keeps it a result of its own, which prevents the fusion. */
  readonly z: Sym
}

function linear(x: Sym, precision: Precision): Linear {
  const z = matmul(x, read(a), { transposeB: true, precision })
  const update = matmul(z, read(b), { transposeB: true, alpha: 2, precision })
  return { y: add(matmul(x, read(w), { transposeB: true, precision }), update), z }
}

async function instructions(rows: number, fn: (x: Sym) => unknown): Promise<number> {
  return (await program((x) => fn(x!)).plan([matrix(rows, k, 4)])).instructions
}

test('a frozen product with its update is one instruction', async (t) => {
  t.is(await instructions(600, (x) => linear(x, 'f32').y), 1)
  t.is(await instructions(600, (x) => linear(x, 'f32')), 3)
})

// 600 rows take the fused path with a last tile of 24 rows, 40 rows the separate one.
for (const rows of [600, 1024, 40])
  for (const precision of ['f32', 'bf16'] as const)
    test(`${rows} rows, ${precision}: fused equals separate`, async (t) => {
      const x = matrix(rows, k, 5)
      const fused = await program((value) => linear(value!, precision).y)(x)
      const { y } = await program((value) => ({ ...linear(value!, precision) }))(x)
      // A device sums z up in another order when it does all at once, so that some of it is rounded to another bf16.
      const half = onGpu ? 1e-3 : 1e-5
      t.true((await relativeError(fused, y)) < (precision === 'f32' ? 1e-6 : half))
    })

for (const rows of [600, 40])
  test(`${rows} rows: an activation that is stored as bf16 gives what the products would round it to`, async (t) => {
    const x = matrix(rows, k, 5)
    const stored = await program((value) => linear(cast(value!, 'bf16'), 'bf16').y)(x)
    const rounded = await program((value) => linear(value!, 'bf16').y)(x)
    t.deepEqual(await stored.data(), await rounded.data())
  })

test('what only bf16 products read is stored as bf16, with the same results', async (t) => {
  const x = matrix(1024, k, 5)
  const read = program((given) => linear(mul(given!, given!), 'bf16').y)
  const given = program((value) => {
    const squared = mul(value!, value!)
    return { y: linear(squared, 'bf16').y, squared }
  })
  t.deepEqual(await (await read(x)).data(), await (await given(x)).y.data())
  const many = 8192
  const bytes = async (precision: Precision) =>
    (await program((value) => linear(mul(value!, value!), precision).y).plan([zeros([many, k])])).peakBytes
  t.true((await bytes('bf16')) < (await bytes('f32')) - many * k)
})

for (const rows of [600, 40])
  test(`${rows} rows: gradients through the fused form equal those of the merged weight`, async (t) => {
    const x = matrix(rows, k, 6)
    const weights = tensor(randomNumbers(rows * n, 7), [rows, n])
    const loss = (y: Sym) => sum(mul(y, read(weights)))
    const step = program(async (value) => gradients(loss(linear(value!, 'f32').y), [value!, read(a), read(b)]))
    const reference = program(async (value) => {
      const merged = add(read(w), mul(2, matmul(read(b), read(a))))
      return gradients(loss(matmul(value!, merged, { transposeB: true })), [value!, read(a), read(b)])
    })
    const [found, expected] = [await step(x), await reference(x)]
    for (const [i, gradient] of found.entries()) t.true((await relativeError(gradient, expected[i]!)) < 1e-5, `${i}`)
  })

test('products of another precision stay on their own', async (t) => {
  const mixed = (x: Sym) => {
    const z = matmul(x, read(a), { transposeB: true })
    return add(matmul(x, read(w), { transposeB: true, precision: 'bf16' }), matmul(z, read(b), { transposeB: true }))
  }
  t.is(await instructions(600, mixed), 3)
})

test('a weight that the program writes is not taken for a frozen one', async (t) => {
  const own = matrix(n, k, 8)
  const step = program((x) => {
    const z = matmul(x!, read(a), { transposeB: true })
    const y = add(matmul(x!, read(own), { transposeB: true }), matmul(z, read(b), { transposeB: true }))
    assign(own, mul(read(own), 0))
    return y
  })
  const x = matrix(600, k, 9)
  const first = await step(x)
  const second = await step(x)
  const updateOnly = await program((value) =>
    matmul(matmul(value!, read(a), { transposeB: true }), read(b), { transposeB: true }),
  )(x)
  t.true((await relativeError(first, updateOnly)) > 0.1)
  t.true((await relativeError(second, updateOnly)) < 1e-6)
})
