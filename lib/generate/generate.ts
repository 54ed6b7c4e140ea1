/** Texts from prompts, token by token, while they are made. */

import type { Tensor } from '../tensor/tensor.js'
import type { Constraint } from '../tokenize/constraint.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'
import type { GenerateSettings } from './options.js'
import type { Session } from './session.js'
import { type GeneratedToken, TextInProgress } from './text_in_progress.js'

/** What is generated from, and with. */
export interface Generation {
  readonly session: Session
  readonly tokenizer: Tokenizer
  readonly vocabularySize: number
  /** At least one token each, at most as many as the session has room for; one per text of the session. */
  readonly prompts: readonly { readonly tokens: Int32Array; readonly stream: number }[]
  readonly settings: GenerateSettings
  readonly bias?: Tensor | undefined
  /** One per prompt, when the text must have a form. */
  readonly constraints?: readonly Constraint[] | undefined
}

/**
 * Yields every token as soon as it is drawn, until each text has come to an end token, a stop string, `maxTokens`, the
 * end of its format or a full cache.
 * @throws ERR_HEDDLE_ABORTED
 */
export async function* generateTokens(generation: Generation): AsyncGenerator<GeneratedToken, void, void> {
  const { session, prompts, settings, bias } = generation
  const { signal, logProbabilities: top } = settings
  const texts = textsOf(generation)
  while (texts.some(({ isFinished }) => !isFinished)) {
    const rows = await Promise.all(texts.map((text) => text.row()))
    const drawn = await session.next(rows, { bias, top, signal })
    for (const index of prompts.keys()) if (drawn[index]) yield await texts[index]!.take(drawn[index])
  }
}

function textsOf({ session, tokenizer, vocabularySize, prompts, settings, constraints }: Generation): TextInProgress[] {
  const alone = prompts.length === 1
  // The last token of the prompt is always fed: its output is the first draw.
  const cached = alone ? Math.min(session.commonPrefix(prompts[0]!.tokens), prompts[0]!.tokens.length - 1) : 0
  session.truncate(cached)
  return prompts.map(({ tokens: prompt, stream }, index) => {
    // The last token needs no room: it is not fed again.
    const limit = Math.min(settings.maxTokens, session.capacity - prompt.length + 1)
    const parts = { index, stream, prompt, cached, limit, vocabularySize, constraint: constraints?.[index] }
    return new TextInProgress(parts, tokenizer, settings)
  })
}
