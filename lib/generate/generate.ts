/** Text from a prompt, piece by piece, while it is made. */
import { HeddleError } from '../errors.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'
import { resolveSampling, type SamplingOptions } from './options.js'
import type { Session } from './session.js'
import { StopFilter } from './stop_filter.js'

export interface TextRequest extends SamplingOptions {
  readonly prompt: Int32Array
  readonly signal?: AbortSignal | undefined
}

/**
 * Yields text as soon as its characters are whole, until an end token, a stop string, `maxTokens` or a full cache.
 * @throws ERR_HEDDLE_ARGUMENT for an empty prompt or one that does not fit, ERR_HEDDLE_ABORTED
 */
export async function* generateText(
  session: Session,
  tokenizer: Tokenizer,
  request: TextRequest,
): AsyncGenerator<string, void, void> {
  const sampling = resolveSampling(request)
  const { prompt, signal } = request
  if (prompt.length === 0 || prompt.length > session.capacity)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'generate: prompt',
      expected: `1 to ${session.capacity} tokens`,
      got: `${prompt.length}`,
    })
  const ends = new Set(tokenizer.eosTokenIds)
  const decoder = tokenizer.decodeStream()
  const filter = new StopFilter(sampling.stop)
  session.reset()
  let fed = prompt
  const limit = Math.min(sampling.maxTokens, session.capacity - prompt.length + 1)
  for (let count = 0; count < limit && !filter.stopped; count += 1) {
    const token = await session.next(fed, sampling, signal)
    if (ends.has(token)) break
    const text = filter.push(await decoder.push(token))
    if (text) yield text
    fed = Int32Array.of(token)
  }
  const rest = filter.push(await decoder.flush()) + filter.flush()
  if (rest) yield rest
}
