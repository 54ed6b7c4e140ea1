/**
 * Low-rank factors straight from an adapter's folder, for methods whose files hold them. Nothing is attached and nothing
 * traced: what an engine that serves hundreds of adapters needs of each is two matrices per module.
 */
import { join } from 'node:path'
import { openSafetensors, type SafetensorsArchive } from '../formats/safetensors.js'
import { pause } from '../graph/pause.js'
import type { Network } from '../nn/network.js'
import type { Site } from '../nn/site.js'
import { sameShape } from '../tensor/dtype.js'
import { Tensor } from '../tensor/tensor.js'
import { disposeFactors, type FactorTensors } from './as_lora.js'
import { networkSites } from './attachment.js'
import type { Parametrization, StoredFactors } from './parametrization.js'
import { parameterPrefix, readMethod, weightsFile } from './peft_folder.js'
import { selectSites } from './target_modules.js'

/** A site's change ΔW = scale · b a. */
export interface ScaledFactors extends FactorTensors {
  readonly scale: number
}

/** A site that is adapted, and what its file is expected to hold. */
interface Wanted extends StoredFactors {
  readonly site: Site
  readonly aShape: readonly number[]
  readonly bShape: readonly number[]
}

/**
 * The factors of an adapter by module path, whose tensors are views of the file and the caller's. Undefined where the
 * file holds anything but the factors of the modules that its config names: `Adapter.load` knows what that is, or what is
 * wrong with it.
 * @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT, ERR_HEDDLE_ARGUMENT as `Adapter.load` does
 */
export async function storedFactorsOf(
  network: Network,
  folder: string,
): Promise<Map<string, ScaledFactors> | undefined> {
  const { method } = await readMethod(folder)
  const wanted = await wantedOf(network, method)
  if (!wanted) return undefined
  const archive = await openSafetensors(join(folder, weightsFile))
  try {
    return fits(archive, wanted) ? await loaded(archive, wanted) : undefined
  } finally {
    archive.close()
  }
}

/** Undefined where the method has more than factors at some site, or anything besides. */
async function wantedOf(network: Network, method: Parametrization): Promise<Wanted[] | undefined> {
  const sites = networkSites(network)
  const chosen = new Set(selectSites(sites, method.targetModules, method.targetFilter))
  if (method.maskedModules?.length || method.shared) return undefined
  const wanted: Wanted[] = []
  for (const site of sites) {
    const isTarget = chosen.has(site)
    if (method.trainedParts?.(site, isTarget).length) return undefined
    if (!isTarget) continue
    const { storedFactors, parameters, buffers } = method.plan(site)
    if (!storedFactors || Object.keys(parameters).length !== 2 || buffers) return undefined
    const { a, b } = storedFactors
    wanted.push({ ...storedFactors, site, aShape: parameters[a]!.shape, bShape: parameters[b]!.shape })
    await pause()
  }
  return wanted
}

const nameOf = (site: Site, suffix: string): string => `${parameterPrefix}${site.path}.${suffix}`

/** Whether the file holds just what is wanted. */
const fits = ({ tensors }: SafetensorsArchive, wanted: readonly Wanted[]): boolean =>
  tensors.size === 2 * wanted.length &&
  wanted.every(({ site, a, b, aShape, bShape }) => {
    const [storedA, storedB] = [a, b].map((suffix) => tensors.get(nameOf(site, suffix)))
    return storedA && storedB && sameShape(storedA.shape, aShape) && sameShape(storedB.shape, bShape)
  })

async function loaded({ tensors }: SafetensorsArchive, wanted: readonly Wanted[]): Promise<Map<string, ScaledFactors>> {
  const load = (site: Site, suffix: string): Tensor => new Tensor(tensors.get(nameOf(site, suffix))!.load('f32'))
  const factors = new Map<string, ScaledFactors>()
  try {
    for (const { site, a, b, scale } of wanted) {
      factors.set(site.path, { a: load(site, a), b: load(site, b), scale })
      await pause()
    }
    return factors
  } catch (error) {
    disposeFactors(factors)
    throw error
  }
}
