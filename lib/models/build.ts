/** From an open checkpoint to the network that its config.json describes. */
import { HeddleError } from '../errors.js'
import type { Checkpoint } from '../formats/checkpoint.js'
import type { Network } from '../nn/network.js'
import { loadParameter, parseStructures, restoreStructured } from '../structured/saved_matrices.js'
import type { StructuredMatrix } from '../structured/structured_matrix.js'
import { Tensor } from '../tensor/tensor.js'
import { type Architecture, architectureOf } from './registry.js'
import { checkpointWeights, isParameterOf, type SiteStructures } from './weights.js'

/** In config.json: `{ site: { kind, shape, transposed, config } }` for weights that are stored in a structure. */
export const structuresKey = 'heddle_structures'

/** What of a checkpoint a network is built from. */
export type NetworkSource = Pick<Checkpoint, 'config' | 'path' | 'tensors'> & Partial<Pick<Checkpoint, 'configNumbers'>>

/**
 * Builds the network of one of the `known` architectures over a checkpoint's tensors.
 * @param structures what {@link siteStructures} gives, for checkpoints that have any
 * @throws ERR_HEDDLE_FORMAT naming what is unknown, missing, misshapen or left over
 */
export function buildNetwork<N extends Network>(
  known: readonly Architecture<N>[],
  { config, configNumbers: numbers, path, tensors }: NetworkSource,
  structures: SiteStructures = new Map(),
): N {
  const architecture = architectureOf(known, config, path)
  const { [structuresKey]: _, ...own } = config
  const source = checkpointWeights(tensors, path, architecture, structures)
  const network = architecture.build(own, source, path)
  network.configSource = { config: own, numbers, completed: network.config }
  // Some files keep a second copy of an embedding that is the output projection too. Any other tensor that is left
  // over would be a part of the model that is silently not computed.
  const unused = source.unused(network.embeddingTied ? [`${network.outputSite!.path}.weight`] : [])
  if (unused === undefined) return network
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: path,
    expected: 'no tensors but those that config.json asks for',
    got: `"${unused}"`,
  })
}

/** The weights of a checkpoint that are stored in a structure. @throws ERR_HEDDLE_FORMAT */
export async function siteStructures({
  config,
  path,
  tensors,
}: Pick<Checkpoint, 'config' | 'path' | 'tensors'>): Promise<SiteStructures> {
  const saved = parseStructures(config[structuresKey] ?? {}, `${path}: ${structuresKey}`)
  const structures = new Map<string, StructuredMatrix>()
  for (const [site, each] of Object.entries(saved)) {
    const own = [...tensors].filter(([name]) => isParameterOf(site, name))
    const parameters = own.map(
      ([name, stored]) => [name.slice(site.length + 1), new Tensor(loadParameter(stored))] as const,
    )
    structures.set(site, await restoreStructured(each, new Map(parameters)))
  }
  return structures
}
