/** The leading singular vectors of a matrix without its whole decomposition (Halko et al. 2011, arXiv 0909.4061). */
import { type MatmulOptions, matmul } from '../graph/ops/matmul.js'
import { randomNormal } from '../graph/ops/random.js'
import { program } from '../graph/program.js'
import { read, type Sym } from '../graph/sym.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import { qr, type Svd, svd } from './factorise.js'

/** Options of {@link svdLowRank}. */
export interface LowRankOptions {
  /** Number of singular values, at most min(m, n). */
  readonly rank: number
  /** Subspace iterations; more make the vectors more exact. Default 2. */
  readonly iterations?: number
  /** Seed of the random start; default 0. */
  readonly seed?: number
  /** Random stream; default 0. */
  readonly stream?: number
}

/**
 * u `[m, rank]`, s `[rank]`, vh `[rank, n]` with u diag(s) vh close to the best approximation of `a f32 [m, n]` of that
 * rank, by the algorithm of PyTorch's `svd_lowrank`.
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when an element is not finite
 */
export async function svdLowRank(a: Tensor, options: LowRankOptions): Promise<Svd> {
  const { rank, iterations = 2, seed = 0, stream = 0 } = options
  using words = tensor(Uint32Array.of(seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0), [2])
  let basis = await orthonormal(() => matmul(read(a), randomNormal(read(words), stream, [a.shape[1]!, rank])))
  for (let i = 0; i < iterations; i += 1) {
    basis = await spanned(a, basis, { transposeA: true })
    basis = await spanned(a, basis, {})
  }
  using small = await computed(() => matmul(read(basis), read(a), { transposeA: true }))
  const { u, s, vh } = await svd(small)
  const left = await computed(() => matmul(read(basis), read(u)))
  u.dispose()
  basis.dispose()
  return { u: left, s, vh }
}

/** An orthonormal basis of what op(a) makes of the basis, which is freed. */
async function spanned(a: Tensor, basis: Tensor, options: MatmulOptions): Promise<Tensor> {
  const next = await orthonormal(() => matmul(read(a), read(basis), options))
  basis.dispose()
  return next
}

async function orthonormal(fn: () => Sym): Promise<Tensor> {
  using columns = await computed(fn)
  const { q, r } = await qr(columns)
  r.dispose()
  return q
}

async function computed(fn: () => Sym): Promise<Tensor> {
  const step = program(fn)
  try {
    return await step()
  } finally {
    step.dispose()
  }
}
