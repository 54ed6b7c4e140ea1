import type { Engine } from '../../lib/engine/engine.js'
import type { EndedRequest, EngineStep } from '../../lib/engine/events.js'
import type { EngineRequestOptions } from '../../lib/engine/options.js'
import type { GeneratedToken, GenerateTokensOptions, Model, Prompt } from '../../lib/model.js'

/** A request of a test. */
export interface Asked {
  readonly prompt: Prompt
  readonly options: Omit<GenerateTokensOptions, 'adapter'>
}

export async function collected(stream: AsyncIterable<GeneratedToken>): Promise<GeneratedToken[]> {
  const tokens: GeneratedToken[] = []
  for await (const token of stream) tokens.push(token)
  return tokens
}

/** What a caller sees of a text, without log-probabilities, which are rounded in their own way for every batch. */
export const told = (tokens: readonly GeneratedToken[]): unknown =>
  tokens.map(({ token, text, finishReason, top }) => [token, text, finishReason, top?.length])

/** The model's own answer. */
export const alone = (model: Model, { prompt, options }: Asked): Promise<GeneratedToken[]> =>
  collected(model.generateTokens(prompt, options))

export const served = (
  engine: Engine,
  { prompt, options }: Asked,
  more: EngineRequestOptions = {},
): Promise<GeneratedToken[]> => collected(engine.generateTokens(prompt, { ...options, ...more }))

/** Everything that an engine tells. */
export function recorded(engine: Engine): { steps: EngineStep[]; ended: EndedRequest[]; first: number } {
  const record = { steps: [] as EngineStep[], ended: [] as EndedRequest[], first: 0 }
  engine.watch({
    onStep: (step) => record.steps.push(step),
    onEnd: (end) => record.ended.push(end),
    onFirstToken: () => {
      record.first += 1
    },
  })
  return record
}

export const sum = (numbers: readonly number[]): number => numbers.reduce((total, each) => total + each, 0)
