/** One text in a session, driven token by token. */
import type { DrawSettings, Session } from '../../lib/generate/session.js'

/** Greedy, without penalties. */
export const greedySettings: DrawSettings = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0,
  stream: 0,
}

/** Appends tokens to the only text and draws the one that follows. */
export async function nextToken(
  session: Session,
  tokens: Int32Array,
  options: Partial<DrawSettings> = {},
): Promise<number> {
  const [drawn] = await session.next([{ tokens, settings: { ...greedySettings, ...options } }])
  return drawn!.token
}
