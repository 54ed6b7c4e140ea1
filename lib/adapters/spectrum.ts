/** The singular vectors of a site's weight, the same whenever they are asked for. */
import { throwIfAborted } from '../errors.js'
import { computed } from '../graph/computed.js'
import { abs, mul, sign } from '../graph/ops/elementwise.js'
import { gatherLast, slice } from '../graph/ops/index.js'
import { argmax, reshape } from '../graph/ops/reduce.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import { type Svd, svd, svdvals } from '../linalg/factorise.js'
import { truncatedSvd } from '../linalg/low_rank.js'
import type { Site, SiteKind } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'
import { asMatrix, type MatrixShape, matrixShape, ofSite } from './low_rank_change.js'
import type { ResolveContext } from './parametrization.js'

/** Up to this size a whole decomposition is quick enough. */
const wholeSize = 1024

/** Of a larger matrix, the part of the spectrum from which on the whole decomposition is made. */
const wholePart = 1 / 4

/**
 * The r leading singular values and vectors of a weight as `[out, inner]`: u `[out, r]`, s `[r]`, vh `[r, inner]`,
 * f32, the largest element of each row of vh positive. Leading parts of large matrices come from a randomised
 * decomposition that always begins the same. Running it throws ERR_HEDDLE_ARGUMENT when an element is not finite: see
 * {@link ofSite}.
 */
export function leadingSvd(weight: Sym, shape: MatrixShape, r: number): Svd<Sym> {
  const p = Math.min(shape.out, shape.inner)
  const matrix = asMatrix(weight, shape)
  const isWhole = p <= wholeSize || r > wholePart * p
  return signed(isWhole ? firstOf(svd(matrix), r) : truncatedSvd(matrix, { rank: r, iterations: 4 }))
}

/** All singular values of the weight as `[out, inner]`, descending, f32. @throws ERR_HEDDLE_ARGUMENT when an element is not finite */
export const singularValues = (weight: Tensor, shape: MatrixShape, site: Pick<Site, 'path'>): Promise<Tensor> =>
  ofSite(site, () => computed(() => svdvals(asMatrix(read(weight), shape))))

/** Shows all singular values of each site's weight, descending. @throws as {@link singularValues}, and ERR_HEDDLE_ABORTED */
export async function eachSpectrum(
  method: string,
  { sites, watch, report }: Pick<ResolveContext, 'sites' | 'watch' | 'report'>,
  kinds: readonly SiteKind[],
  visit: (site: Site, spectrum: readonly number[]) => void,
): Promise<void> {
  for (const [i, site] of sites.entries()) {
    throwIfAborted(watch.signal, method)
    using spectrum = await singularValues(site.weight, matrixShape(method, site, kinds), site)
    visit(site, [...((await spectrum.data()) as Float32Array)])
    report({ unit: 'modules', done: i + 1, total: sites.length })
    await pause()
  }
}

/** The r leading ones of a whole decomposition. */
export function firstOf({ u, s, vh }: Svd<Sym>, r: number): Svd<Sym> {
  const first = (axis: number) => [{ axis, start: 0, end: r }]
  return { u: slice(u, first(1)), s: slice(s, first(0)), vh: slice(vh, first(0)) }
}

/** A singular pair is the same with both signs turned; this fixes them. */
function signed({ u, s, vh }: Svd<Sym>): Svd<Sym> {
  const signs = sign(gatherLast(vh, argmax(abs(vh))))
  return { u: mul(u, signs), s, vh: mul(vh, reshape(signs, [-1, 1])) }
}
