// Products with block-diagonal, Monarch and Kronecker matrices are products with the dense matrices that they stand for:
// forwards, backwards, with few rows and many, in f32 and f64.
import test from 'ava'
import fc from 'fast-check'
import { gradients } from '../lib/graph/grad.js'
import { blockDiagonal } from '../lib/graph/ops/block_diagonal.js'
import { cast, mul } from '../lib/graph/ops/elementwise.js'
import { kron, kroneckerMatmul, kroneckerOrder, kroneckerPath, kroneckerProducts } from '../lib/graph/ops/kronecker.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { monarch } from '../lib/graph/ops/monarch.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import type { Sym } from '../lib/graph/sym.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'

const draw = (shape: readonly number[], seed: number, dtype: 'f32' | 'f64' = 'f32'): Tensor => {
  const values = randomNumbers(
    shape.reduce((a, b) => a * b, 1),
    seed,
  )
  return tensor(dtype === 'f64' ? Float64Array.from(values) : values, shape)
}
const numbers = async (value: Tensor): Promise<number[]> => [...(await value.data())].map(Number)

/** ‖a − b‖ / ‖b‖ */
async function distance(a: Tensor, b: Tensor): Promise<number> {
  const [left, right] = [await numbers(a), await numbers(b)]
  const norm = (values: readonly number[]): number => Math.hypot(...values)
  return norm(left.map((value, i) => value - right[i]!)) / Math.max(norm(right), 1e-30)
}

interface Family {
  readonly name: string
  readonly weights: readonly (readonly number[])[]
  readonly in: number
  readonly out: number
  readonly product: (x: Sym, weights: readonly Sym[], precision: 'f32' | 'bf16') => Sym
  /** Entry [o, i] of the dense matrix from the weights' elements. */
  readonly entry: (weights: readonly (readonly number[])[], o: number, i: number) => number
}

const at = (values: readonly number[], shape: readonly number[], ...index: readonly number[]): number =>
  values[index.reduce((flat, each, axis) => flat * shape[axis]! + each, 0)]!

function monarchFamily(name: string, w1: readonly number[], w2: readonly number[], size: readonly number[]): Family {
  const p = w1[2]!
  const [phases, , r] = w2 as [number, number, number]
  const [inner, out] = size as [number, number]
  return {
    name,
    weights: [w1, w2],
    in: inner,
    out,
    product: (x, [a, b], precision) => monarch(x, a!, b!, { out, precision }),
    // The closed form of the sheet, summed over the middle units that lead from i to o.
    entry: ([a, b], o, i) => {
      const [l, s, k] = [o % phases, Math.floor(o / phases), Math.floor(i / p)]
      let total = 0
      for (let j = 0; j < r; j += 1) {
        const middle = j * phases + l
        if (Math.floor(middle / w1[1]!) === k) total += at(b!, w2, l, s, j) * at(a!, w1, k, middle % w1[1]!, i % p)
      }
      return total
    },
  }
}

const families: readonly Family[] = [
  {
    name: 'block-diagonal',
    weights: [[3, 20, 17]],
    in: 51,
    out: 60,
    product: (x, [w], precision) => blockDiagonal(x, w!, { precision }),
    entry: ([w], o, i) => (Math.floor(o / 20) === Math.floor(i / 17) ? w![o * 17 + (i % 17)]! : 0),
  },
  monarchFamily('square Monarch', [8, 8, 8], [8, 8, 8], [64, 64]),
  monarchFamily('wide Monarch', [4, 16, 16], [4, 32, 16], [64, 128]),
  monarchFamily('Monarch with padding', [4, 8, 13], [4, 9, 8], [50, 34]),
  monarchFamily('Monarch whose blocks mix unevenly', [3, 4, 5], [6, 3, 2], [15, 18]),
  {
    name: 'Kronecker product of three',
    weights: [
      [1, 3, 4],
      [1, 5, 2],
      [1, 6, 9],
    ],
    in: 72,
    out: 90,
    product: (x, factors, precision) => kroneckerMatmul(x, factors, { precision, path: 'stages' }),
    entry: ([a, b, c], o, i) =>
      a![Math.floor(o / 30) * 4 + Math.floor(i / 18)]! *
      b![(Math.floor(o / 6) % 5) * 2 + (Math.floor(i / 9) % 2)]! *
      c![(o % 6) * 9 + (i % 9)]!,
  },
  {
    name: 'sum of Kronecker products',
    weights: [
      [4, 4, 4],
      [4, 12, 8],
    ],
    in: 32,
    out: 48,
    product: (x, factors, precision) => kroneckerMatmul(x, factors, { precision, path: 'stages' }),
    entry: ([a, b], o, i) =>
      [0, 1, 2, 3].reduce(
        (total, term) =>
          total +
          at(a!, [4, 4, 4], term, Math.floor(o / 12), Math.floor(i / 8)) * at(b!, [4, 12, 8], term, o % 12, i % 8),
        0,
      ),
  },
]

/** The family's dense matrix, made of f64 sums outside of any program. */
async function denseOf(family: Family, weights: readonly Tensor[], dtype: 'f32' | 'f64'): Promise<Tensor> {
  const values = await Promise.all(weights.map(numbers))
  const entries = Float64Array.from({ length: family.out * family.in }, (_, at) =>
    family.entry(values, Math.floor(at / family.in), at % family.in),
  )
  return tensor(dtype === 'f64' ? entries : Float32Array.from(entries), [family.out, family.in])
}

// 500 rows make whole tiles with a rest, 5 rows a narrow tile, 100 rows stages that are cut into blocks.
for (const family of families)
  for (const [rows, dtype, bound] of [
    [500, 'f32', 1e-6],
    [100, 'f32', 1e-6],
    [5, 'f32', 1e-6],
    [5, 'f64', 1e-14],
  ] as const)
    test(`${family.name}, ${rows} rows, ${dtype}: the product is that with the dense matrix`, async (t) => {
      const weights = family.weights.map((shape, i) => draw(shape, 10 + i, dtype))
      const x = draw([rows, family.in], 1, dtype)
      const dense = await denseOf(family, weights, dtype)
      const y = await program((v, ...w) => family.product(v!, w, 'f32'))(x, ...weights)
      const expected = await program((v, w) => matmul(v!, w!, { transposeB: true }))(x, dense)
      t.deepEqual(y.shape, [rows, family.out])
      t.true((await distance(y, expected)) < bound)
    })

for (const family of families)
  for (const rows of [500, 5])
    test(`${family.name}, ${rows} rows: the fused gradients are those of the plain operators`, async (t) => {
      const weights = family.weights.map((shape, i) => draw(shape, 20 + i))
      const [x, c] = [draw([rows, family.in], 2), draw([rows, family.out], 3)]
      const found = (dtype: 'f32' | 'f64') =>
        program(async (v, g, ...w) => {
          const [own, ...factors] = [v!, ...w].map((each) => cast(each, dtype))
          const loss = sum(mul(family.product(own!, factors, 'f32'), cast(g!, dtype)))
          return gradients(loss, [own!, ...factors])
        })(x, c, ...weights)
      const [fused, plain] = [await found('f32'), await found('f64')]
      for (const [i, each] of fused.entries()) t.true((await distance(each, plain[i]!)) < 2e-6, `operand ${i}`)
    })

test('one gradient alone is the same as among all', async (t) => {
  const family = families[3]!
  const operands = [[60, family.in], ...family.weights].map((shape, i) => draw(shape, 30 + i))
  const loss = (own: readonly Sym[]) => sum(mul(family.product(own[0]!, own.slice(1), 'f32'), own[0]!.rank))
  const all = await program(async (...own) => gradients(loss(own), own))(...operands)
  for (const i of operands.keys()) {
    const [alone] = await program(async (...own) => gradients(loss(own), [own[i]!]))(...operands)
    t.deepEqual(await numbers(alone!), await numbers(all[i]!))
  }
})

for (const family of families)
  test(`${family.name}: bf16 rounds operands and stays within their precision`, async (t) => {
    const weights = family.weights.map((shape, i) => draw(shape, 40 + i))
    const x = draw([70, family.in], 4)
    const product = (precision: 'f32' | 'bf16') => program((v, ...w) => family.product(v!, w, precision))(x, ...weights)
    const error = await distance(await product('bf16'), await product('f32'))
    t.true(error > 1e-5 && error < 1e-2, `${error}`)
  })

test('large blocks are batched products, in bf16 from 128 × 128 on, and mean the same', async (t) => {
  const [x, a, b] = [
    [40, 256],
    [2, 128, 128],
    [2, 128, 128],
  ].map((shape, i) => draw(shape, 70 + i))
  const found = await Promise.all(
    (['f32', 'bf16'] as const).map(async (precision) => {
      const product = program((v, w1, w2) => monarch(v!, w1!, w2!, { out: 250, precision }))
      const y = await product(x!, a!, b!)
      return { y, ops: product.profile().map(({ op }) => op) }
    }),
  )
  t.true(found[0]!.ops.includes('monarch'))
  t.false(found[1]!.ops.includes('monarch'))
  const error = await distance(found[1]!.y, found[0]!.y)
  t.true(error > 1e-5 && error < 1e-2, `${error}`)
})

test('kron is the block matrix a[i, j] b', async (t) => {
  const y = await program((a, b) => kron(a!, b!))(tensor([1, 2, 3, 4], [2, 2]), tensor([1, 10], [1, 2]))
  t.deepEqual(
    [y.shape, await numbers(y)],
    [
      [2, 4],
      [1, 10, 2, 20, 3, 30, 4, 40],
    ],
  )
})

test('a sum of Kronecker products is written out where its stages cost more, and gives the same', async (t) => {
  const factors: readonly (readonly [number, number])[] = [
    [4, 4],
    [12, 8],
  ]
  t.is(kroneckerPath({ rows: 500, terms: 1, factors }), 'stages')
  t.is(kroneckerPath({ rows: 500, terms: 4, factors }), 'materialised')
  t.is(kroneckerPath({ rows: 3, terms: 4, factors }), 'stages')
  for (const shapes of [factors, [[2, 3] as const, ...factors]]) {
    const size = (axis: 0 | 1): number => shapes.reduce((product, each) => product * each[axis], 1)
    const operands = [[40, size(1)], ...shapes.map((each) => [5, ...each]), [40, size(0)]].map((shape, i) =>
      draw(shape, 60 + i),
    )
    const [stages, whole] = await Promise.all(
      (['stages', 'materialised'] as const).map((path) =>
        program(async (x, ...rest) => {
          const y = kroneckerMatmul(x!, rest.slice(0, -1), { path })
          return [y, ...(await gradients(sum(mul(y, rest.at(-1)!)), [x!, ...rest.slice(0, -1)]))]
        })(...operands),
      ),
    )
    for (const [i, each] of whole!.entries()) t.true((await distance(each, stages![i]!)) < 2e-6, `result ${i}`)
  }
})

test('factors are applied in the order with the fewest operations of all', (t) => {
  const factor = fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 }))
  const orders = (items: readonly number[]): number[][] =>
    items.length === 0
      ? [[]]
      : items.flatMap((item) => orders(items.filter((other) => other !== item)).map((rest) => [item, ...rest]))
  fc.assert(
    fc.property(fc.array(factor, { minLength: 1, maxLength: 5 }), (factors) => {
      const least = Math.min(...orders([...factors.keys()]).map((order) => kroneckerProducts(factors, order)))
      t.is(kroneckerProducts(factors, kroneckerOrder(factors)), least)
    }),
    { numRuns: 100, seed: 5 },
  )
})

test('the layout of the reference code, by hand', async (t) => {
  const w1 = tensor([1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 2])
  const w2 = tensor([1, 0, 2, 1, 0, 1, 1, 1], [2, 2, 2])
  const product = program((x, a, b) => monarch(x!, a!, b!))
  t.deepEqual(await numbers(await product(tensor([1, 0, 0, 1], [1, 4]), w1, w2)), [1, 8, 8, 11])
  const identity = tensor(
    Float32Array.from({ length: 16 }, (_, i) => (i % 5 === 0 ? 1 : 0)),
    [4, 4],
  )
  const columns = await numbers(await product(identity, w1, w2))
  const dense = [0, 1, 2, 3].map((o) => [0, 1, 2, 3].map((i) => columns[i * 4 + o]))
  t.deepEqual(dense, [
    [1, 2, 0, 0],
    [0, 0, 7, 8],
    [2, 4, 5, 6],
    [3, 4, 7, 8],
  ])
})

test('the hypercomplex layer of the Compacter paper, by hand', async (t) => {
  // A₁ = I, A₂ swaps; B = s tᵀ: H = Σ A ⊗ B, and x H is x times the transposed factors.
  const a = tensor([1, 0, 0, 1, 0, 1, 1, 0], [2, 2, 2])
  const b = tensor([1, 2, 3, 6, 2, 0, 1, 0], [2, 2, 2])
  const y = await program((x, left, right) => kroneckerMatmul(x!, [left!, right!]))(tensor([1, 2, 3, 4], [1, 4]), a, b)
  t.deepEqual(await numbers(y), [11, 18, 13, 34])
})

test('wrong shapes are refused with the shapes that would do', async (t) => {
  const refused = (fn: (...inputs: Sym[]) => Sym, ...shapes: readonly (readonly number[])[]) =>
    t.throwsAsync(async () => program(fn)(...shapes.map((shape) => draw(shape, 1))), { code: 'ERR_HEDDLE_SHAPE' })
  await refused((x, a, b) => monarch(x!, a!, b!), [2, 4], [2, 2, 2], [2, 2, 3])
  await refused((x, a, b) => monarch(x!, a!, b!, { out: 5 }), [2, 4], [2, 2, 2], [2, 2, 2])
  await refused((x, w) => blockDiagonal(x!, w!), [2, 5], [2, 2, 2])
  await refused((x, a, b) => kroneckerMatmul(x!, [a!, b!]), [2, 5], [2, 2], [2, 2])
})
