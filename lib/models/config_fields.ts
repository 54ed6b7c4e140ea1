/** Checks a config.json: fields that the network computes with, fields without bearing on it, and no others. */
import { z } from 'zod'
import { expectation } from '../config.js'
import { HeddleError } from '../errors.js'
import { nearest } from '../nearest.js'

/** A width, a count. */
export const size = z.int().positive()

/** Far beyond any real model; bounds the work that a hostile config can cause. */
export const layerCount = size.max(1 << 12)

/** A positive number that may be absent or null. */
export const optionalNumber = z.number().positive().nullish()

/** Kinds of attention by layer, as `layer_types` lists them. */
export const layerTypes = z.array(z.enum(['full_attention', 'sliding_attention'])).nullish()

/**
 * The configuration with defaults filled in. A field that the schema does not know is refused unless it is known to
 * have no bearing on the forward pass, or is off (null, false, empty).
 * @param schema a loose object schema; unknown fields are kept for export
 * @throws ERR_HEDDLE_FORMAT naming the field
 */
export function parseModelConfig<S extends z.ZodObject>(schema: S, config: unknown, place: string): z.infer<S> {
  const parsed = schema.safeParse(config, { error: expectation })
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    throw misfit(`${place}: ${issue.path.join('.') || 'config'}`, issue.message, textOf(valueAt(config, issue.path)))
  }
  const known = Object.keys(schema.shape)
  const unknown = Object.entries(config as object).find(
    ([name, value]) => !known.includes(name) && !isInert(name) && !isOff(value),
  )
  if (unknown)
    throw new HeddleError('ERR_HEDDLE_FORMAT', {
      place: `${place}: ${unknown[0]}`,
      expected: `a field that the architecture "${(config as { model_type?: unknown }).model_type}" knows`,
      got: textOf(unknown[1]),
      hint: `The nearest is "${nearest(unknown[0], known)}"; a field that changes nothing may be removed`,
    })
  return parsed.data
}

/** @throws ERR_HEDDLE_FORMAT always: the field is valid by itself, but not beside the others */
export function refuseField(place: string, field: string, expected: string, got: unknown): never {
  throw misfit(`${place}: ${field}`, expected, textOf(got))
}

const isOff = (value: unknown): boolean =>
  value === null ||
  value === undefined ||
  value === false ||
  value === '' ||
  (typeof value === 'object' && Object.keys(value).length === 0)

/** What transformers, training frameworks and hubs write besides the network's own fields. */
const inert = new Set(
  `architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens chunk_size_feed_forward dtype
  early_stopping exponential_decay_length_penalty finetuning_task gradient_checkpointing id2label
  initializer_range initializer_factor initial_range init_std is_decoder is_encoder_decoder is_llama_config label2id
  language length_penalty max_length max_window_layers min_length model_type name_or_path no_repeat_ngram_size
  tie_weights_ num_beam_groups num_beams num_labels num_return_sequences pretraining_tp problem_type repetition_penalty
  remove_invalid_values return_dict return_dict_in_generate sep_token_id sinusoidal_pos_embds suppress_tokens
  task_specific_params temperature tokenizer_class top_k top_p torch_dtype torchscript typical_p use_bfloat16
  use_cache use_return_dict model_id prefix vocab_size_or_config_json_file output_past type_vocab_size_or_none
  n_special predict_special_tokens summary_activation summary_first_dropout summary_proj_to_labels summary_type
  summary_use_proj n_ctx reorder_and_upcast_attn scale_attn_by_inverse_layer_idx resid_pdrop embd_pdrop attn_pdrop
  attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob activation_dropout dropout
  layerdrop layer_drop classifier_dropout classifier_dropout_prob seq_classif_dropout qa_dropout gradient_clipping
  transformers.js_config quantization_note cache_implementation mlp_dropout pooler_hidden_act pooler_output_size pooler_act encoder_stride`.split(
    /\s+/,
  ),
)

const isInert = (name: string): boolean =>
  inert.has(name) || name.startsWith('_') || /^(transformers|unsloth|torch|output)_|_token_ids?$|_index$/.test(name)

function valueAt(config: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], config)
}

const textOf = (value: unknown): string => JSON.stringify(value) ?? 'nothing'

const misfit = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
