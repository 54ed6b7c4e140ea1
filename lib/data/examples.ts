/** Training examples as users write them down: JSONL rows of three kinds, or a plain text. */
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { extname } from 'node:path'
import { HeddleError } from '../errors.js'
import type { ChatMessage } from '../tokenize/chat_template.js'

/** One example: a conversation, a prompt with its completion, or running text. */
export type Example =
  | { readonly messages: readonly ChatMessage[] }
  | { readonly prompt: string; readonly completion: string }
  | { readonly text: string }

/** A row that could not be used. */
export interface SkippedRow {
  readonly line: number
  readonly reason: string
}

/** A row of a data file. */
export interface Row {
  readonly line: number
  /** The example, or why the row is none. */
  readonly content: Example | { readonly reason: string }
  /** Bytes of the file up to the end of this row. */
  readonly bytesRead: number
}

const maxLineBytes = 1 << 24
const lineFeed = 0x0a

/**
 * Reads a data file row by row. `.jsonl`, `.ndjson` and `.json` hold one object per line: `{"messages": [{"role",
 * "content"}, …]}`, `{"prompt", "completion"}` or `{"text"}`. Any `.txt` or `.md` file is one text. A malformed row
 * comes out as a reason and does not end the reading.
 * @throws ERR_HEDDLE_IO when the file cannot be read, ERR_HEDDLE_ARGUMENT when its name says another format
 */
export async function* readExamples(path: string): AsyncGenerator<Row> {
  const rowsOf = readers.get(extname(path).toLowerCase())
  if (!rowsOf)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: path,
      expected: `a data file ending in ${[...readers.keys()].join(', ')}`,
      got: extname(path) || 'a name without an ending',
    })
  try {
    yield* rowsOf(path)
  } catch (cause) {
    if (cause instanceof HeddleError || !(cause instanceof Error)) throw cause
    throw new HeddleError('ERR_HEDDLE_IO', { place: path, expected: 'a readable file', got: cause.message, cause })
  }
}

/** Size of a data file in bytes, for progress. @throws ERR_HEDDLE_IO */
export async function dataFileSize(path: string): Promise<number> {
  try {
    return (await stat(path)).size
  } catch (cause) {
    const got = cause instanceof Error ? cause.message : String(cause)
    throw new HeddleError('ERR_HEDDLE_IO', { place: path, expected: 'a data file', got, cause })
  }
}

async function* jsonlRows(path: string): AsyncGenerator<Row> {
  let line = 0
  let bytesRead = 0
  for await (const bytes of lines(path)) {
    line++
    bytesRead += bytes.length + 1
    const content = parseRow(bytes, line)
    if (content) yield { line, content, bytesRead }
  }
}

async function* textRows(path: string): AsyncGenerator<Row> {
  const decoder = new TextDecoder()
  let text = ''
  let bytesRead = 0
  for await (const chunk of createReadStream(path)) {
    const bytes = chunk as Buffer
    bytesRead += bytes.length
    text += decoder.decode(bytes, { stream: true })
  }
  yield { line: 1, content: { text: text + decoder.decode() }, bytesRead }
}

const readers = new Map([
  ['.jsonl', jsonlRows],
  ['.ndjson', jsonlRows],
  ['.json', jsonlRows],
  ['.txt', textRows],
  ['.md', textRows],
])

/** The lines of a file without their ends; one above the limit comes out cut, as something that is no JSON. */
async function* lines(path: string): AsyncGenerator<Buffer> {
  let parts: Buffer[] = []
  let held = 0
  for await (const chunk of createReadStream(path)) {
    let start = 0
    const bytes = chunk as Buffer
    for (let end = bytes.indexOf(lineFeed); end >= 0; end = bytes.indexOf(lineFeed, start)) {
      yield Buffer.concat([...parts, bytes.subarray(start, end)])
      parts = []
      held = 0
      start = end + 1
    }
    if (start < bytes.length && held <= maxLineBytes) {
      parts.push(bytes.subarray(start))
      held += bytes.length - start
    }
  }
  if (held > 0) yield Buffer.concat(parts)
}

function parseRow(bytes: Buffer, line: number): Row['content'] | undefined {
  if (bytes.length > maxLineBytes) return { reason: `a line of more than ${maxLineBytes} bytes` }
  const text = bytes
    .toString('utf8')
    .replace(/^\ufeff/, '')
    .trim()
  if (text === '') return undefined
  if (line === 1 && text.startsWith('[')) return { reason: 'a JSON array; write one object per line instead' }
  try {
    return exampleOf(JSON.parse(text))
  } catch (cause) {
    return { reason: `not JSON: ${cause instanceof Error ? cause.message : cause}` }
  }
}

/** Checks that a value is an example; else says what is wrong with it. */
export function exampleOf(value: unknown): Example | { readonly reason: string } {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return { reason: 'not a JSON object' }
  const row = value as Readonly<Record<string, unknown>>
  if (row.messages !== undefined) return chatOf(row.messages)
  const { prompt, completion, text } = row
  if (typeof prompt === 'string' && typeof completion === 'string') return { prompt, completion }
  if (typeof text === 'string') return { text }
  const keys = Object.keys(row).slice(0, 8).join(', ')
  return {
    reason: `expected "messages", "prompt" and "completion", or "text" as strings; got the keys ${keys || 'none'}`,
  }
}

function chatOf(value: unknown): Example | { readonly reason: string } {
  if (!Array.isArray(value) || value.length === 0) return { reason: '"messages" is not a list of messages' }
  const messages: ChatMessage[] = []
  for (const [index, item] of value.entries()) {
    const { role, content } = (item ?? {}) as { readonly role?: unknown; readonly content?: unknown }
    if (typeof role !== 'string' || typeof content !== 'string')
      return { reason: `message ${index + 1} has no "role" and "content" that are strings` }
    messages.push({ role, content })
  }
  if (!messages.some(({ role }) => role === 'assistant')) return { reason: 'no message of the assistant to learn from' }
  return { messages }
}
