/** Tuples of texts that an encoder sees together: all first texts of a batch, then all second ones, and so on. */
import { div, maximum, mul, sqrt, square } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import { type Encoder, type Pooling, pool } from '../models/encoder.js'
import type { Forward } from '../nn/site.js'
import type { Syms } from './objective.js'

/** One vector of length 1 for each text, `[texts, hidden]`, from ids and mask `i32 [texts, t]`. */
export async function unitVectors(
  network: Encoder,
  { ids, mask }: Syms,
  forward: Forward,
  pooling: Pooling,
): Promise<Sym> {
  const pooled = pool(await network.hidden({ ids: ids!, mask: mask! }, forward), mask!, pooling)
  // The length of a row of padding is 0 or that of a constant; either way it weighs nothing later.
  return div(pooled, sqrt(maximum(sum(square(pooled), { axes: [-1], keepDims: true }), 1e-24)))
}

/** The n-th of the tuple's members, `[tuples, hidden]`, of `[members · tuples, hidden]`. */
export const member = (vectors: Sym, index: number, tuples: number): Sym =>
  slice(vectors, [{ axis: 0, start: index * tuples, end: (index + 1) * tuples }])

/** Cosine of each pair of rows of unit vectors, `[n]`. */
export const rowCosines = (a: Sym, b: Sym): Sym => reshape(sum(mul(a, b), { axes: [-1] }), [-1])
