/** A checkpoint with random weights, to train a model from nothing. */
import { join } from 'node:path'
import { writeJsonAtomic } from '../formats/atomic_file.js'
import { computed } from '../graph/computed.js'
import { mul } from '../graph/ops/elementwise.js'
import { randomNormal } from '../graph/ops/random.js'
import { addon } from '../native.js'
import type { Network } from '../nn/network.js'
import { elementCount } from '../tensor/dtype.js'
import { seedTensor } from '../tensor/seed.js'
import { type Tensor, tensor, zeros } from '../tensor/tensor.js'
import { type Architecture, architectureOf, decoders, encoders, imageClassifiers } from './registry.js'
import type { Initial, WeightSource } from './weights.js'

/** Options of {@link writeRandomCheckpoint}. */
export interface RandomCheckpointOptions {
  /** Default 0. */
  readonly seed?: number
  /** Element type in the file; default `f32`. */
  readonly dtype?: 'f32' | 'bf16' | 'f16'
}

/**
 * Writes `config.json` and `model.safetensors` with weights as transformers draws them at first: matrices normal with
 * deviation 0.02, norms 1, biases 0. The folder still needs a tokenizer.
 * @param config a `config.json` of any architecture that Heddle knows; without `model_type`, a Llama's
 * @throws ERR_HEDDLE_FORMAT naming the field of `config` that is wrong, ERR_HEDDLE_IO
 */
export async function writeRandomCheckpoint(
  folder: string,
  config: Readonly<Record<string, unknown>>,
  { seed = 0, dtype = 'f32' }: RandomCheckpointOptions = {},
): Promise<void> {
  const named = { model_type: 'llama', ...config }
  const parameters = parametersOf(named)
  const matrices = parameters.filter(({ initial }) => initial === 'normal')
  using key = seedTensor(seed)
  const drawn = await computed(
    (words) => matrices.map(({ shape }, i) => mul(randomNormal(words!, i, shape), 0.02)),
    [key],
  )
  const byName = new Map(matrices.map(({ name }, i) => [name, drawn[i]!]))
  const entries = parameters.map((parameter) => {
    const value = byName.get(parameter.name) ?? filled(parameter)
    return { name: parameter.name, tensor: value.native, dtype }
  })
  await writeJsonAtomic(join(folder, 'config.json'), named)
  await addon.writeSafetensors(join(folder, 'model.safetensors'), entries, { format: 'pt' })
  for (const matrix of drawn) matrix.dispose()
}

interface Parameter {
  readonly name: string
  readonly shape: readonly number[]
  readonly initial: Initial
}

/** What the architecture asks for when it is built, in its order. */
function parametersOf(config: Readonly<Record<string, unknown>>): Parameter[] {
  const asked: Parameter[] = []
  // Builders only hand tensors on, so that one number can stand for all.
  const stand = zeros([1])
  const source: WeightSource = {
    has: () => false,
    take: (name, shape, initial) => {
      asked.push({ name, shape, initial })
      return stand
    },
  }
  const known: readonly Architecture<Network>[] = [...decoders, ...encoders, ...imageClassifiers]
  architectureOf(known, config, 'config.json').build(config, source, 'config.json')
  stand.dispose()
  return asked
}

const filled = ({ shape, initial }: Parameter): Tensor =>
  tensor(new Float32Array(elementCount(shape)).fill(Number(initial === 'ones')), [...shape])
