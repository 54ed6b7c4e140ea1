/** Writes a network, with its tokenizer if it has one, as a Hugging Face folder, and frees it. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../formats/atomic_file.js'
import { jsonText } from '../formats/json_numbers.js'
import { writeShardedSafetensors } from '../formats/sharded_safetensors.js'
import { pause } from '../graph/pause.js'
import type { Network } from '../nn/network.js'
import { savedStructure } from '../structured/structured_matrix.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'
import { structuresKey } from './build.js'

/** Element types of saved weights. */
export type SavedDType = 'f32' | 'bf16' | 'f16'

/** How a model is saved. */
export interface SaveModelOptions {
  /** Element type in the files; default `f32`. */
  readonly dtype?: SavedDType
  /** Most bytes of one weight file, as a number or as text such as "5GB"; default "50GB", as in transformers. */
  readonly max_shard_size?: number | string
}

/** Writes config.json, model.safetensors (or shards with an index) and the tokenizer, if any. @throws ERR_HEDDLE_IO */
export async function saveNetwork(
  network: Network,
  tokenizer: Tokenizer | undefined,
  folder: string,
  { dtype = 'f32', max_shard_size = '50GB' }: SaveModelOptions = {},
): Promise<void> {
  await mkdir(folder, { recursive: true })
  const entries = network.weights().map(({ name, tensor }) =>
    // Indices stay what they are.
    tensor.dtype.startsWith('f') || tensor.dtype === 'bf16'
      ? { name, tensor: tensor.native, dtype }
      : { name, tensor: tensor.native },
  )
  await writeShardedSafetensors(folder, entries, max_shard_size)
  await tokenizer?.save(folder)
  const torchName = { f32: 'float32', bf16: 'bfloat16', f16: 'float16' }[dtype]
  // Transformers 5 reads `dtype`, earlier ones `torch_dtype`.
  const config = { ...ownConfig(network), dtype: torchName, torch_dtype: torchName, ...structuresOf(network) }
  await writeFileAtomic(join(folder, 'config.json'), `${jsonText(config, network.configSource?.numbers)}\n`)
}

/**
 * A network's config without the defaults that its architecture has added: every reader has them too, and of which of its
 * types they are it knows better.
 */
function ownConfig({ config, configSource }: Network): Network['config'] {
  if (!configSource) return config
  const isDefault = (name: string, value: unknown): boolean =>
    !(name in configSource.config) && value === configSource.completed[name]
  return Object.fromEntries(Object.entries(config).filter(([name, value]) => !isDefault(name, value)))
}

/** What config.json says about weights that are stored in a structure. */
function structuresOf({ sites }: Network): Readonly<Record<string, unknown>> {
  const saved = [...sites.values()].flatMap(({ path, structure }) =>
    structure ? [[path, savedStructure(structure)] as const] : [],
  )
  return { [structuresKey]: saved.length === 0 ? undefined : Object.fromEntries(saved) }
}

/** Frees all weights. */
export async function disposeWeights(network: Network): Promise<void> {
  for (const { tensor } of network.weights()) {
    tensor.dispose()
    await pause()
  }
}
