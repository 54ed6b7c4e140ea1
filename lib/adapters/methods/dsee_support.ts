/** Where DSEE's sparse part has its entries: found from the weight alone, before training. */
import { HeddleError } from '../../errors.js'
import { computed } from '../../graph/computed.js'
import { abs, greater, less, select, sub } from '../../graph/ops/elementwise.js'
import { concat, slice } from '../../graph/ops/index.js'
import { matmul } from '../../graph/ops/matmul.js'
import { randomNormal, randomUniform } from '../../graph/ops/random.js'
import { sum } from '../../graph/ops/reduce.js'
import type { SparseSupport } from '../../graph/ops/sparse.js'
import { read, type Sym } from '../../graph/sym.js'
import { qr } from '../../linalg/factorise.js'
import { largestMask, supportFromMask } from '../../structured/sparse.js'
import { seedTensor } from '../../tensor/seed.js'
import type { Tensor } from '../../tensor/tensor.js'

/** How the entries are chosen. */
export type SparseMethod = 'grebsmo' | 'omp' | 'rp'

/** Options of {@link sparseSupportOf}. */
export interface SupportOptions {
  readonly sparse_method: SparseMethod
  /** How many. */
  readonly num_sparse: number
  readonly tau: number
  readonly inner: number
  readonly added: number
  readonly outer: number
  readonly max_rank: number
  readonly seed: number
  readonly stream: number
}

/**
 * `grebsmo`: the largest of what a greedy bilateral decomposition W ≈ U V + S leaves to S; `omp`: the largest of W;
 * `rp`: any.
 * @param weight `[out, in]`
 * @throws ERR_HEDDLE_ARGUMENT when the decomposition leaves fewer entries to S than are asked for
 */
export async function sparseSupportOf(weight: Tensor, path: string, options: SupportOptions): Promise<SparseSupport> {
  const { sparse_method: method, num_sparse: count, seed, stream } = options
  using words = seedTensor(seed)
  if (method === 'omp') return support(await computed(() => largestMask(read(weight), count)))
  if (method === 'rp')
    return support(await computed((s) => largestMask(randomUniform(s!, stream, weight.shape), count), [words]))
  using sparse = await sparsePart(weight, words, options)
  using entries = await computed(() => sum(greater(abs(read(sparse)), 0)))
  if (entries.item() >= count) return support(await computed(() => largestMask(read(sparse), count)))
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: `dsee: ${path}`,
    expected: `a decomposition whose sparse part has ${count} entries`,
    got: `${entries.item()}`,
    hint: 'Lower tau, max_rank or num_sparse, or take sparse_method omp.',
  })
}

async function support(mask: Tensor): Promise<SparseSupport> {
  using owned = mask
  return await supportFromMask(owned)
}

/**
 * S of W ≈ U V + S + E: U an orthonormal basis of what V picks of W − S, V = Uᵀ (W − S), S all of W − U V from tau on. The
 * rank of U V grows with each round by directions of E, the first columns' own.
 */
async function sparsePart(weight: Tensor, words: Tensor, options: SupportOptions): Promise<Tensor> {
  const { inner, added, outer, max_rank: most, stream } = options
  const [out, width] = weight.shape as [number, number]
  let v = await computed((s) => randomNormal(s!, stream, [1, width]), [words])
  for (let round = 1; ; round += 1) {
    const isLast = round === outer || v.shape[0]! + added > Math.min(most, out, width)
    const next = await computed(() => {
      let [s, right]: [Sym | undefined, Sym] = [undefined, read(v)]
      let left = right
      for (let i = 0; i < inner; i += 1) {
        const rest = s ? sub(read(weight), s) : read(weight)
        left = qr(matmul(rest, right, { transposeB: true })).q
        right = matmul(left, rest, { transposeA: true })
        const error = sub(read(weight), matmul(left, right))
        s = select(less(abs(error), options.tau), 0, error)
      }
      if (isLast) return { s: s!, v: right }
      const error = sub(sub(read(weight), matmul(left, right)), s!)
      // The first rows of R in E = Q R.
      const { q } = qr(slice(error, [{ axis: 1, start: 0, end: added }]))
      return { s: s!, v: concat([right, matmul(q, error, { transposeA: true })], 0) }
    })
    v.dispose()
    v = next.v
    if (isLast) {
      v.dispose()
      return next.s
    }
    next.s.dispose()
  }
}
