// Chains of products are computed in the cheaper order, and give what the other order gives.
import test, { type ExecutionContext } from 'ava'
import { gradients } from '../lib/graph/grad.js'
import { mul } from '../lib/graph/ops/elementwise.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { sum } from '../lib/graph/ops/reduce.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { type Tensor, tensor } from '../lib/tensor/tensor.js'
import { relativeError } from './golden.js'
import { randomNumbers } from './random_numbers.js'

const matrix = (rows: number, columns: number, seed: number): Tensor =>
  tensor(randomNumbers(rows * columns, seed), [rows, columns])

/** A program's multiplications are those of its products, and a few more for what is done element by element. */
async function takes(
  t: ExecutionContext,
  products: number,
  fn: (...inputs: Sym[]) => unknown,
  inputs: readonly Tensor[],
): Promise<void> {
  const size = (await program(fn).plan(inputs)).flops / 2
  t.true(size >= products && size < 1.1 * products, `${size} and ${products}`)
}

const [large, small] = [48, 3]
const flags = [false, true] as const

for (const transposeA of flags)
  for (const transposeB of flags)
    for (const isTurned of flags)
      for (const isLeft of flags)
        test(`a${transposeA ? 'ᵀ' : ''} b${transposeB ? 'ᵀ' : ''}${isTurned ? ', transposed,' : ''} ${isLeft ? 'before' : 'behind'} a narrow matrix`, async (t) => {
          const [a, b] = [matrix(large, large, 1), matrix(large, large, 2)]
          const narrow = isLeft ? matrix(small, large, 3) : matrix(large, small, 3)
          const addend = isLeft ? matrix(small, large, 4) : matrix(large, small, 4)
          const chain = (x: Sym, y: Sym, z: Sym, c: Sym): { readonly inner: Sym; readonly outer: Sym } => {
            const inner = matmul(x, y, { transposeA, transposeB, alpha: 2 })
            const options = { alpha: 3, addend: c }
            const outer = isLeft
              ? matmul(z, inner, { ...options, transposeB: isTurned })
              : matmul(inner, z, { ...options, transposeA: isTurned })
            return { inner, outer }
          }
          const inputs = [a, b, narrow, addend]
          const turned = (x?: Sym, y?: Sym, z?: Sym, c?: Sym): Sym => chain(x!, y!, z!, c!).outer
          await takes(t, 2 * large * large * small, turned, inputs)
          // What leaves the program is computed.
          const { outer } = await program((x, y, z, c) => ({ ...chain(x!, y!, z!, c!) }))(...inputs)
          t.true((await relativeError(await program(turned)(...inputs), outer)) < 1e-5)
        })

test('the gradient of a factor of a weight needs none of the size of the weight', async (t) => {
  const [rows, inner, out, r] = [64, 40, 32, 4]
  const [x, g] = [matrix(rows, inner, 1), matrix(rows, out, 2)]
  const [w, left, right, d] = [
    matrix(out, inner, 3),
    matrix(out, r, 4),
    matrix(r, inner, 5),
    tensor(randomNumbers(r, 6)),
  ]
  const found = async (x?: Sym, g?: Sym): Promise<Sym[]> => {
    const weight = matmul(mul(read(left), read(d)), read(right), { addend: read(w) })
    const y = matmul(x!, weight, { transposeB: true })
    return [y, ...(await gradients(sum(mul(y, g!)), [read(d)]))]
  }
  await takes(t, out * inner * r + rows * inner * out + rows * r * (inner + out), found, [x, g])
  const [, own] = await program(found)(x, g)
  // ⟨g, x (L diag(d) R)ᵀ⟩ derived by hand: Σ over rows of (g L) ⊙ (x Rᵀ).
  const wanted = await program((x, g) =>
    sum(mul(matmul(g!, read(left)), matmul(x!, read(right), { transposeB: true })), { axes: [0] }),
  )(x, g)
  t.true((await relativeError(own!, wanted)) < 1e-5)
})

test('chains of four are right, whichever of their products are turned', async (t) => {
  for (const sizes of [
    [3, 40, 40, 40, 2],
    [40, 40, 40, 2, 2],
    [2, 3, 40, 40, 40],
    [40, 2, 40, 2, 40],
  ]) {
    const matrices = sizes.slice(1).map((columns, i) => matrix(sizes[i]!, columns, i + 1))
    const chain = (all: readonly Sym[]): Sym[] => {
      const products = [all[0]!]
      for (const each of all.slice(1)) products.push(matmul(products.at(-1)!, each))
      return products
    }
    const turned = await program((...all) => chain(all).at(-1)!)(...matrices)
    // Every product leaves the program.
    const plain = await program((...all) => chain(all).slice(1))(...matrices)
    t.true((await relativeError(turned, plain.at(-1)!)) < 1e-5)
  }
})

test('an order that would cost more, and a product that others read too, stay as they are', async (t) => {
  const [a, b, c] = [matrix(large, small, 1), matrix(small, large, 2), matrix(large, large, 3)]
  const narrow = (x?: Sym, y?: Sym, z?: Sym): Sym => matmul(z!, matmul(x!, y!))
  await takes(t, 2 * large * large * small, narrow, [a, b, c])
  const cheap = (x?: Sym, y?: Sym, z?: Sym): Sym => matmul(matmul(z!, x!), y!)
  await takes(t, 2 * large * large * small, cheap, [a, b, c])
  const shared = (x?: Sym, y?: Sym, z?: Sym): Sym => {
    const product = matmul(y!, z!)
    return mul(matmul(x!, product), sum(product))
  }
  await takes(t, 2 * large * large * small, shared, [a, b, c])
})
