/**
 * The architectures of GGUF files that Heddle knows, in Hugging Face's terms: how llama.cpp's conversion scripts name
 * parameters and settings. One entry serves reading and writing.
 */
import { formatError } from './byte_source.js'
import type { JsonObject } from './checkpoint.js'
import { type GgufFile, type GgufMetadata, ggufValue } from './gguf.js'
import { ropeScalingOf, ropeValues } from './gguf_rope.js'
import type { GgufWritable } from './gguf_writer.js'
import { floatText, type NumberTexts } from './json_numbers.js'

/** What of a file an architecture's own settings are read from. */
export interface GgufHead {
  readonly path: string
  readonly metadata: GgufMetadata
  readonly tensors: { has(name: string): boolean }
}

/** One architecture. */
export interface GgufArchitecture {
  /** `general.architecture`. */
  readonly name: string
  /** `model_type`s of config.json that are written as this one; the first is what reading gives. */
  readonly modelTypes: readonly [string, ...string[]]
  readonly className: string
  /** Module names, GGUF's to Hugging Face's, outside of the layers and, after `model.layers.N.`, in them. */
  readonly top: ReadonlyMap<string, string>
  readonly layer: ReadonlyMap<string, string>
  /** Rotary rows of attn_q and attn_k stand interleaved, as the first Llama had them. */
  readonly interleaved: boolean
  /** The file's norm weights are larger by one. */
  readonly normsPlusOne: boolean
  readonly norm: 'rms' | 'layer'
  /** Share of a head that turns, where config.json does not say; absent where the whole head does. */
  readonly rotaryShare?: number
  /** Heads are as large as hidden size and number of heads make them; config.json has no field for it. */
  readonly headDimImplied?: boolean
  /** Settings besides the shared ones, from the file and into it. */
  readonly settings: (file: GgufHead) => JsonObject
  readonly values: (config: JsonObject) => Readonly<Record<string, GgufWritable>>
}

const decoderTop = new Map([
  ['token_embd', 'model.embed_tokens'],
  ['output_norm', 'model.norm'],
  ['output', 'lm_head'],
])

const attention = [
  ['attn_q', 'self_attn.q_proj'],
  ['attn_k', 'self_attn.k_proj'],
  ['attn_v', 'self_attn.v_proj'],
  ['attn_output', 'self_attn.o_proj'],
] as const

const gatedMlp = [
  ['ffn_gate', 'mlp.gate_proj'],
  ['ffn_up', 'mlp.up_proj'],
  ['ffn_down', 'mlp.down_proj'],
] as const

const preNorms = [
  ['attn_norm', 'input_layernorm'],
  ['ffn_norm', 'post_attention_layernorm'],
] as const

const none = () => ({})

const llama: GgufArchitecture = {
  name: 'llama',
  modelTypes: ['llama', 'mistral'],
  className: 'LlamaForCausalLM',
  top: decoderTop,
  layer: new Map([...preNorms, ...attention, ...gatedMlp]),
  interleaved: true,
  normsPlusOne: false,
  norm: 'rms',
  settings: (file) => ({
    hidden_act: 'silu',
    attention_bias: file.tensors.has('blk.0.attn_q.bias'),
    mlp_bias: file.tensors.has('blk.0.ffn_gate.bias'),
  }),
  values: none,
}

const qwen2: GgufArchitecture = {
  ...llama,
  name: 'qwen2',
  modelTypes: ['qwen2'],
  className: 'Qwen2ForCausalLM',
  interleaved: false,
  settings: () => ({ hidden_act: 'silu' }),
}

const qwen3: GgufArchitecture = {
  ...qwen2,
  name: 'qwen3',
  modelTypes: ['qwen3'],
  className: 'Qwen3ForCausalLM',
  layer: new Map([...llama.layer, ['attn_q_norm', 'self_attn.q_norm'], ['attn_k_norm', 'self_attn.k_norm']]),
  settings: (file) => ({ hidden_act: 'silu', attention_bias: file.tensors.has('blk.0.attn_q.bias') }),
}

const gemma: GgufArchitecture = {
  ...qwen2,
  name: 'gemma',
  modelTypes: ['gemma'],
  className: 'GemmaForCausalLM',
  normsPlusOne: true,
  settings: () => ({ hidden_activation: 'gelu_pytorch_tanh' }),
}

/** Layers that see a window only: all but every `pattern`-th one. */
const windowsInTurn = (layers: number, pattern: number): string[] =>
  Array.from({ length: layers }, (_, i) => ((i + 1) % pattern === 0 ? 'full_attention' : 'sliding_attention'))

/** The files do not say; of the published models only the largest one, of so many layers, differs from the head's size. */
const queryScalar = (file: GgufHead, prefix: string, largest: number): number => {
  const number = (key: string) => ggufValue(file, `${prefix}.${key}`, 'number')
  return number('block_count') === largest
    ? number('embedding_length') / number('attention.head_count')
    : number('attention.key_length')
}

const gemma2: GgufArchitecture = {
  ...gemma,
  name: 'gemma2',
  modelTypes: ['gemma2'],
  className: 'Gemma2ForCausalLM',
  layer: new Map([
    ['attn_norm', 'input_layernorm'],
    ['post_attention_norm', 'post_attention_layernorm'],
    ['ffn_norm', 'pre_feedforward_layernorm'],
    ['post_ffw_norm', 'post_feedforward_layernorm'],
    ...attention,
    ...gatedMlp,
  ]),
  settings: (file) => ({
    ...gemma.settings(file),
    attn_logit_softcapping: ggufValue(file, 'gemma2.attn_logit_softcapping', 'number', 50),
    final_logit_softcapping: ggufValue(file, 'gemma2.final_logit_softcapping', 'number', 30),
    sliding_window: ggufValue(file, 'gemma2.attention.sliding_window', 'number', 4096),
    layer_types: windowsInTurn(ggufValue(file, 'gemma2.block_count', 'number'), 2),
    query_pre_attn_scalar: queryScalar(file, 'gemma2', 46),
  }),
  values: (config) => ({
    'gemma2.attn_logit_softcapping': f32(config.attn_logit_softcapping),
    'gemma2.final_logit_softcapping': f32(config.final_logit_softcapping),
    'gemma2.attention.sliding_window': u32(config.sliding_window),
  }),
}

const gemma3: GgufArchitecture = {
  ...gemma2,
  name: 'gemma3',
  modelTypes: ['gemma3_text'],
  className: 'Gemma3ForCausalLM',
  layer: new Map([...gemma2.layer, ['attn_q_norm', 'self_attn.q_norm'], ['attn_k_norm', 'self_attn.k_norm']]),
  settings: (file) => ({
    ...gemma.settings(file),
    attn_logit_softcapping: null,
    final_logit_softcapping: null,
    sliding_window: ggufValue(file, 'gemma3.attention.sliding_window', 'number'),
    layer_types: windowsInTurn(ggufValue(file, 'gemma3.block_count', 'number'), 6),
    rope_local_base_freq: 10000,
    query_pre_attn_scalar: queryScalar(file, 'gemma3', 62),
  }),
  values: (config) => ({ 'gemma3.attention.sliding_window': u32(config.sliding_window) }),
}

const phi2: GgufArchitecture = {
  ...qwen2,
  name: 'phi2',
  modelTypes: ['phi'],
  className: 'PhiForCausalLM',
  top: new Map([...decoderTop, ['output_norm', 'model.final_layernorm']]),
  layer: new Map([
    ['attn_norm', 'input_layernorm'],
    ['attn_q', 'self_attn.q_proj'],
    ['attn_k', 'self_attn.k_proj'],
    ['attn_v', 'self_attn.v_proj'],
    ['attn_output', 'self_attn.dense'],
    ['ffn_up', 'mlp.fc1'],
    ['ffn_down', 'mlp.fc2'],
  ]),
  norm: 'layer',
  rotaryShare: 0.5,
  headDimImplied: true,
  settings: () => ({ hidden_act: 'gelu_new', qk_layernorm: false }),
}

const phi3: GgufArchitecture = {
  ...qwen2,
  name: 'phi3',
  modelTypes: ['phi3'],
  className: 'Phi3ForCausalLM',
  headDimImplied: true,
  layer: new Map([
    ...preNorms,
    ['attn_qkv', 'self_attn.qkv_proj'],
    ['attn_output', 'self_attn.o_proj'],
    ['ffn_up', 'mlp.gate_up_proj'],
    ['ffn_down', 'mlp.down_proj'],
  ]),
  settings: (file) => ({
    hidden_act: 'silu',
    sliding_window: ggufValue(file, 'phi3.attention.sliding_window', 'number', 0) || null,
    original_max_position_embeddings: ggufValue(file, 'phi3.rope.scaling.original_context_length', 'number'),
  }),
  values: (config) => ({
    'phi3.attention.sliding_window': u32(config.sliding_window ?? 0),
    'phi3.rope.scaling.original_context_length': u32(
      config.original_max_position_embeddings ?? config.max_position_embeddings,
    ),
  }),
}

/** All of them. */
export const ggufArchitectures: readonly GgufArchitecture[] = [llama, qwen2, qwen3, gemma, gemma2, gemma3, phi2, phi3]

/** @throws ERR_HEDDLE_FORMAT for an architecture that is not known */
export function ggufArchitecture(file: GgufFile): GgufArchitecture {
  const name = ggufValue(file, 'general.architecture', 'string')
  const found = ggufArchitectures.find((each) => each.name === name)
  if (found) return found
  const known = ggufArchitectures.map((each) => each.name).join(', ')
  throw formatError(`${file.path}: general.architecture`, `one of ${known}`, `"${name}"`)
}

/** The architecture that a config.json is written as. @throws ERR_HEDDLE_FORMAT when GGUF has none that is known */
export function ggufArchitectureOf(config: JsonObject, place: string): GgufArchitecture {
  const found = ggufArchitectures.find(({ modelTypes }) => modelTypes.some((type) => type === config.model_type))
  if (found) return found
  const known = ggufArchitectures.flatMap(({ modelTypes }) => modelTypes).join(', ')
  throw formatError(`${place}: model_type`, `one of ${known}, for which GGUF is written`, `${config.model_type}`)
}

/** config.json of a GGUF file. @throws ERR_HEDDLE_FORMAT for variants that Heddle does not compute */
export async function ggufConfig(file: GgufFile): Promise<JsonObject> {
  const architecture = ggufArchitecture(file)
  const prefix = architecture.name
  const number = (key: string, fallback?: number) => ggufValue(file, `${prefix}.${key}`, 'number', fallback)
  if (number('expert_count', 0) > 0) throw formatError(file.path, 'a dense model', 'a mixture of experts')
  const hidden = number('embedding_length')
  const heads = positive(file, `${prefix}.attention.head_count`, number('attention.head_count'))
  const keyValueHeads = positive(file, `${prefix}.attention.head_count_kv`, number('attention.head_count_kv', heads))
  const headDim = number('attention.key_length', hidden / heads)
  if (architecture.headDimImplied && headDim !== hidden / heads)
    throw formatError(`${file.path}: ${prefix}.attention.key_length`, `${hidden / heads}`, `${headDim}`)
  const turning = number('rope.dimension_count', headDim)
  if (!Number.isInteger(headDim) || (turning !== headDim && architecture.rotaryShare === undefined))
    throw formatError(file.path, 'rotary embedding over whole heads of an integer size', `${turning} of ${headDim}`)
  const embedding = file.tensors.get('token_embd.weight')
  if (!embedding) throw formatError(file.path, 'the tensor token_embd.weight', 'none')
  return {
    architectures: [architecture.className],
    model_type: architecture.modelTypes[0],
    hidden_size: hidden,
    intermediate_size: number('feed_forward_length'),
    num_hidden_layers: number('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: keyValueHeads,
    ...(architecture.headDimImplied ? {} : { head_dim: headDim }),
    [epsilonFields[architecture.norm].config]: number(epsilonFields[architecture.norm].file),
    ...(architecture.rotaryShare === undefined ? {} : { partial_rotary_factor: turning / headDim }),
    rope_theta: number('rope.freq_base', 10000),
    rope_scaling: await ropeScalingOf(file, prefix, headDim),
    max_position_embeddings: number('context_length'),
    vocab_size: embedding.shape[0]!,
    tie_word_embeddings: !file.tensors.has('output.weight'),
    bos_token_id: tokenIdOf(file, 'bos'),
    eos_token_id: tokenIdOf(file, 'eos'),
    ...architecture.settings(file),
  }
}

/** What {@link ggufConfig} says in floats, whose values may be whole numbers. */
const floats = ['rope_theta', 'rope_local_base_freq', 'attn_logit_softcapping', 'final_logit_softcapping'] as const

/** How a config.json would write the floats of {@link ggufConfig}. */
export function ggufFloats(config: JsonObject): NumberTexts {
  const texts = (object: JsonObject, names: readonly string[]): JsonObject =>
    Object.fromEntries(
      names.flatMap((name) => (typeof object[name] === 'number' ? [[name, floatText(object[name])]] : [])),
    )
  const scaling = config.rope_scaling as JsonObject | null
  return {
    ...texts(config, floats),
    ...(scaling ? { rope_scaling: texts(scaling, ['factor', 'low_freq_factor', 'high_freq_factor']) } : {}),
  }
}

/** The settings of a config.json as a GGUF file has them. @throws ERR_HEDDLE_FORMAT on a rotary scaling without a form */
export function ggufSettings(
  architecture: GgufArchitecture,
  config: JsonObject,
): Readonly<Record<string, GgufWritable>> {
  const prefix = architecture.name
  const heads = Number(config.num_attention_heads)
  const headDim = headDimOf(config)
  return {
    [`${prefix}.block_count`]: u32(config.num_hidden_layers),
    [`${prefix}.context_length`]: u32(config.max_position_embeddings),
    [`${prefix}.embedding_length`]: u32(config.hidden_size),
    [`${prefix}.feed_forward_length`]: u32(config.intermediate_size),
    [`${prefix}.attention.head_count`]: u32(heads),
    [`${prefix}.attention.head_count_kv`]: u32(config.num_key_value_heads ?? heads),
    [`${prefix}.attention.key_length`]: u32(headDim),
    [`${prefix}.attention.value_length`]: u32(headDim),
    [`${prefix}.${epsilonFields[architecture.norm].file}`]: f32(config[epsilonFields[architecture.norm].config]),
    [`${prefix}.rope.dimension_count`]: u32(turningOf(architecture, config)),
    [`${prefix}.vocab_size`]: u32(config.vocab_size),
    ...ropeValues(prefix, config),
    ...architecture.values(config),
  }
}

/** What a norm adds to a variance, by the name of the setting. */
const epsilonFields = {
  rms: { file: 'attention.layer_norm_rms_epsilon', config: 'rms_norm_eps' },
  layer: { file: 'attention.layer_norm_epsilon', config: 'layer_norm_eps' },
} as const

/** Elements of a head that turn. */
export function turningOf({ rotaryShare }: GgufArchitecture, config: JsonObject): number {
  if (rotaryShare === undefined) return headDimOf(config)
  const { partial_rotary_factor: inner } = (config.rope_parameters ?? {}) as JsonObject
  return Math.trunc(headDimOf(config) * Number(inner ?? config.partial_rotary_factor ?? rotaryShare))
}

/**
 * Refuses a network that the architecture's files cannot tell from another one.
 * @param written what was written of it
 * @throws ERR_HEDDLE_FORMAT naming the field of config.json
 */
export function expectSaid(
  architecture: GgufArchitecture,
  config: JsonObject,
  written: { readonly place: string; readonly values: GgufMetadata; readonly tensors: ReadonlySet<string> },
): void {
  const { place, values, tensors } = written
  const read = architecture.settings({ path: place, metadata: values, tensors })
  const refuse = (field: string, expected: unknown): never => {
    const [should, own] = [expected, config[field]].map((value) => JSON.stringify(value))
    throw formatError(`${place}: ${field}`, `${should}, all that GGUF's ${architecture.name} can say`, `${own}`)
  }
  for (const [field, value] of Object.entries(read)) {
    const own = field === 'hidden_activation' ? (config[field] ?? config.hidden_act) : config[field]
    if (own !== undefined && !(own === null && field === 'hidden_activation') && !isSame(own, value))
      refuse(field, value)
  }
  if (!('sliding_window' in read) && hasWindow(config)) refuse('sliding_window', null)
}

/** Some layer sees less than the longest text. */
const hasWindow = (config: JsonObject): boolean =>
  typeof config.sliding_window === 'number' &&
  config.use_sliding_window !== false &&
  config.sliding_window < Number(config.max_position_embeddings) &&
  (!Array.isArray(config.layer_types) || config.layer_types.includes('sliding_attention'))

const isSame = (a: unknown, b: unknown): boolean =>
  typeof a === 'number' && typeof b === 'number'
    ? Math.abs(a - b) <= 1e-6 * Math.abs(b)
    : JSON.stringify(a) === JSON.stringify(b)

/** Size of a head, which is `hidden_size / num_attention_heads` where config.json does not say. */
export const headDimOf = (config: JsonObject): number =>
  Number(config.head_dim ?? Number(config.hidden_size) / Number(config.num_attention_heads))

/** Heads whose rows the file has in rotary order; undefined for all other parameters. */
export function interleavedHeads(
  { interleaved }: GgufArchitecture,
  part: string,
  config: JsonObject,
): number | undefined {
  if (!interleaved) return undefined
  if (part === 'attn_q') return Number(config.num_attention_heads)
  if (part === 'attn_k') return Number(config.num_key_value_heads ?? config.num_attention_heads)
  return undefined
}

function tokenIdOf(file: GgufFile, name: string): number | null {
  const key = `tokenizer.ggml.${name}_token_id`
  return file.metadata.has(key) ? ggufValue(file, key, 'number') : null
}

function positive(file: GgufFile, key: string, value: number): number {
  if (Number.isInteger(value) && value > 0) return value
  throw formatError(`${file.path}: ${key}`, 'a positive integer', `${value}`)
}

const u32 = (value: unknown): GgufWritable => ({ type: 'u32', value: Number(value) })
const f32 = (value: unknown): GgufWritable => ({ type: 'f32', value: Number(value) })
