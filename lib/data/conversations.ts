/** Conversations as OpenAI and ShareGPT write them down, as messages for a chat template. */
import type { ChatMessage } from '../tokenize/chat_template.js'

/** Who speaks, in the words of ShareGPT and its followers. */
const shareGptRoles: Readonly<Record<string, string>> = {
  system: 'system',
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  chatgpt: 'assistant',
  assistant: 'assistant',
  model: 'assistant',
  bot: 'assistant',
  function_call: 'assistant',
  tool: 'tool',
  observation: 'tool',
  function_response: 'tool',
}

/** A conversation with something to learn, or the reason why it is none. */
export function conversationOf(
  value: unknown,
  { system, tools }: { readonly system?: unknown; readonly tools?: unknown } = {},
): { readonly messages: readonly ChatMessage[]; readonly tools?: readonly unknown[] } | string {
  const messages = messagesOf(value)
  if (typeof messages === 'string') return messages
  if (!messages.some(({ role, weight }) => role === 'assistant' && weight !== 0))
    return 'no message of the assistant to learn from'
  if (tools !== undefined && !Array.isArray(tools)) return '"tools" is not a list'
  const opening = typeof system === 'string' && system !== '' ? [{ role: 'system', content: system }] : []
  return { messages: [...opening, ...messages], ...(tools === undefined ? {} : { tools }) }
}

/** A list of messages, or the reason why it is none. */
export function messagesOf(value: unknown): ChatMessage[] | string {
  if (!Array.isArray(value) || value.length === 0) return 'not a list of messages'
  const messages: ChatMessage[] = []
  for (const [index, item] of value.entries()) {
    const message = messageOf(item)
    if (typeof message === 'string') return `message ${index + 1} ${message}`
    messages.push(message)
  }
  return messages
}

function messageOf(item: unknown): ChatMessage | string {
  if (typeof item !== 'object' || item === null) return 'is not an object'
  const { from, value, role = from, content = value, ...more } = item as Readonly<Record<string, unknown>>
  if (typeof role !== 'string') return 'has no "role" (or "from") that is a text'
  const known = 'role' in item ? role : shareGptRoles[role]
  if (known === undefined) return `is from "${role}", which is none of ${Object.keys(shareGptRoles).join(', ')}`
  const { tool_calls: calls, ...extra } = withoutNull(more)
  const text = contentOf(content, calls !== undefined)
  if (text === undefined) return 'has no "content" (or "value") that is a text'
  return {
    ...extra,
    role: known,
    content: text,
    ...(Array.isArray(calls) ? { tool_calls: calls.map(parsedCall) } : {}),
  }
}

/** Parquet writes the fields of other messages as null. */
const withoutNull = (fields: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> =>
  Object.fromEntries(Object.entries(fields).filter(([, field]) => field !== null && field !== undefined))

/** A message that calls tools may say nothing; a list of parts counts when all of them are text. */
function contentOf(content: unknown, callsTools: boolean): string | undefined {
  if (typeof content === 'string') return content
  if ((content === null || content === undefined) && callsTools) return ''
  if (!Array.isArray(content)) return undefined
  const texts = content.map((part) => (part as { readonly text?: unknown } | null)?.text)
  return texts.every((text) => typeof text === 'string') ? texts.join('') : undefined
}

/** OpenAI's files hold arguments as JSON text; chat templates want them as what they are. */
function parsedCall(call: unknown): unknown {
  const { function: fn } = (call ?? {}) as { readonly function?: { readonly arguments?: unknown } }
  if (typeof fn?.arguments !== 'string') return call
  try {
    return { ...(call as object), function: { ...fn, arguments: JSON.parse(fn.arguments) } }
  } catch {
    return call
  }
}
