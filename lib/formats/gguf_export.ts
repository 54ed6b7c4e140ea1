/** Models and adapters as GGUF files for llama.cpp and what is built on it (Ollama, LM Studio, node-llama-cpp). */
import { basename } from 'node:path'
import { z } from 'zod'
import type { Adapter } from '../adapters/adapter.js'
import { scaleAt } from '../adapters/methods/lora.js'
import { changesBase, type LoraConfig } from '../adapters/methods/lora_config.js'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { mul } from '../graph/ops/elementwise.js'
import { read } from '../graph/sym.js'
import type { Model } from '../model.js'
import type { Network } from '../nn/network.js'
import { type Tensor, tensor } from '../tensor/tensor.js'
import {
  expectSaid,
  type GgufArchitecture,
  ggufArchitectureOf,
  ggufSettings,
  headDimOf,
  interleavedHeads,
} from './gguf_architectures.js'
import { ggufPlace, isShifted } from './gguf_names.js'
import { ropeFactors } from './gguf_rope.js'
import { encodeGgufValues, type GgufEntry, type GgufWritable, writeGguf } from './gguf_writer.js'

const exportSchema = z.strictObject({ type: z.enum(['f32', 'f16', 'bf16', 'q8_0']).default('f16') })

/** Options of {@link exportGguf}. */
export interface ExportGgufOptions {
  /** How matrices are stored, default `f16`; vectors are `f32` in any case, as llama.cpp wants them. */
  readonly type?: 'f32' | 'f16' | 'bf16' | 'q8_0'
}

/** `general.file_type`. */
const fileTypes = { f32: 0, f16: 1, q8_0: 7, bf16: 32 } as const

/**
 * Writes a model with its tokenizer as one GGUF file that llama.cpp loads. Merged adapters are part of it, others are
 * not. Tensors are streamed: it takes memory for a few rows. The file is whole or not there.
 * @throws ERR_HEDDLE_FORMAT for an architecture or a tokenizer that llama.cpp has no form for, ERR_HEDDLE_ARGUMENT on a
 *   weight that is not finite with `q8_0`, ERR_HEDDLE_IO
 */
export async function exportGguf(model: Model, path: string, options: ExportGgufOptions = {}): Promise<void> {
  const { type } = parseConfig('exportGguf', exportSchema, options)
  const { network, tokenizer, source } = model
  const { config } = network
  const architecture = ggufArchitectureOf(config, source)
  const settings = ggufSettings(architecture, config)
  const general = encodeGgufValues({
    'general.architecture': { type: 'string', value: architecture.name },
    'general.type': { type: 'string', value: 'model' },
    'general.name': { type: 'string', value: basename(source, '.gguf') },
    'general.file_type': { type: 'u32', value: fileTypes[type] },
    'general.quantization_version': { type: 'u32', value: 2 },
    ...settings,
  })
  const entries = network.weights().map((weight) => modelEntry(architecture, config, weight, type))
  expectSaid(architecture, config, {
    place: source,
    values: new Map(Object.entries(settings).flatMap(([key, each]) => ('value' in each ? [[key, each.value]] : []))),
    tensors: new Set(entries.map(({ name }) => name)),
  })
  const vocabulary = await tokenizer.ggufVocabulary(network.vocabularySize)
  const divisors = [...ropeFactors(architecture.name, config, headDimOf(config))].map(
    ([name, factors]) => [name, tensor(factors)] as const,
  )
  try {
    for (const [name, { native }] of divisors) entries.push({ name, tensor: native, encoding: 'f32' })
    await writeGguf(path, [general, vocabulary], entries)
  } finally {
    for (const [, each] of divisors) each.dispose()
  }
}

function modelEntry(
  architecture: GgufArchitecture,
  config: Network['config'],
  { name, tensor: weight }: { readonly name: string; readonly tensor: Tensor },
  type: NonNullable<ExportGgufOptions['type']>,
): GgufEntry {
  const place = ggufPlace(architecture, name)
  const heads = interleavedHeads(architecture, place.part, config)
  const columns = weight.shape.length < 2 ? undefined : weight.shape.at(-1)!
  // What does not fill whole blocks stays wider, as in llama.cpp's conversion.
  const encoding = columns === undefined ? 'f32' : type === 'q8_0' && columns % 32 !== 0 ? 'f16' : type
  return {
    name: place.name,
    tensor: weight.native,
    encoding,
    ...(heads === undefined ? {} : { interleavedHeads: heads }),
    ...(isShifted(architecture, place.part, name.slice(name.lastIndexOf('.') + 1)) ? { addend: 1 } : {}),
  }
}

/**
 * Writes a LoRA adapter as a GGUF file for the GGUF file of its base model: llama.cpp's `--lora`, Ollama's `ADAPTER`.
 * @throws ERR_HEDDLE_ARGUMENT for an adapter that is not plain LoRA on linear modules, ERR_HEDDLE_FORMAT for an
 *   architecture that llama.cpp has no form for, ERR_HEDDLE_IO
 */
export async function exportGgufLora(adapter: Adapter, path: string): Promise<void> {
  const { config } = adapter.model
  const architecture = ggufArchitectureOf(config, adapter.baseModel || 'the base model')
  const alpha = Number(adapter.method.config.lora_alpha)
  const entries: GgufEntry[] = []
  const scaled: Tensor[] = []
  try {
    for (const [module, pair] of loraPairs(adapter)) {
      if (adapter.model.embeddingTied && module === adapter.model.outputSite?.path)
        throw misuse('an output projection of its own', 'one that shares its weight with the embedding')
      const place = ggufPlace(architecture, `${module}.weight`)
      const heads = interleavedHeads(architecture, place.part, config)
      // llama.cpp scales by alpha / rank, whatever the rank; other scales go into B.
      const factor = (pair.scale * pair.b.shape[1]!) / alpha
      const b = factor === 1 ? pair.b : await computed(() => mul(read(pair.b), factor))
      if (b !== pair.b) scaled.push(b)
      entries.push({ name: `${place.name}.lora_a`, tensor: pair.a.native, encoding: 'f32' })
      entries.push({
        name: `${place.name}.lora_b`,
        tensor: b.native,
        encoding: 'f32',
        ...(heads === undefined ? {} : { interleavedHeads: heads }),
      })
    }
    const values: Record<string, GgufWritable> = {
      'general.architecture': { type: 'string', value: architecture.name },
      'general.type': { type: 'string', value: 'adapter' },
      'adapter.type': { type: 'string', value: 'lora' },
      'adapter.lora.alpha': { type: 'f32', value: alpha },
    }
    await writeGguf(path, [encodeGgufValues(values)], entries)
  } finally {
    for (const each of scaled) each.dispose()
  }
}

interface LoraPair {
  /** `[r, in]` */
  readonly a: Tensor
  /** `[out, r]` */
  readonly b: Tensor
  readonly scale: number
}

/** The factors of every module that the adapter acts on. @throws ERR_HEDDLE_ARGUMENT when it has anything else */
function loraPairs(adapter: Adapter): Map<string, LoraPair> {
  const { method } = adapter
  if (method.name !== 'lora') throw misuse('a plain LoRA adapter', method.name)
  const config = method.config as LoraConfig
  if (changesBase(config)) throw misuse('an adapter of the unchanged base model', `init ${config.init_lora_weights}`)
  const parameters = adapter.parameters()
  for (const name of parameters.keys())
    if (!/\.lora_[AB]\.weight$/.test(name)) throw misuse('an adapter of linear modules and no more', `"${name}"`)
  const pair = (module: string): LoraPair => ({
    a: parameters.get(`${module}.lora_A.weight`)!,
    b: parameters.get(`${module}.lora_B.weight`)!,
    scale: scaleAt(config, module).scale,
  })
  return new Map(adapter.sitePaths.map((module) => [module, pair(module)]))
}

const misuse = (expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'exportGgufLora', expected, got })
