/** The messages of a chat: checked, and in the form that chat templates know. */
import { z } from 'zod'
import type { ChatMessage } from '../../tokenize/tokenizer.js'
import { invalidRequest } from './error.js'
import { ignored, items, list, maybe, oneOf, readItems, unsupported } from './request.js'

const textPart = z.strictObject({ type: z.literal('text'), text: z.string() })
const text = oneOf('a string or an array of text parts', [z.string(), list(textPart, 1024)] as const)
const name = maybe(z.string())

const toolCall = z.strictObject({
  id: z.string(),
  type: z.literal('function'),
  function: z.strictObject({ name: z.string(), arguments: z.string() }),
})

const message = z.discriminatedUnion('role', [
  z.strictObject({ role: z.enum(['system', 'developer', 'user']), content: text, name }),
  z.strictObject({
    role: z.literal('assistant'),
    content: maybe(text),
    name,
    tool_calls: maybe(list(toolCall, 128)),
    // Clients hand answers back as they came.
    refusal: unsupported,
    audio: unsupported,
    function_call: unsupported,
    annotations: ignored,
  }),
  z.strictObject({ role: z.literal('tool'), content: text, tool_call_id: z.string(), name }),
])

/** The field `messages`, to be read by {@link chatMessages}. */
export const messages = items(2048)

type Message = z.output<typeof message>

/**
 * As templates know them: `developer` is the newer name of `system`, arguments of calls are values and no text.
 * @throws OpenAiError 400
 */
export async function chatMessages(field: z.output<typeof messages>): Promise<ChatMessage[]> {
  const given = await readItems(message, field, 'messages')
  expectAnsweredCalls(given)
  return given.map((each, index) => {
    const shared = { content: textOf(each.content), ...(each.name === undefined ? {} : { name: each.name }) }
    switch (each.role) {
      case 'developer':
        return { role: 'system', ...shared }
      case 'tool':
        return { role: 'tool', ...shared, tool_call_id: each.tool_call_id }
      case 'assistant':
        if (each.content === undefined && each.tool_calls === undefined)
          throw invalidRequest(
            `Invalid value for 'content': expected a string, got null.`,
            `messages[${index}].content`,
            'invalid_type',
          )
        return {
          role: 'assistant',
          ...shared,
          ...(each.tool_calls === undefined ? {} : { tool_calls: each.tool_calls.map(templateCall) }),
        }
      default:
        return { role: each.role, ...shared }
    }
  })
}

const textOf = (content: Message['content']): string =>
  typeof content === 'string' ? content : (content ?? []).map((part) => part.text).join('\n')

/** Templates write arguments as JSON themselves. Those that are none stay text. */
function templateCall({ id, type, function: { name: called, arguments: json } }: z.output<typeof toolCall>): unknown {
  let values: unknown = json
  try {
    values = JSON.parse(json)
  } catch {}
  return { id, type, function: { name: called, arguments: values } }
}

/** Every call has its answer right behind it, and no answer is without a call. */
function expectAnsweredCalls(given: readonly Message[]): void {
  let open = new Set<string>()
  for (const [index, each] of given.entries()) {
    if (each.role === 'tool') {
      if (!open.delete(each.tool_call_id))
        throw invalidRequest(
          "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
          `messages[${index}].role`,
        )
      continue
    }
    expectNoneOpen(open, index)
    open = new Set(each.role === 'assistant' ? each.tool_calls?.map(({ id }) => id) : [])
  }
  expectNoneOpen(open, given.length)
}

function expectNoneOpen(open: ReadonlySet<string>, index: number): void {
  if (open.size === 0) return
  throw invalidRequest(
    `An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: ${[...open].join(', ')}`,
    `messages[${index}].role`,
  )
}
