/** Requests to the server that the page came from, with the key that its user gave. */

/** The server refused, in OpenAI's form of errors. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    /** Seconds after which it is worth to ask again. */
    readonly retryAfter = 0,
  ) {
    super(message)
  }
}

const storedAt = `heddle-key:${location.pathname}`

/** The key, kept until the tab is closed and nowhere else. */
let key = sessionStorage.getItem(storedAt) ?? ''
const listeners = new Set<() => void>()
let isRefused = false

/** Whether the server wants a key, or another one. */
export const wantsKey = (): boolean => isRefused
export const hasKey = (): boolean => key !== ''

/** Empty: forgets it. */
export function setKey(value: string): void {
  key = value
  if (value === '') sessionStorage.removeItem(storedAt)
  else sessionStorage.setItem(storedAt, value)
  isRefused = false
  tell()
}

/** Tells of every change of {@link wantsKey} and {@link hasKey}. @returns stops it */
export function onKey(listener: () => void): () => void {
  listeners.add(listener)
  return () => void listeners.delete(listener)
}

const tell = (): void => {
  for (const listener of listeners) listener()
}

/** What is sent, beside the path. */
export interface Asked {
  readonly method?: 'POST'
  /** Sent as JSON, or as it is when it is a form. */
  readonly body?: object
  readonly signal?: AbortSignal
}

/** The answer's JSON. @throws Refused, or what `fetch` throws */
export const json = async <T>(path: string, asked?: Asked): Promise<T> => (await send(path, asked)).json() as Promise<T>

/** The objects of a stream of server-sent events. @throws Refused, or what `fetch` throws */
export async function* events<T>(path: string, asked?: Asked): AsyncGenerator<Awaited<T>, void, void> {
  const { body } = await send(path, asked)
  for await (const data of dataOf(body!.pipeThrough(new TextDecoderStream()).getReader())) {
    if (data === '[DONE]') return
    const event = JSON.parse(data) as { readonly error?: { readonly message: string } }
    if (event.error !== undefined) throw new Refused(500, event.error.message)
    yield event as Awaited<T>
  }
}

async function* dataOf(reader: ReadableStreamDefaultReader<string>): AsyncGenerator<string, void, void> {
  let rest = ''
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      const parts = (rest + next.value).split('\n\n')
      rest = parts.pop()!
      for (const part of parts) if (part.startsWith('data: ')) yield part.slice('data: '.length)
    }
  } finally {
    await reader.cancel()
  }
}

async function send(path: string, { method, body, signal }: Asked = {}): Promise<Response> {
  const isForm = body instanceof FormData
  const response = await fetch(`./${path}`, {
    headers: {
      ...(key === '' ? {} : { authorization: `Bearer ${key}` }),
      ...(body === undefined || isForm ? {} : { 'content-type': 'application/json' }),
    },
    ...(method === undefined ? {} : { method }),
    ...(body === undefined ? {} : { body: isForm ? body : JSON.stringify(body) }),
    ...(signal === undefined ? {} : { signal }),
  })
  if (response.ok) return response
  if (response.status === 401) {
    isRefused = true
    tell()
  }
  throw await refusalOf(response)
}

async function refusalOf(response: Response): Promise<Refused> {
  const { error } = (await response.json().catch(() => ({}))) as { readonly error?: { readonly message?: string } }
  const message = error?.message ?? `The server answered with status ${response.status}.`
  return new Refused(response.status, message, Number(response.headers.get('retry-after') ?? 0))
}

/** What went wrong, for people. */
export const messageOf = (error: unknown): string =>
  error instanceof Refused ? error.message : 'The server does not answer. Is it still running?'
