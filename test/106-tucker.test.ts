// Mode products in any order, Tucker decompositions against their defining properties, and convolutions with a Tucker
// kernel against the dense kernel.
import test from 'ava'
import fc from 'fast-check'
import { gradients } from '../lib/graph/grad.js'
import { moveAxis } from '../lib/graph/ops/axes.js'
import { conv2d } from '../lib/graph/ops/conv.js'
import { add, mul, sqrt, square } from '../lib/graph/ops/elementwise.js'
import { transpose } from '../lib/graph/ops/index.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { reshape, sum } from '../lib/graph/ops/reduce.js'
import { modeOrder, modeProduct, modeProducts, tuckerConv2d, tuckerKernelToDense } from '../lib/graph/ops/tucker.js'
import { program } from '../lib/graph/program.js'
import { read, type Sym } from '../lib/graph/sym.js'
import { disposeTucker, hooi, hosvd, tuckerParameterCount, tuckerToDense } from '../lib/structured/tucker.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { goldenJson } from './golden.js'
import { randomNumbers } from './random_numbers.js'

const values = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number)
const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1)
const drawn = (shape: readonly number[], seed: number): Tensor => tensor(randomNumbers(count(shape), seed), shape)

async function results(fn: () => readonly Sym[] | Promise<readonly Sym[]>): Promise<number[][]> {
  return Promise.all((await program(fn)()).map(values))
}

function distance(a: readonly number[], b: readonly number[]): number {
  const largest = Math.max(1e-30, ...b.map(Math.abs))
  return Math.max(0, ...a.map((value, i) => Math.abs(value - b[i]!))) / largest
}

interface TuckerGolden {
  readonly shape: readonly number[]
  readonly ranks: readonly number[]
  readonly x: number[]
  readonly a: number[]
  readonly modeProduct: number[]
  readonly hosvd: DecompositionGolden
  readonly sequential: DecompositionGolden
  readonly hooi: DecompositionGolden
}

interface DecompositionGolden {
  /** A Aᵀ of each axis. */
  readonly projectors: readonly number[][]
  /** Of the core's slices along each axis. */
  readonly coreNorms: readonly number[][]
  readonly relativeError: number
}

/** y[…, j, …] = Σᵢ A[j, i] x[…, i, …], written out. */
function modeProductByHand(
  x: readonly number[],
  shape: readonly number[],
  a: readonly number[],
  axis: number,
): number[] {
  const size = shape[axis]!
  const j = a.length / size
  const inner = count(shape.slice(axis + 1))
  const y = new Array<number>((x.length / size) * j).fill(0)
  for (let o = 0; o < count(shape.slice(0, axis)); o += 1)
    for (let k = 0; k < j; k += 1)
      for (let i = 0; i < size; i += 1)
        for (let c = 0; c < inner; c += 1)
          y[(o * j + k) * inner + c]! += a[k * size + i]! * x[(o * size + i) * inner + c]!
  return y
}

test('a mode product along any axis of any shape is its definition', async (t) => {
  const cases = fc.record({
    shape: fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 4 }),
    j: fc.integer({ min: 1, max: 12 }),
    axis: fc.nat(3),
    turned: fc.boolean(),
    seed: fc.nat(99),
  })
  await fc.assert(
    fc.asyncProperty(cases, async ({ shape, j, axis, turned, seed }) => {
      const at = axis % shape.length
      const [x, a] = [drawn(shape, seed), drawn(turned ? [shape[at]!, j] : [j, shape[at]!], seed + 1)]
      const [y, flat] = await results(() => [
        modeProduct(read(x), read(a), at, { transpose: turned }),
        turned ? transpose(read(a)) : read(a),
      ])
      t.true(distance(y!, modeProductByHand(await values(x), shape, flat!, at)) < 1e-5)
    }),
    { numRuns: 40, seed: 1 },
  )
})

test('the order of mode products is the cheapest of all orders', (t) => {
  const orders = (axes: readonly number[]): number[][] =>
    axes.length === 0
      ? [[]]
      : axes.flatMap((axis) => orders(axes.filter((each) => each !== axis)).map((rest) => [axis, ...rest]))
  const cost = (shape: readonly number[], targets: readonly number[], order: readonly number[]): number => {
    const now = [...shape]
    return order.reduce((flops, axis) => {
      const more = 2 * count(now) * targets[axis]!
      now[axis] = targets[axis]!
      return flops + more
    }, 0)
  }
  const sizes = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 4, maxLength: 4 })
  fc.assert(
    fc.property(sizes, sizes, (shape, targets) => {
      const { axes, flops } = modeOrder(shape, targets)
      t.is(flops, Math.min(...orders([0, 1, 2, 3]).map((order) => cost(shape, targets, order))))
      t.is(cost(shape, targets, axes), flops)
    }),
    { numRuns: 50, seed: 1 },
  )
})

test('mode products, HOSVD in both forms and HOOI are those of numpy, from the definitions', async (t) => {
  const { tucker: golden } = goldenJson<{ readonly tucker: TuckerGolden }>('structured.json')
  const { shape, ranks } = golden
  const x = tensor(Float32Array.from(golden.x), shape)
  const [product] = await results(() => [modeProduct(read(x), read(tensor(golden.a, [4, 5])), 1)])
  t.true(distance(product!, golden.modeProduct) < 1e-6)
  const found = {
    hosvd: await hosvd(x, { ranks, sequential: false }),
    sequential: await hosvd(x, { ranks }),
    hooi: await hooi(x, { ranks, tolerance: 0, maxIterations: 100 }),
  }
  for (const name of ['hosvd', 'sequential', 'hooi'] as const) {
    const { core, factors, relativeError } = found[name]
    t.true(Math.abs(relativeError - golden[name].relativeError) < 1e-6, name)
    for (const [axis, factor] of factors.entries()) {
      // Singular vectors are unique up to their signs: projectors and norms of slices do not have any.
      const [projector, norms] = await results(() => {
        const slices = reshape(moveAxis(read(core), axis, 0), [ranks[axis]!, -1])
        return [matmul(read(factor!), read(factor!), { transposeB: true }), sqrt(sum(square(slices), { axes: [1] }))]
      })
      t.true(distance(projector!, golden[name].projectors[axis]!) < 1e-4, `${name}, axis ${axis}`)
      t.true(distance(norms!, golden[name].coreNorms[axis]!) < 1e-4, `${name}, core, axis ${axis}`)
    }
  }
})

test('HOSVD of a tensor of exact multilinear rank gives it back', async (t) => {
  const [core, a, b, c] = [drawn([2, 3, 2], 1), drawn([7, 2], 2), drawn([6, 3], 3), drawn([5, 2], 4)]
  const x = await program(() => modeProducts(read(core), [read(a), read(b), read(c)]))()
  for (const sequential of [true, false]) {
    const found = await hosvd(x, { ranks: [2, 3, 2], sequential })
    t.deepEqual(found.core.shape, [2, 3, 2])
    t.true(found.relativeError < 1e-6, String(found.relativeError))
    for (const factor of found.factors) {
      const [gram] = await results(() => [matmul(read(factor!), read(factor!), { transposeA: true })])
      const size = factor!.shape[1]!
      t.true(
        distance(
          gram!,
          Array.from({ length: size ** 2 }, (_, i) => Number(i % (size + 1) === 0)),
        ) < 1e-5,
      )
    }
    t.is(tuckerParameterCount(found), 12 + 14 + 18 + 10)
    disposeTucker(found)
  }
})

test('the error of HOSVD is at most the root of what all axes leave out, as promised for `error`', async (t) => {
  const x = drawn([9, 8, 7], 5)
  for (const error of [0.6, 0.8]) {
    const found = await hosvd(x, { error })
    t.true(found.relativeError <= error, `${found.relativeError} <= ${error}`)
    t.true(found.core.size < x.size)
  }
})

test('HOOI never makes the fit worse, and is no worse than HOSVD', async (t) => {
  const x = drawn([10, 9, 8], 6)
  const options = { ranks: [3, 3, 3] }
  const start = await hosvd(x, options)
  const found = await hooi(x, { ...options, maxIterations: 20 })
  t.true(Math.abs(found.fit[0]! - (1 - start.relativeError)) < 1e-6)
  for (const [i, fit] of found.fit.entries()) if (i > 0) t.true(fit >= found.fit[i - 1]! - 1e-6)
  t.true(found.relativeError < start.relativeError)
})

test('HOOI stops when the fit does not change any more', async (t) => {
  const [core, a, b] = [drawn([2, 2], 1), drawn([6, 2], 2), drawn([5, 2], 3)]
  const x = await program(() => modeProducts(read(core), [read(a), read(b)]))()
  const found = await hooi(x, { ranks: 2 })
  t.is(found.reason, 'converged')
  t.is(found.fit.length, 2)
})

test('of a matrix, Tucker ranks r × r are its truncated SVD', async (t) => {
  const x = drawn([8, 6], 7)
  const { svd } = await import('../lib/linalg/factorise.js')
  const singular = await values((await svd(x)).s)
  const norm = Math.sqrt(singular.reduce((total, s) => total + s * s, 0))
  const rest = Math.sqrt(singular.slice(3).reduce((total, s) => total + s * s, 0))
  t.true(Math.abs((await hooi(x, { ranks: 3 })).relativeError - rest / norm) < 1e-5)
})

test('partial Tucker leaves an axis as it is', async (t) => {
  const x = drawn([6, 5, 3, 3], 8)
  const found = await hosvd(x, { ranks: [2, 4, undefined, undefined] })
  t.deepEqual(found.core.shape, [2, 4, 3, 3])
  t.is(found.factors[2], undefined)
  t.deepEqual((await hosvd(x, { ranks: 2, axes: [0, -1] })).core.shape, [2, 5, 3, 2])
  const whole = await hosvd(x, { ranks: [6, 5, undefined, undefined] })
  t.true(whole.relativeError < 1e-5)
})

test('ranks that an unfolding cannot have, and tensors of zeros and of one axis, are handled', async (t) => {
  const x = drawn([8, 2, 2], 9)
  t.deepEqual((await hooi(x, { ranks: 8 })).core.shape, [4, 2, 2])
  t.is((await hosvd(zeros([3, 4]), { ranks: 2 })).relativeError, 0)
  t.deepEqual((await hosvd(drawn([5], 1), { ranks: 1 })).core.shape, [1])
  const argument = { code: 'ERR_HEDDLE_ARGUMENT' }
  await t.throwsAsync(hosvd(x, { ranks: [9, 2, 2] }), { ...argument, message: /at most 4 along axis 0/ })
  await t.throwsAsync(hosvd(x, {}), { ...argument, message: /either ranks or error/ })
  await t.throwsAsync(hosvd(x, { ranks: 1, error: 0.1 }), argument)
  await t.throwsAsync(hosvd(x, { ranks: 1, axes: [3] }), argument)
})

const kernelParts = (full: boolean) => ({
  core: drawn([4, 3, full ? 2 : 3, full ? 2 : 3], 1),
  out: drawn([10, 4], 2),
  in: drawn([8, 3], 3),
  ...(full ? { height: drawn([3, 2], 4), width: drawn([3, 2], 5) } : {}),
})

test('a convolution in groups has its first two stages in common', async (t) => {
  const x = drawn([2, 8, 9, 7], 20)
  const kernel = { core: drawn([3, 2, 2, 2], 21), out: drawn([10, 3], 22), in: drawn([4, 2], 23) }
  const leaves = Object.values(kernel)
  const options = { stride: [2, 1], padding: 1, groups: 2 } as const
  const [stages, whole] = await Promise.all(
    (['stages', 'whole'] as const).map((path) =>
      results(async () => {
        const parts = { core: read(kernel.core), out: read(kernel.out), in: read(kernel.in) }
        const y =
          path === 'whole'
            ? conv2d(read(x), tuckerKernelToDense(parts), options)
            : tuckerConv2d(read(x), parts, { ...options, path })
        return [y, ...(await gradients(sum(mul(y, add(y, 1))), [read(x), ...leaves.map(read)]))]
      }),
    ),
  )
  for (const [i, each] of whole!.entries()) t.true(distance(stages![i]!, each) < 1e-4, `stages ${i}`)
})

for (const full of [false, true])
  test(`a convolution in three stages is that with the dense kernel${full ? ', all axes factored' : ''}`, async (t) => {
    const [x, bias] = [drawn([2, 8, 9, 7], 10), drawn([10], 11)]
    const parts = kernelParts(full)
    const leaves = Object.values(parts)
    const options = { stride: [2, 1], padding: 1, dilation: [1, 2] } as const
    const [stages, dense, whole] = await Promise.all(
      (['stages', 'dense', 'whole'] as const).map((path) =>
        results(async () => {
          const kernel = Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, read(part)]))
          const given = kernel as unknown as Parameters<typeof tuckerConv2d>[1]
          const y =
            path === 'whole'
              ? conv2d(read(x), tuckerKernelToDense(given), { ...options, bias: read(bias) })
              : tuckerConv2d(read(x), given, { ...options, bias: read(bias), path })
          const loss = sum(mul(y, add(y, 1)))
          return [y, ...(await gradients(loss, [read(x), read(bias), ...leaves.map(read)]))]
        }),
      ),
    )
    for (const [i, each] of whole!.entries()) {
      t.true(distance(stages![i]!, each) < 1e-4, `stages ${i}`)
      t.true(distance(dense![i]!, each) < 1e-4, `dense ${i}`)
    }
  })

test('operations are counted: (512, 512, 3, 3) with a core of 64 costs 23 times less than the dense kernel', async (t) => {
  const x = zeros([1, 512, 14, 14])
  const parts = { core: zeros([64, 64, 3, 3]), out: zeros([512, 64]), in: zeros([512, 64]) }
  const flops = async (path?: 'dense'): Promise<number> => {
    const step = program((image) =>
      tuckerConv2d(
        image!,
        { core: read(parts.core), out: read(parts.out), in: read(parts.in) },
        { padding: 1, ...(path ? { path } : {}) },
      ),
    )
    return (await step.plan([x])).flops
  }
  const [stages, dense] = [await flops(), await flops('dense')]
  const pixels = 14 * 14
  t.true(Math.abs(stages / (2 * pixels * (512 * 64 * 2 + 64 * 64 * 9)) - 1) < 0.01)
  t.true(dense > 2 * pixels * 512 * 512 * 9)
})

test('where the ranks are full, the kernel is made', async (t) => {
  const step = program((x, core, out, input) => tuckerConv2d(x!, { core: core!, out: out!, in: input! }))
  const given = [drawn([1, 4, 12, 12], 1), drawn([4, 4, 3, 3], 2), drawn([4, 4], 3), drawn([4, 4], 4)]
  await (await step(...given)).data()
  const convolutions = step.profile().find(({ op }) => op === 'conv2d')
  t.is(convolutions?.calls, 1)
})

test('shapes that do not fit are refused', async (t) => {
  const step = program((x, a) => modeProduct(x!, a!, 1))
  await t.throwsAsync(step(drawn([2, 3], 1), drawn([4, 2], 2)), { code: 'ERR_HEDDLE_SHAPE', message: /\[j, 3\]/ })
  const conv = program((x, core) => tuckerConv2d(x!, { core: core!, out: reshape(core!, [2, -1]), in: core! }))
  await t.throwsAsync(conv(drawn([1, 2, 4, 4], 1), drawn([2, 2, 1, 1], 2)), { code: 'ERR_HEDDLE_SHAPE' })
  t.throws(() => tuckerToDense({ core: zeros([1]), factors: [] }), { code: 'ERR_HEDDLE_ARGUMENT' })
})
