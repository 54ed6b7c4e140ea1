/** Parameter names between GGUF and Hugging Face. */
import { formatError } from './byte_source.js'
import type { JsonObject } from './checkpoint.js'
import type { GgufFile } from './gguf.js'
import { type GgufArchitecture, ggufArchitecture, interleavedHeads } from './gguf_architectures.js'
import { ropeTensorNames } from './gguf_rope.js'
import type { StoredTensor } from './tensor_archive.js'

/** Where a parameter stands in a GGUF file. */
export interface GgufPlace {
  readonly name: string
  /** Module name inside its layer, e.g. `attn_q`. */
  readonly part: string
}

/** The weights under Hugging Face's names; rotary rows come back from llama.cpp's order. @throws ERR_HEDDLE_FORMAT */
export function ggufTensors(file: GgufFile, config: JsonObject): ReadonlyMap<string, StoredTensor> {
  const architecture = ggufArchitecture(file)
  const tensors = new Map<string, StoredTensor>()
  for (const info of file.tensors.values()) {
    if (ropeTensorNames.includes(info.name)) continue
    const [, layer, part = '', kind] = /^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/.exec(info.name) ?? []
    const module = (layer === undefined ? architecture.top : architecture.layer).get(part)
    if (!module)
      throw formatError(`${file.path}: ${info.name}`, `a tensor of the ${architecture.name} architecture`, 'another')
    const name = `${layer === undefined ? '' : `model.layers.${Number(layer)}.`}${module}.${kind}`
    const heads = interleavedHeads(architecture, part, config)
    const addend = isShifted(architecture, part, kind) ? -1 : undefined
    tensors.set(name, { ...file.tensor(info, { interleavedHeads: heads, addend }), name })
  }
  return tensors
}

/** The place of a parameter in a GGUF file. @throws ERR_HEDDLE_FORMAT for one that the architecture has no place for */
export function ggufPlace(architecture: GgufArchitecture, name: string): GgufPlace {
  const [, layer, module = '', kind] = /^(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)$/.exec(name) ?? []
  const names = layer === undefined ? architecture.top : architecture.layer
  const part = [...names].find(([, huggingFace]) => huggingFace === module)?.[0]
  if (part === undefined)
    throw formatError(name, `a parameter that GGUF's ${architecture.name} architecture has`, 'another')
  return { name: `${layer === undefined ? '' : `blk.${layer}.`}${part}.${kind}`, part }
}

/** Whether a file's numbers are larger by one than the checkpoint's. */
export const isShifted = ({ normsPlusOne }: GgufArchitecture, part: string, kind: string | undefined): boolean =>
  normsPlusOne && kind === 'weight' && part.endsWith('norm')
