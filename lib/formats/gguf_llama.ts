/** A GGUF file of the llama architecture in Hugging Face's terms: config.json and parameter names. */
import { formatError } from './byte_source.js'
import { type GgufFile, ggufValue } from './gguf.js'
import type { StoredTensor } from './tensor_archive.js'

/** What a config.json of a Llama model says. */
export interface LlamaConfigJson {
  readonly architectures: readonly ['LlamaForCausalLM']
  readonly model_type: 'llama'
  readonly hidden_size: number
  readonly intermediate_size: number
  readonly num_hidden_layers: number
  readonly num_attention_heads: number
  readonly num_key_value_heads: number
  readonly head_dim: number
  readonly hidden_act: 'silu'
  readonly rms_norm_eps: number
  readonly rope_theta: number
  readonly rope_scaling: { readonly rope_type: 'linear'; readonly factor: number } | null
  readonly max_position_embeddings: number
  readonly vocab_size: number
  readonly tie_word_embeddings: boolean
  readonly attention_bias: boolean
  readonly mlp_bias: boolean
  readonly bos_token_id: number | null
  readonly eos_token_id: number | null
  readonly [key: string]: unknown
}

/** @throws ERR_HEDDLE_FORMAT for another architecture, or one of its variants that Heddle does not compute */
export function llamaConfigOf(file: GgufFile): LlamaConfigJson {
  const architecture = ggufValue(file, 'general.architecture', 'string')
  if (architecture !== 'llama')
    throw formatError(`${file.path}: general.architecture`, 'the llama architecture', `"${architecture}"`)
  const number = (key: string, fallback?: number) => ggufValue(file, `llama.${key}`, 'number', fallback)
  if (number('expert_count', 0) > 0) throw formatError(file.path, 'a dense model', 'a mixture of experts')
  const hidden = number('embedding_length')
  const heads = positive(file, 'attention.head_count', number('attention.head_count'))
  const keyValueHeads = positive(file, 'attention.head_count_kv', number('attention.head_count_kv', heads))
  const headDim = number('attention.key_length', hidden / heads)
  if (!Number.isInteger(headDim) || number('rope.dimension_count', headDim) !== headDim)
    throw formatError(file.path, 'rotary embedding over whole heads of an integer size', `${headDim}`)
  const embedding = file.tensors.get('token_embd.weight')
  if (!embedding) throw formatError(file.path, 'the tensor token_embd.weight', 'none')
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: hidden,
    intermediate_size: number('feed_forward_length'),
    num_hidden_layers: number('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: keyValueHeads,
    head_dim: headDim,
    hidden_act: 'silu',
    rms_norm_eps: number('attention.layer_norm_rms_epsilon'),
    rope_theta: number('rope.freq_base', 10000),
    rope_scaling: ropeScalingOf(file),
    max_position_embeddings: number('context_length'),
    vocab_size: embedding.shape[0]!,
    tie_word_embeddings: !file.tensors.has('output.weight'),
    attention_bias: file.tensors.has('blk.0.attn_q.bias'),
    mlp_bias: file.tensors.has('blk.0.ffn_gate.bias'),
    bos_token_id: tokenIdOf(file, 'bos'),
    eos_token_id: tokenIdOf(file, 'eos'),
  }
}

/** The weights under Hugging Face's names; rotary rows come back from llama.cpp's interleaved order. */
export function llamaTensorsOf(file: GgufFile, config: LlamaConfigJson): ReadonlyMap<string, StoredTensor> {
  const heads = new Map([
    ['attn_q', config.num_attention_heads],
    ['attn_k', config.num_key_value_heads],
  ])
  const tensors = new Map<string, StoredTensor>()
  for (const info of file.tensors.values()) {
    const [, layer, part = '', kind] = /^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/.exec(info.name) ?? []
    const name = (layer === undefined ? topNames : layerNames).get(part)
    if (!name) throw formatError(`${file.path}: ${info.name}`, 'a tensor of the llama architecture', 'an unknown one')
    if (kind === 'bias' && heads.has(part))
      throw formatError(`${file.path}: ${info.name}`, 'attention without biases', 'a bias in rotary order')
    const renamed = `${layer === undefined ? '' : `model.layers.${Number(layer)}.`}${name}.${kind}`
    tensors.set(renamed, { ...file.tensor(info, heads.get(part)), name: renamed })
  }
  return tensors
}

const topNames = new Map([
  ['token_embd', 'model.embed_tokens'],
  ['output_norm', 'model.norm'],
  ['output', 'lm_head'],
])

const layerNames = new Map([
  ['attn_norm', 'input_layernorm'],
  ['attn_q', 'self_attn.q_proj'],
  ['attn_k', 'self_attn.k_proj'],
  ['attn_v', 'self_attn.v_proj'],
  ['attn_output', 'self_attn.o_proj'],
  ['ffn_norm', 'post_attention_layernorm'],
  ['ffn_gate', 'mlp.gate_proj'],
  ['ffn_up', 'mlp.up_proj'],
  ['ffn_down', 'mlp.down_proj'],
])

function ropeScalingOf(file: GgufFile): LlamaConfigJson['rope_scaling'] {
  const hint = 'Load the model from its Hugging Face folder'
  if (file.tensors.has('rope_freqs.weight'))
    throw formatError(file.path, 'plain or linear rotary scaling', 'per-frequency factors (rope_freqs.weight)', hint)
  const type = ggufValue(file, 'llama.rope.scaling.type', 'string', 'none')
  if (type === 'none') return null
  if (type !== 'linear') throw formatError(file.path, 'plain or linear rotary scaling', `"${type}"`, hint)
  return { rope_type: 'linear', factor: ggufValue(file, 'llama.rope.scaling.factor', 'number') }
}

function tokenIdOf(file: GgufFile, name: string): number | null {
  const key = `tokenizer.ggml.${name}_token_id`
  return file.metadata.has(key) ? ggufValue(file, key, 'number') : null
}

function positive(file: GgufFile, key: string, value: number): number {
  if (Number.isInteger(value) && value > 0) return value
  throw formatError(`${file.path}: llama.${key}`, 'a positive integer', `${value}`)
}
