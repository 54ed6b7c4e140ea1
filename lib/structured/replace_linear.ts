/** Puts structured matrices in the places of a network's linear weights. */
import type { TargetModules } from '../adapters/parametrization.js'
import { selectSites } from '../adapters/target_modules.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { copy, transpose } from '../graph/ops/index.js'
import { pause } from '../graph/pause.js'
import { read } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import { absentWeight, linearShape, oriented, type Site } from '../nn/site.js'
import { sameShape, shapeText } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Projection, StructuredMatrix } from './structured_matrix.js'

/** What takes the place of a weight: a matrix, or a projection with its error. */
export type Replacement = StructuredMatrix | Projection

/** A site whose weight was replaced. */
export interface ReplacedLinear {
  readonly matrix: StructuredMatrix
  /** ‖W − Ŵ‖ / ‖W‖ where the replacement was a projection. */
  readonly relativeError?: number
}

/**
 * Replaces the weights of linear sites by structured matrices, which from then on are computed with, trained (by
 * `train(model, { full: true })` or any program that takes their parameters as leaves) and saved in their place. The
 * dense weights are freed unless another site shares them.
 * @param targets which sites, as `target_modules` of adapters: names, a regular expression, or "all-linear"
 * @param make gives the replacement of a weight `[out, in]`, e.g. `(weight) => monarchMatrix.fromDense(weight, {})`
 * @returns the replaced sites by path
 * @throws ERR_HEDDLE_ARGUMENT when a target is not a linear site with a dense weight; ERR_HEDDLE_SHAPE
 */
export async function replaceLinear(
  { network }: { readonly network: Network },
  targets: TargetModules,
  make: (weight: Tensor, site: Site) => Replacement | Promise<Replacement>,
): Promise<ReadonlyMap<string, ReplacedLinear>> {
  const chosen = selectSites(network.sites.values(), targets)
  for (const { path, kind, structure } of chosen)
    if (kind !== 'linear' || structure)
      throw misuse(path, 'a linear site with a dense weight', structure ? `one that is ${structure.kind}` : kind)
  const replaced = new Map<string, ReplacedLinear>()
  for (const site of chosen) {
    const made = await replacementOf(site, make)
    const { matrix, ...error } = 'matrix' in made ? made : { matrix: made }
    if (!sameShape(matrix.shape, linearShape(site)))
      throw misuse(site.path, `a matrix ${shapeText(linearShape(site))}`, shapeText(matrix.shape), 'ERR_HEDDLE_SHAPE')
    const { weight } = site
    const isFree = !isShared(network, site)
    site.structure = matrix
    site.weight = absentWeight(site, matrix, weight.shape)
    if (isFree) weight.dispose()
    replaced.set(site.path, 'relativeError' in error ? { matrix, relativeError: error.relativeError } : { matrix })
    await pause()
  }
  return replaced
}

/**
 * Writes the weights of structured sites out again: {@link replaceLinear} backwards, with the matrices as they are by
 * now. The matrices are freed; dense sites among the targets stay as they are.
 * @param targets which sites, as for {@link replaceLinear}
 * @throws ERR_HEDDLE_ARGUMENT when none of the targets has a structure
 */
export async function densifyLinear({ network }: { readonly network: Network }, targets: TargetModules): Promise<void> {
  const chosen = selectSites(network.sites.values(), targets)
  if (!chosen.some(({ structure }) => structure))
    throw misuse('densifyLinear', 'a site with a structured weight', chosen.map(({ path }) => path).join(', '))
  for (const site of chosen) {
    const { structure } = site
    if (!structure) continue
    site.weight = await computed(() => copy(oriented(site, structure.toDense())))
    site.structure = undefined
    structure.dispose()
    await pause()
  }
}

async function replacementOf(
  site: Site,
  make: (weight: Tensor, site: Site) => Replacement | Promise<Replacement>,
): Promise<Replacement> {
  if (!site.transposed) return make(site.weight, site)
  using weight = await computed(() => transpose(read(site.weight)))
  return await make(weight, site)
}

const isShared = ({ sites, outputSite }: Network, site: Site): boolean =>
  [...sites.values(), ...(outputSite ? [outputSite] : [])].some(
    (other) => other !== site && other.weight === site.weight,
  )

const misuse = (
  place: string,
  expected: string,
  got: string,
  code: 'ERR_HEDDLE_ARGUMENT' | 'ERR_HEDDLE_SHAPE' = 'ERR_HEDDLE_ARGUMENT',
): HeddleError => new HeddleError(code, { place, expected, got })
