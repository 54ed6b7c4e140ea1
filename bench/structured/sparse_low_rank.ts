/** Sparse and low-rank products: x (B A + S)ᵀ of 1024 rows, [2048, 2048], rank 128, 3 % dense, and its gradients. */
import { computed } from '../../lib/graph/computed.js'
import { vjp } from '../../lib/graph/grad.js'
import { mul } from '../../lib/graph/ops/elementwise.js'
import { randomNormal } from '../../lib/graph/ops/random.js'
import { type SparseLowRankParts, sparseLowRankLinear, spmm } from '../../lib/graph/ops/sparse.js'
import { program } from '../../lib/graph/program.js'
import { read, type Sym } from '../../lib/graph/sym.js'
import { randomSupport } from '../../lib/structured/sparse.js'
import { type Tensor, tensor } from '../../lib/tensor/tensor.js'
import type { StructuredCase } from './cases.js'

const [rows, size, rank, density] = [1024, 2048, 128, 0.03]
const count = Math.floor(density * size * size)
const sparseFlops = 2 * rows * count
const lowRankFlops = 2 * rows * rank * 2 * size
const bytes = 4 * 2 * rows * size

async function normal(shape: readonly number[], stream: number): Promise<Tensor> {
  using seed = tensor(Uint32Array.of(1, 0))
  return await computed(() => mul(randomNormal(read(seed), stream, shape), 0.02))
}

type Trace = (x: Sym, parts: SparseLowRankParts, g: Sym) => readonly Sym[] | Promise<readonly Sym[]>

async function prepare(trace: Trace): Promise<() => Promise<void>> {
  const support = await randomSupport([size, size], { density, seed: 1 })
  const [a, b] = [await normal([rank, size], 0), await normal([size, rank], 1)]
  const values = await normal([support.count], 2)
  const [x, g] = [await normal([rows, size], 3), await normal([rows, size], 4)]
  const step = program((input, gradient) =>
    trace(input!, { a: read(a), b: read(b), values: read(values), support }, gradient!),
  )
  return async () => {
    for (const result of await step(x, g)) result.dispose()
  }
}

/** Cases of `structured`. */
export const cases: readonly StructuredCase[] = [
  {
    name: 'sparse-1024x2048x2048-3%',
    flops: sparseFlops,
    bytes,
    prepare: () => prepare((x, { support, values }) => [spmm(support, values, x, { side: 'right' })]),
  },
  {
    name: 'sparse+low-rank-r128-3%',
    flops: sparseFlops + lowRankFlops,
    bytes,
    prepare: () => prepare((x, parts) => [sparseLowRankLinear(x, parts, { path: 'split' })]),
  },
  {
    name: 'sparse+low-rank-r128-3%-step',
    flops: 3 * (sparseFlops + lowRankFlops),
    bytes: 3 * bytes,
    prepare: () =>
      prepare((x, parts, g) => {
        const y = sparseLowRankLinear(x, parts, { path: 'split' })
        return vjp([y], [g], [x, parts.a, parts.b, parts.values])
      }),
  },
]
