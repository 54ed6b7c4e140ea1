/** The engine as a request may use it: within its client's limits, and no longer than the server lives. */
import type { Engine } from '../engine/engine.js'
import type { EngineRequestOptions } from '../engine/options.js'
import { HeddleError } from '../errors.js'
import { due, turn } from '../graph/pause.js'
import type { Prompt } from '../model.js'
import type { Limits } from './limits.js'
import { serverEnds } from './openai/error.js'

/**
 * An engine that refuses prompts, and requests for new tokens, that are longer than a client may have; once it has closed,
 * with what clients are told of a server that ends.
 */
export function limitEngine(
  engine: Engine,
  { promptTokens, newTokens }: Pick<Limits, 'promptTokens' | 'newTokens'>,
): Engine {
  const expectFew = (place: string, most: number, got: number): void => {
    if (got > most)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected: `at most ${most} tokens`, got: `${got}` })
  }
  const tokensOf: Engine['promptTokens'] = async (prompt, options) => {
    const tokens = await engine.promptTokens(prompt, options)
    if (promptTokens !== undefined) expectFew('prompt', promptTokens, tokens.length)
    return tokens
  }
  async function* generateTokens(
    prompt: Prompt,
    options: EngineRequestOptions = {},
  ): ReturnType<Engine['generateTokens']> {
    const { maxTokens = newTokens, chat } = options
    expectFew('maxTokens', newTokens, maxTokens)
    const tokens = await tokensOf(prompt, chat === undefined ? {} : { chat })
    // A request may ask for many texts, whose options are checked next, one text's after the other's.
    if (due()) await turn()
    if (engine.state().isClosed) throw serverEnds()
    yield* engine.generateTokens(tokens, { ...options, maxTokens })
  }
  const limited: Pick<Engine, 'generate' | 'generateTokens' | 'promptTokens'> = {
    promptTokens: tokensOf,
    generateTokens,
    async *generate(prompt, options) {
      for await (const { text } of generateTokens(prompt, options)) if (text) yield text
    },
  }
  return new Proxy(engine, {
    get(target, name) {
      if (name in limited) return limited[name as keyof typeof limited]
      const value: unknown = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}
