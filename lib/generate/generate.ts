/** Text from a prompt, piece by piece, while it is made. */
import type { Tokenizer } from '../tokenize/tokenizer.js'
import type { GenerateSettings } from './options.js'
import type { Session } from './session.js'
import { StopFilter } from './stop_filter.js'

/**
 * Yields text as soon as its characters are whole, until an end token, a stop string, `maxTokens` or a full cache.
 * @param prompt at least one token, at most as many as the session has room for
 * @throws ERR_HEDDLE_ABORTED
 */
export async function* generateText(
  session: Session,
  tokenizer: Tokenizer,
  prompt: Int32Array,
  settings: GenerateSettings,
): AsyncGenerator<string, void, void> {
  const ends = new Set(tokenizer.eosTokenIds)
  const decoder = tokenizer.decodeStream()
  const filter = new StopFilter(settings.stop)
  session.reset()
  let fed = prompt
  // The last token needs no room: it is not fed again.
  const limit = Math.min(settings.maxTokens, session.capacity - prompt.length + 1)
  for (let count = 0; count < limit && !filter.stopped; count += 1) {
    const token = await session.next(fed, settings)
    if (ends.has(token)) break
    const text = filter.push(await decoder.push(token))
    if (text) yield text
    fed = Int32Array.of(token)
  }
  const rest = filter.push(await decoder.flush()) + filter.flush()
  if (rest) yield rest
}
