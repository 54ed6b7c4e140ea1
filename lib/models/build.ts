/** From an open checkpoint to the network that its config.json describes. */
import { HeddleError } from '../errors.js'
import type { Checkpoint } from '../formats/checkpoint.js'
import type { Network } from '../nn/network.js'
import { parseStructures } from '../structured/saved_matrices.js'
import { type Architecture, architectureOf } from './registry.js'
import { checkpointWeights } from './weights.js'

/** In config.json: `{ site: { kind, shape, transposed, config } }` for weights that are stored in a structure. */
export const structuresKey = 'heddle_structures'

/**
 * Builds the network of one of the `known` architectures over a checkpoint's tensors.
 * @throws ERR_HEDDLE_FORMAT naming what is unknown, missing, misshapen or left over
 */
export function buildNetwork<N extends Network>(
  known: readonly Architecture<N>[],
  { config, path, tensors }: Pick<Checkpoint, 'config' | 'path' | 'tensors'>,
): N {
  const architecture = architectureOf(known, config, path)
  const { [structuresKey]: saved = {}, ...own } = config
  const structures = parseStructures(saved, `${path}: ${structuresKey}`)
  const source = checkpointWeights(tensors, path, architecture, structures)
  const network = architecture.build(own, source, path)
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
