/** A tokenizer as the metadata of a GGUF file. Runs in the worker. */
import { formatError, openBlockingSource } from '../formats/byte_source.js'
import { readGgufHeader } from '../formats/gguf.js'
import { encodeGgufValues, type GgufBlock, type GgufWritable } from '../formats/gguf_writer.js'
import { preTokenizationName } from './gguf_tokenizer.js'
import { tokenKinds } from './gguf_vocabulary_parts.js'
import type { TokenizerSource } from './protocol.js'
import type { Json, TokenizerFiles } from './tokenizer_files.js'

const { normal, control, userDefined, unused } = tokenKinds

/**
 * The keys `tokenizer.*`: those of the GGUF file that the tokenizer came from, byte for byte, or made from tokenizer.json.
 * @param size rows of the model's embedding; ids without a token become unused ones
 * @throws ERR_HEDDLE_FORMAT for a tokenizer that llama.cpp has no name for
 */
export async function ggufVocabulary(source: TokenizerSource, files: TokenizerFiles, size: number): Promise<GgufBlock> {
  return source.kind === 'gguf' ? copyValues(source.path) : encodeGgufValues(valuesOf(files, size))
}

async function copyValues(path: string): Promise<GgufBlock> {
  const source = openBlockingSource(path)
  try {
    const { places } = await readGgufHeader(source)
    const chosen = [...places].filter(([key]) => key.startsWith('tokenizer.')).map(([, place]) => place)
    const parts = chosen.map(({ start, end }) => new Uint8Array(source.read(start, end - start)))
    return { count: parts.length, bytes: Uint8Array.from(Buffer.concat(parts)) }
  } finally {
    source.close()
  }
}

interface AddedToken {
  readonly id: number
  readonly content: string
  readonly special?: boolean
}

function valuesOf(
  { place, tokenizer, config, chatTemplate }: TokenizerFiles,
  size: number,
): Record<string, GgufWritable> {
  const model = (tokenizer.model ?? {}) as Json
  const name = preTokenizationName(tokenizer)
  if (model.type !== 'BPE' || model.byte_fallback === true || name === undefined)
    throw formatError(
      `${place}: tokenizer.json`,
      'a byte-level BPE that cuts words as GPT-2, SmolLM, Llama 3 or Qwen2 do',
      model.type === 'BPE' ? 'a BPE of another kind' : `a ${model.type}`,
      'Export from a GGUF file of the same model: its tokenizer is kept as it is',
    )
  const added = (tokenizer.added_tokens ?? []) as readonly AddedToken[]
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`)
  const types: number[] = new Array<number>(size).fill(unused)
  const put = (token: string, id: number, type: number) => {
    if (!Number.isInteger(id) || id < 0 || id >= size)
      throw formatError(
        `${place}: tokenizer.json`,
        `ids below ${size}, the rows of the embedding`,
        `${id} for "${token}"`,
      )
    tokens[id] = token
    types[id] = type
  }
  for (const [token, id] of Object.entries((model.vocab ?? {}) as Record<string, number>)) put(token, id, normal)
  for (const { content, id, special } of added) put(content, id, special ? control : userDefined)
  const ids = specialIds(config, new Map(tokens.map((token, id) => [token, id])))
  const bos = ids['tokenizer.ggml.bos_token_id']
  return {
    'tokenizer.ggml.model': { type: 'string', value: 'gpt2' },
    'tokenizer.ggml.pre': { type: 'string', value: name },
    'tokenizer.ggml.tokens': { type: 'array', of: 'string', values: tokens },
    'tokenizer.ggml.token_type': { type: 'array', of: 'i32', values: types },
    'tokenizer.ggml.merges': { type: 'array', of: 'string', values: mergesOf(model) },
    ...ids,
    'tokenizer.ggml.add_bos_token': {
      type: 'bool',
      value: bos !== undefined && startsWith(tokenizer.post_processor, tokens[bos.value as number]!),
    },
    ...(chatTemplate === undefined ? {} : { 'tokenizer.chat_template': { type: 'string', value: chatTemplate } }),
  }
}

/** Merges are pairs in newer files, words with a space between in older ones. */
const mergesOf = (model: Json): string[] =>
  ((model.merges ?? []) as readonly (string | readonly string[])[]).map((merge) =>
    typeof merge === 'string' ? merge : merge.join(' '),
  )

function specialIds(config: Json, ids: ReadonlyMap<string, number>): Record<string, GgufWritable & { type: 'u32' }> {
  const names = { bos_token: 'bos', eos_token: 'eos', unk_token: 'unknown', pad_token: 'padding' }
  const found = Object.entries(names).flatMap(([field, name]) => {
    const value = config[field]
    const content = typeof value === 'object' && value !== null ? (value as Json).content : value
    const id = typeof content === 'string' ? ids.get(content) : undefined
    return id === undefined ? [] : [[`tokenizer.ggml.${name}_token_id`, { type: 'u32', value: id }] as const]
  })
  return Object.fromEntries(found)
}

/** Whether a post-processor puts the token before every text. */
function startsWith(processor: unknown, token: string): boolean {
  if (typeof processor !== 'object' || processor === null) return false
  const { type, processors, single } = processor as Json
  if (type === 'Sequence' && Array.isArray(processors)) return processors.some((each) => startsWith(each, token))
  const [first] = type === 'TemplateProcessing' && Array.isArray(single) ? (single as readonly Json[]) : []
  return (first?.SpecialToken as Json | undefined)?.id === token
}
