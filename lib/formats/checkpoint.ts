/** A pretrained model as files: a Hugging Face folder, a GGUF file or a hub id, all seen in Hugging Face's terms. */
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { HeddleError } from '../errors.js'
import type { TokenizerSource } from '../tokenize/tokenizer.js'
import { formatError } from './byte_source.js'
import { openGguf } from './gguf.js'
import { ggufConfig, ggufFloats } from './gguf_architectures.js'
import { ggufTensors } from './gguf_names.js'
import { fetchFromHub, type HubOptions, isHubId } from './hub.js'
import { type NumberTexts, numberTexts } from './json_numbers.js'
import { openSafetensors } from './safetensors.js'
import type { StoredTensor } from './tensor_archive.js'

export type { StoredTensor } from './tensor_archive.js'

/** A JSON object, such as a config.json, not yet validated. */
export type JsonObject = Readonly<Record<string, unknown>>

/** An open checkpoint; nothing of its weights has been read. */
export interface Checkpoint {
  /** As the user named it. */
  readonly modelId: string
  /** The folder or file that it was read from. */
  readonly path: string
  /** In the shape of Hugging Face's config.json. */
  readonly config: JsonObject
  /** How that file writes its numbers. */
  readonly configNumbers: NumberTexts
  readonly generationConfig: JsonObject
  /** By Hugging Face's parameter names. */
  readonly tensors: ReadonlyMap<string, StoredTensor>
  readonly tokenizerSource: TokenizerSource
  /** Lets the files go; tensors already loaded stay valid. */
  close(): void
}

/**
 * Opens a model: a folder with config.json and safetensors, a `.gguf` file, or a hub id.
 * @throws ERR_HEDDLE_ARGUMENT when `source` is none of these, ERR_HEDDLE_FORMAT when a file is damaged,
 *   ERR_HEDDLE_IO when one is missing, ERR_HEDDLE_NETWORK and ERR_HEDDLE_ABORTED from the hub
 */
export async function openCheckpoint(source: string, options: HubOptions = {}): Promise<Checkpoint> {
  const stats = await stat(source).catch(() => undefined)
  if (stats?.isDirectory()) return openFolder(source, source)
  if (stats?.isFile() && source.toLowerCase().endsWith('.gguf')) return openGgufModel(source)
  if (!stats && isHubId(source) && source.includes('/') && !source.endsWith('.gguf'))
    return openFolder(await fetchFromHub(source, options), source)
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'model',
    expected: 'a model folder, a .gguf file, or a hub id such as "HuggingFaceTB/SmolLM2-135M-Instruct"',
    got: stats ? `the file "${source}"` : `"${source}", which does not exist`,
  })
}

async function openFolder(folder: string, modelId: string): Promise<Checkpoint> {
  const path = join(folder, 'config.json')
  const text = await readText(path)
  if (text === undefined)
    throw new HeddleError('ERR_HEDDLE_IO', { place: folder, expected: 'a model folder with config.json', got: 'none' })
  const config = parsed(text, path, 'object')
  const generationConfig = (await readJsonFile(join(folder, 'generation_config.json'))) ?? {}
  const archive = await openSafetensors(await weightsOf(folder))
  return {
    modelId,
    path: folder,
    config,
    configNumbers: numberTexts(text),
    generationConfig,
    tensors: archive.tensors,
    tokenizerSource: { kind: 'folder', path: folder },
    close: () => archive.close(),
  }
}

async function weightsOf(folder: string): Promise<string> {
  for (const name of ['model.safetensors', 'model.safetensors.index.json'])
    if (await exists(join(folder, name))) return join(folder, name)
  const isPickle = await exists(join(folder, 'pytorch_model.bin'))
  throw new HeddleError('ERR_HEDDLE_IO', {
    place: folder,
    expected: 'model.safetensors, whole or in shards with an index',
    got: isPickle ? 'only pytorch_model.bin' : 'neither',
    ...(isPickle ? { hint: 'Save it with save_pretrained(…, safe_serialization=True)' } : {}),
  })
}

async function openGgufModel(path: string): Promise<Checkpoint> {
  const file = await openGguf(path)
  try {
    const config = await ggufConfig(file)
    return {
      modelId: path,
      path,
      config,
      configNumbers: ggufFloats(config),
      generationConfig: { bos_token_id: config.bos_token_id, eos_token_id: config.eos_token_id },
      tensors: ggufTensors(file, config),
      tokenizerSource: { kind: 'gguf', path },
      close: () => file.close(),
    }
  } catch (error) {
    file.close()
    throw error
  }
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  )

type JsonKind = 'object' | 'array'

/** A JSON object (or array) from a file, or undefined when there is no such file. @throws ERR_HEDDLE_FORMAT */
export async function readJsonFile(path: string, kind: JsonKind = 'object'): Promise<JsonObject | undefined> {
  const text = await readText(path)
  return text === undefined ? undefined : parsed(text, path, kind)
}

const readText = async (path: string): Promise<string | undefined> =>
  (await exists(path)) ? await readFile(path, 'utf8') : undefined

function parsed(text: string, path: string, kind: JsonKind): JsonObject {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && Array.isArray(value) === (kind === 'array'))
      return value as JsonObject
  } catch (cause) {
    throw formatError(path, 'JSON', cause instanceof Error ? cause.message : String(cause))
  }
  throw formatError(path, `a JSON ${kind}`, 'another JSON value')
}
