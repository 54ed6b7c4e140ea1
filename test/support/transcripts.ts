/** What curl sends to a served heddle-tiny and what it gets, byte for byte but for what differs from run to run. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

/** One request. */
export interface Asked {
  readonly path: string
  /** Sent as JSON; without one, the request is a GET. */
  readonly body?: unknown
  /** Sent as it is in the place of a body. */
  readonly raw?: string
  /** Sent as a form: fields, and files as `@path;filename=name`. */
  readonly form?: Readonly<Record<string, string>>
  /** Default: GET without something to send, else POST. */
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
}

const model = 'heddle-tiny'
const chat = '/v1/chat/completions'
const messages = [{ role: 'user', content: 'What shall we weave today?' }]
const greedy = { model, temperature: 0, max_tokens: 5 }
const parameters = {
  type: 'object',
  properties: { kind: { enum: ['floor', 'table'] } },
  required: ['kind'],
  additionalProperties: false,
}
const tools = [{ type: 'function', function: { name: 'set_loom', description: 'Sets up a loom', parameters } }]
const called = { ...greedy, messages, tools, tool_choice: 'required', max_tokens: 60 }

/** Every kind of request, by the name of its transcript. */
export const requests: Readonly<Record<string, Asked>> = {
  models: { path: '/v1/models' },
  model: { path: '/v1/models/shout' },
  'model-unknown': { path: '/v1/models/..%2F..%2Fetc' },
  chat: { path: chat, body: { ...greedy, messages } },
  'chat-stream': { path: chat, body: { ...greedy, messages, stream: true } },
  'chat-stream-usage': {
    path: chat,
    body: { ...greedy, messages, max_tokens: 2, stream: true, stream_options: { include_usage: true } },
  },
  'chat-adapter': { path: chat, body: { ...greedy, model: 'shout', messages } },
  'chat-stop': { path: chat, body: { ...greedy, messages, max_tokens: 40, stop: ['.'] } },
  'chat-logprobs': { path: chat, body: { ...greedy, messages, max_tokens: 2, logprobs: true, top_logprobs: 2 } },
  'chat-logprobs-stream': { path: chat, body: { ...greedy, messages, max_tokens: 2, logprobs: true, stream: true } },
  'chat-json': {
    path: chat,
    body: {
      ...greedy,
      messages,
      max_tokens: 40,
      response_format: { type: 'json_schema', json_schema: { name: 'loom', schema: parameters, strict: true } },
    },
  },
  'chat-tools': { path: chat, body: called },
  'chat-tools-stream': { path: chat, body: { ...called, stream: true } },
  'chat-unknown-model': { path: chat, body: { ...greedy, model: 'gpt-4', messages } },
  'chat-unknown-field': { path: chat, body: { ...greedy, messages, top_k: 4 } },
  'chat-unknown-role': { path: chat, body: { ...greedy, messages: [{ role: 'weaver', content: 'Hi' }] } },
  'chat-no-messages': { path: chat, body: greedy },
  'chat-hot': { path: chat, body: { ...greedy, messages, temperature: 2.5 } },
  'chat-stream-refused': { path: chat, body: { ...greedy, messages, stream: true, logit_bias: { 9999: 1 } } },
  'chat-too-long': { path: chat, body: { ...greedy, messages: [{ role: 'user', content: 'warp '.repeat(300) }] } },
  completion: { path: '/v1/completions', body: { ...greedy, prompt: 'The government' } },
  'completion-stream': { path: '/v1/completions', body: { ...greedy, prompt: 'The government', stream: true } },
  'completion-logprobs': {
    path: '/v1/completions',
    body: { ...greedy, max_tokens: 2, prompt: 'The government', logprobs: 2 },
  },
  'completion-several': { path: '/v1/completions', body: { ...greedy, prompt: ['Mr. Speaker', 'In the'], echo: true } },
  'completion-suffix': { path: '/v1/completions', body: { ...greedy, prompt: 'x', suffix: 'y' } },
  embedding: { path: '/v1/embeddings', body: { model, input: 'A stitch in time' } },
  'embedding-base64': { path: '/v1/embeddings', body: { model, input: ['a', 'b'], encoding_format: 'base64' } },
  'not-json': { path: chat, raw: '{"model": ' },
  'not-json-type': { path: chat, raw: 'model=x', headers: { 'content-type': 'text/csv' } },
  'no-body': { path: chat, raw: '' },
  'unknown-path': { path: '/v1/audio/speech', body: {} },
}

const run = promisify(execFile)

/** Asks with curl. */
export const transcript = async (url: string, asked: Asked): Promise<string> => (await exchange(url, asked)).text

/** Asks with curl. @returns what the answer says, too */
export async function exchange(url: string, asked: Asked): Promise<{ readonly text: string; readonly body: string }> {
  const { path, body, form, raw = body === undefined ? undefined : JSON.stringify(body) } = asked
  const headers = { ...(raw === undefined ? {} : { 'content-type': 'application/json' }), ...asked.headers }
  const method = asked.method ?? (raw === undefined && form === undefined ? 'GET' : 'POST')
  const fields = Object.entries(form ?? {}).map(([name, value]) => `${name}=${value}`)
  const flags = [
    ...Object.entries(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`]),
    ...fields.flatMap((field) => ['-F', field]),
    ...(raw === undefined ? [] : ['--data-binary', raw]),
  ]
  // No reader of configurations, no progress, the head with the body.
  const { stdout } = await run('curl', ['-q', '-sS', '-N', '-i', '-X', method, ...flags, `${url}${path}`])
  const answer = stdout.replaceAll('\r\n', '\n')
  const head = [`${method} ${path}`, ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`)]
  const sent = raw ?? fields.map((field) => field.replace(/@[^;]*\//, '@')).join('\n')
  return {
    text: `${normalised(`${head.join('\n')}\n\n${sent}\n---\n${answer}`)}\n`,
    body: answer.slice(answer.indexOf('\n\n') + 2),
  }
}

/** Without ids and times; numbers to three digits, as another processor adds in another order; long vectors cut. */
const normalised = (answer: string): string =>
  answer
    .replace(/^date: .*$/im, 'date: <date>')
    .replace(/^x-request-id: .*$/m, 'x-request-id: <id>')
    .replace(/^content-length: \d+$/m, 'content-length: <bytes>')
    .replaceAll(/"(created|created_at|finished_at)":\d{10}\b/g, '"$1":<time>')
    .replaceAll(/"tokens_per_second":\d+/g, '"tokens_per_second":<n>')
    .replaceAll(/\b(chatcmpl-|cmpl-|call_|file-|ftjob-|ftevent-|ftckpt-)[0-9a-f]{24}\b/g, '$1<id>')
    .replaceAll(/\b(ft:[\w.-]+:[\w.-]*:)[0-9a-f]{10}\b/g, '$1<id>')
    .replaceAll(/-?\d+\.\d{4,}(e-\d+)?/g, (number) => threeDigits(Number(number)))
    .replaceAll(/"embedding":\[([^\]]*)\]/g, (_, list: string) => {
      const numbers = list.split(',')
      return `"embedding":[${numbers.slice(0, 3).join(',')}, <${numbers.length - 3} more>]`
    })
    .replaceAll(/"embedding":"([A-Za-z0-9+/=]+)"/g, (_, text: string) => {
      const bytes = Buffer.from(text, 'base64')
      return `"embedding":"<${bytes.length} bytes: ${threeDigits(bytes.readFloatLE(0))}…>"`
    })

const threeDigits = (number: number): string => number.toFixed(3).replace(/^-0\.000$/, '0.000')
