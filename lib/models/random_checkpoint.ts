/** A checkpoint with random weights, to train a model from nothing. */
import { join } from 'node:path'
import { writeJsonAtomic } from '../formats/atomic_file.js'
import { mul } from '../graph/ops/elementwise.js'
import { randomNormal } from '../graph/ops/random.js'
import { program } from '../graph/program.js'
import { addon } from '../native.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import { llamaParameterShapes } from './llama.js'

/** Options of {@link writeRandomCheckpoint}. */
export interface RandomCheckpointOptions {
  /** Default 0. */
  readonly seed?: number
  /** Element type in the file; default `f32`. */
  readonly dtype?: 'f32' | 'bf16' | 'f16'
}

/**
 * Writes `config.json` and `model.safetensors` of a Llama with weights as transformers draws them at first: matrices
 * normal with deviation 0.02, norms 1. The folder still needs a tokenizer.
 * @param config a Llama `config.json`
 * @throws ERR_HEDDLE_FORMAT naming the field of `config` that is wrong, ERR_HEDDLE_IO
 */
export async function writeRandomCheckpoint(
  folder: string,
  config: Readonly<Record<string, unknown>>,
  { seed = 0, dtype = 'f32' }: RandomCheckpointOptions = {},
): Promise<void> {
  const shapes = [...llamaParameterShapes(config)]
  const matrices = shapes.filter(([, shape]) => shape.length === 2)
  const draw = program((key) => matrices.map(([, shape], i) => mul(randomNormal(key!, i, shape), 0.02)))
  const drawn = await draw(tensor(Uint32Array.of(seed >>> 0, Math.floor(seed / 2 ** 32))))
  const byName = new Map(matrices.map(([name], i) => [name, drawn[i]!]))
  const ones = ([size]: readonly number[]): Tensor => tensor(new Float32Array(size!).fill(1))
  const entries = shapes.map(([name, shape]) => ({ name, tensor: (byName.get(name) ?? ones(shape)).native, dtype }))
  await writeJsonAtomic(join(folder, 'config.json'), { model_type: 'llama', ...config })
  await addon.writeSafetensors(join(folder, 'model.safetensors'), entries, { format: 'pt' })
  draw.dispose()
  for (const matrix of drawn) matrix.dispose()
}
