/** What some options mean for the texts of a network. */
import { HeddleError } from '../errors.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Constraint } from '../tokenize/constraint.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'
import type { GenerateSettings } from './options.js'

/** What is added to each token's logit; undefined for nothing. @throws ERR_HEDDLE_ARGUMENT on a token that is none */
export function biasOf({ logitBias }: GenerateSettings, { vocabularySize }: CausalLm): Float32Array | undefined {
  if (!logitBias || Object.keys(logitBias).length === 0) return undefined
  const bias = new Float32Array(vocabularySize)
  for (const [id, value] of Object.entries(logitBias)) {
    if (Number(id) >= bias.length) throw misuse('generate.logitBias', `token ids below ${bias.length}`, id)
    bias[Number(id)] = value
  }
  return bias
}

/** New tokens that there is room for behind a prompt. */
export const tokenLimit = ({ maxTokens }: GenerateSettings, { maxPositions }: CausalLm, promptLength: number): number =>
  // The last token needs no room: it is not fed again.
  Math.min(maxTokens, maxPositions - promptLength + 1)

/**
 * The form of a text behind a prompt of so many tokens; undefined when it may have any.
 * @throws ERR_HEDDLE_ARGUMENT when no text that is short enough has it
 */
export async function constraintOf(
  settings: GenerateSettings,
  network: CausalLm,
  tokenizer: Tokenizer,
  promptLength: number,
): Promise<Constraint | undefined> {
  const { responseFormat: form, minTokens } = settings
  if (!form) return undefined
  if (minTokens > 0) throw misuse('generate.minTokens', 'none together with responseFormat', `${minTokens}`)
  const maxTokens = tokenLimit(settings, network, promptLength)
  return await tokenizer.constrain({ form, maxTokens, vocabularySize: network.vocabularySize })
}

const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got })
