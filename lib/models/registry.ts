/** The architectures that Heddle builds, found by what a checkpoint's config.json calls itself. One line for each. */
import { HeddleError } from '../errors.js'
import type { Network } from '../nn/network.js'
import { bert, distilbert } from './bert.js'
import type { CausalLm } from './causal_lm.js'
import type { Encoder } from './encoder.js'
import { gemma, gemma2, gemma3 } from './gemma.js'
import { gptNeox } from './gpt_neox.js'
import { gpt2 } from './gpt2.js'
import type { ImageClassifier } from './image_classifier.js'
import { llama, mistral, qwen2, qwen3 } from './llama.js'
import { opt } from './opt.js'
import { phi, phi3 } from './phi.js'
import { vit } from './vit.js'
import type { CheckpointNames, WeightSource } from './weights.js'

/** One architecture: how a checkpoint names it, and how its network is built. */
export interface Architecture<N extends Network> extends CheckpointNames {
  /** `model_type` in config.json. */
  readonly modelType: string
  /** Its names among `architectures` in config.json; the first is what Heddle writes. */
  readonly classNames: readonly [string, ...string[]]
  /** Checks the configuration and builds the network over the checkpoint's tensors. */
  readonly build: (configuration: unknown, source: WeightSource, place: string) => N
}

/** The causal mask, which old checkpoints keep as a buffer. */
const causalMaskBuffer = /\.(attn|attention)\.(bias|masked_bias)$/

/** Decoder language models. */
export const decoders: readonly Architecture<CausalLm>[] = [
  { modelType: 'llama', classNames: ['LlamaForCausalLM'], build: llama },
  { modelType: 'mistral', classNames: ['MistralForCausalLM'], build: mistral },
  { modelType: 'qwen2', classNames: ['Qwen2ForCausalLM'], build: qwen2 },
  { modelType: 'qwen3', classNames: ['Qwen3ForCausalLM'], build: qwen3 },
  { modelType: 'gemma', classNames: ['GemmaForCausalLM'], build: gemma },
  { modelType: 'gemma2', classNames: ['Gemma2ForCausalLM'], build: gemma2 },
  { modelType: 'gemma3_text', classNames: ['Gemma3ForCausalLM'], build: gemma3 },
  { modelType: 'phi', classNames: ['PhiForCausalLM'], build: phi },
  { modelType: 'phi3', classNames: ['Phi3ForCausalLM'], build: phi3 },
  {
    modelType: 'gpt2',
    classNames: ['GPT2LMHeadModel'],
    basePrefix: 'transformer',
    ignored: causalMaskBuffer,
    build: gpt2,
  },
  { modelType: 'opt', classNames: ['OPTForCausalLM'], basePrefix: 'model', build: opt },
  { modelType: 'gpt_neox', classNames: ['GPTNeoXForCausalLM'], ignored: causalMaskBuffer, build: gptNeox },
]

const tasks = ['Model', 'ForMaskedLM', 'ForSequenceClassification', 'ForTokenClassification', 'ForQuestionAnswering']
const classesOf = (name: string): readonly [string, ...string[]] => [
  `${name}Model`,
  ...tasks.map((task) => `${name}${task}`),
]
/** Position ids kept as a buffer, and heads for other tasks. */
const besidesEncoder =
  /(^|\.)embeddings\.position_ids$|^(cls|lm_head|classifier|qa_outputs|vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier)\./

/** Text encoders. Heads that a checkpoint holds for other tasks are left out. */
export const encoders: readonly Architecture<Encoder>[] = [
  {
    modelType: 'bert',
    classNames: [...classesOf('Bert'), 'BertForPreTraining', 'BertForNextSentencePrediction'],
    basePrefix: 'bert',
    ignored: besidesEncoder,
    build: bert,
  },
  {
    modelType: 'roberta',
    classNames: classesOf('Roberta'),
    basePrefix: 'roberta',
    ignored: besidesEncoder,
    build: bert,
  },
  {
    modelType: 'xlm-roberta',
    classNames: classesOf('XLMRoberta'),
    basePrefix: 'roberta',
    ignored: besidesEncoder,
    build: bert,
  },
  {
    modelType: 'distilbert',
    classNames: classesOf('DistilBert'),
    basePrefix: 'distilbert',
    ignored: besidesEncoder,
    build: distilbert,
  },
]

/** Image classifiers. */
export const imageClassifiers: readonly Architecture<ImageClassifier>[] = [
  {
    modelType: 'vit',
    classNames: ['ViTForImageClassification', 'ViTModel'],
    basePrefix: 'vit',
    ignored: /^(vit\.)?pooler\.|(^|\.)embeddings\.mask_token$/,
    build: vit,
  },
]

/**
 * The builder for a config.json among `known` architectures.
 * @param place file or folder of the checkpoint, for messages
 * @throws ERR_HEDDLE_FORMAT naming an architecture that is not known, with those that are
 */
export function architectureOf<N extends Network>(
  known: readonly Architecture<N>[],
  configuration: Readonly<Record<string, unknown>>,
  place: string,
): Architecture<N> {
  const { model_type: modelType, architectures } = configuration
  const given = Array.isArray(architectures) && architectures.length > 0 ? architectures : undefined
  const isNamed = ({ classNames }: Architecture<N>): boolean => classNames.some((name) => given?.includes(name))
  const found =
    modelType === undefined ? known.find(isNamed) : known.find((candidate) => candidate.modelType === modelType)
  if (found && (given === undefined || isNamed(found))) return found
  const [expected, got] = found
    ? [found.classNames.join(', '), given]
    : [`a model_type of ${known.map((each) => each.modelType).join(', ')}`, modelType ?? given]
  throw new HeddleError('ERR_HEDDLE_FORMAT', {
    place: `${place}: architecture`,
    expected,
    got: JSON.stringify(got) ?? 'a config.json without model_type',
    ...(found ? {} : hintFor(modelType)),
  })
}

/** Which function loads an architecture of another kind. */
function hintFor(modelType: unknown): { readonly hint: string } | undefined {
  const loaders = { loadModel: decoders, loadEncoder: encoders, loadImageClassifier: imageClassifiers }
  const [loader] = Object.entries(loaders).find(([, list]) => list.some((each) => each.modelType === modelType)) ?? []
  return loader === undefined ? undefined : { hint: `It is loaded by ${loader}()` }
}
