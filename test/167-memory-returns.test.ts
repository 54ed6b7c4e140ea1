// After any number of clients that mean harm or have broken down, a server holds what it held before them.
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { tinyChatFolder } from './support/chat_model.js'
import type { Holding } from './support/fare_child.js'
import { RawClient, rawRequest } from './support/raw_client.js'
import { temporaryFolder } from './support/temporary_folder.js'

const completions = 'POST /v1/completions'
const json = { 'content-type': 'application/json' }
const form = { 'content-type': 'multipart/form-data; boundary=seam' }
const whole = (line: string, body: unknown): string => {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  return rawRequest(line, { ...json, 'content-length': `${Buffer.byteLength(text)}` }, text)
}
/** The end of a text is ruled out, so that it goes on as long as it may. */
const endless = { model: 'tiny', prompt: 'Once', max_tokens: 400, logit_bias: { 0: -100 } }
const schema = { type: 'object', properties: { a: { type: 'string' }, b: { type: 'integer' } } }
const nested = '['.repeat(60_000)
const half = ' '.repeat(900_000)

/** What a client does before it is gone, and the status that it gets if it waits for one. */
const clients: Readonly<Record<string, (client: RawClient) => Promise<number | undefined>>> = {
  'hangs up in the middle of a stream': async (client) => {
    await client.send(whole(completions, { ...endless, stream: true }))
    await client.untilReceived('data: ')
    return undefined
  },
  'hangs up before the first token': async (client) => {
    await client.send(whole(completions, endless))
    return undefined
  },
  'hangs up before the first token of many texts': async (client) => {
    await client.send(whole(completions, { ...endless, n: 40, temperature: 1, stream: true }))
    return undefined
  },
  'hangs up while a schema is made ready': async (client) => {
    const response_format = { type: 'json_schema', json_schema: { name: 'x', schema } }
    const messages = [{ role: 'user', content: 'x' }]
    await client.send(whole('POST /v1/chat/completions', { model: 'tiny', messages, response_format }))
    return undefined
  },
  'reads nothing of a stream': async (client) => {
    client.socket.pause()
    await client.send(whole(completions, { ...endless, n: 4, temperature: 1, stream: true }))
    return undefined
  },
  'says that 100 MB come': (client) =>
    answered(client, rawRequest(completions, { ...json, 'content-length': '100000000' })),
  'sends more and more': async (client) => {
    await client.send(rawRequest(completions, { ...json, 'transfer-encoding': 'chunked' }))
    const piece = `10000\r\n${' '.repeat(2 ** 16)}\r\n`
    while (client.status === undefined && (await client.send(piece)));
    return client.status ?? 413
  },
  'sends half a head': async (client) => {
    await client.send('GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx-h')
    return undefined
  },
  'sends half a body': async (client) => {
    await client.send(rawRequest(completions, { ...json, 'content-length': '1000000' }, half))
    return undefined
  },
  'sends half a file': async (client) => {
    const head = '--seam\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    await client.send(rawRequest('POST /v1/files', { ...form, 'content-length': '10000000' }, head + half))
    return undefined
  },
  'sends brackets': (client) => answered(client, whole(completions, nested)),
  'sends no HTTP': (client) => answered(client, '\x16\x03\x01\x02\x00'),
  'asks for another folder': (client) => answered(client, whole(completions, { ...endless, model: '../../etc' })),
  'asks for another route': (client) => answered(client, rawRequest('GET /v1/models/..%2f..%2fetc%2fpasswd')),
  'asks for more than there is room for': (client) =>
    answered(client, whole(completions, { ...endless, prompt: 'a'.repeat(100_000) })),
}

async function answered(client: RawClient, request: string): Promise<number | undefined> {
  await client.send(request)
  await client.untilReceived('\r\n\r\n')
  return client.status
}

const due: Readonly<Record<string, number>> = {
  'says that 100 MB come': 413,
  'sends more and more': 413,
  'sends brackets': 400,
  'sends no HTTP': 400,
  'asks for another folder': 404,
  'asks for another route': 404,
  'asks for more than there is room for': 400,
}

/** Several of each kind at a time. @returns the statuses that they got, by kind */
async function wave(url: string): Promise<Record<string, number>> {
  const seen: Record<string, number> = {}
  const one = async ([kind, act]: (typeof kinds)[number]): Promise<void> => {
    const client = await RawClient.connect(url)
    const status = await act(client)
    if (status !== undefined) seen[kind] = status
    client.socket.destroy()
  }
  const kinds = Object.entries(clients)
  await Promise.all(
    Array.from({ length: 4 }, () => kinds)
      .flat()
      .map(one),
  )
  return seen
}

async function start(data: string): Promise<{ readonly child: ChildProcess; readonly url: string }> {
  const script = fileURLToPath(new URL('./support/fare_child.js', import.meta.url))
  const child = fork(script, [await tinyChatFolder(), data], { execArgv: ['--expose-gc'] })
  const [{ url }] = (await once(child, 'message')) as [{ readonly url: string }]
  return { child, url }
}

async function holding(child: ChildProcess): Promise<Holding> {
  const answer = once(child, 'message')
  child.send('ask')
  return (await answer)[0] as Holding
}

test('memory, sockets and files are after 600 hostile clients what they were before', async (t) => {
  const data = temporaryFolder()
  const { child, url } = await start(data)
  t.teardown(() => child.kill())
  // Everything is used once: programs are compiled, caches are full.
  for (let i = 0; i < 3; i += 1) t.deepEqual(await wave(url), due)
  const before = await holding(child)
  for (let i = 0; i < 10; i += 1) t.deepEqual(await wave(url), due)
  const after = await holding(child)
  t.is(after.connections, 0)
  t.is(after.files, before.files)
  t.deepEqual(after.state, before.state)
  t.like(after.state, { running: 0, waiting: 0, cache: { usedBytes: 0 } })
  t.deepEqual(readdirSync(join(data, 'files')), [])
  const grown = (pick: (each: Holding) => number): number => (pick(after) - pick(before)) / 2 ** 20
  const [heap, resident] = [grown((each) => each.heapBytes), grown((each) => each.residentBytes)]
  // Half of a body kept for each client that sent one would be 36 MiB; a closed connection with its buffers, some kB each, 4.
  t.true(heap < 3, `the heap grew by ${heap.toFixed(1)} MiB`)
  t.true(resident < 20, `resident memory grew by ${resident.toFixed(1)} MiB`)
  const answer = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: json,
    body: JSON.stringify({ model: 'tiny', prompt: 'Once', max_tokens: 3 }),
  })
  t.is(answer.status, 200)
  const exit = once(child, 'exit')
  child.disconnect()
  t.deepEqual(await exit, [0, null])
})
