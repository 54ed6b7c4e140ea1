/** The architectures that Heddle builds, found by what a checkpoint's config.json calls itself. One line for each. */
import { HeddleError } from '../errors.js'
import type { CausalLm, WeightSource } from './causal_lm.js'
import { llama } from './llama.js'

interface Architecture {
  /** `model_type` in config.json. */
  readonly modelType: string
  /** Its name among `architectures` in config.json. */
  readonly className: string
  /** Checks the configuration and builds the network over the checkpoint's tensors. */
  readonly build: (configuration: unknown, weight: WeightSource, place: string) => CausalLm
}

const known: readonly Architecture[] = [{ modelType: 'llama', className: 'LlamaForCausalLM', build: llama }]

/**
 * The builder for a config.json.
 * @param place file or folder of the checkpoint, for messages
 * @throws ERR_HEDDLE_FORMAT naming an architecture that is not known, with those that are
 */
export function architectureOf(configuration: Readonly<Record<string, unknown>>, place: string): Architecture {
  const { model_type: modelType, architectures } = configuration
  const classNames = Array.isArray(architectures) && architectures.length > 0 ? architectures : undefined
  const found =
    modelType === undefined
      ? known.find(({ className }) => classNames?.includes(className))
      : known.find((candidate) => candidate.modelType === modelType)
  if (found && (classNames?.includes(found.className) ?? true)) return found
  const [expected, got] = found
    ? [found.className, classNames]
    : [`a model_type of ${known.map((each) => each.modelType).join(', ')}`, modelType ?? classNames]
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: `${place}: architecture`,
    expected,
    got: JSON.stringify(got) ?? 'a config.json without model_type',
  })
}
