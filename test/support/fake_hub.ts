/** A hub on the loopback interface with one model, which answers the routes that the Hugging Face JS library uses. */
import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { ExecutionContext } from 'ava'

export interface FakeHub {
  readonly endpoint: string
  readonly requests: { readonly path: string; readonly range: string | undefined }[]
  /** Breaks the connection after so many bytes of the next weights. */
  breakAfter: number | undefined
  /** Only this token gets an answer. */
  token: string | undefined
  close(): void
}

export const id = 'loom/tiny'
export const commit = '0123456789abcdef0123456789abcdef01234567'
export const weights = Buffer.alloc(300_000, 'warp and weft ')
export const files: Readonly<Record<string, Buffer>> = {
  'config.json': Buffer.from('{"model_type": "llama"}'),
  'tokenizer.json': Buffer.from('{}'),
  'README.md': Buffer.from('not wanted'),
  'model.safetensors': weights,
}

export const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex')
export const gitHash = (data: Buffer) => createHash('sha1').update(`blob ${data.length}\0`).update(data).digest('hex')

function tree() {
  return Object.entries(files).map(([path, data]) => ({
    type: 'file',
    path,
    size: data.length,
    oid: gitHash(data),
    ...(data === weights ? { lfs: { oid: sha256(data), size: data.length, pointerSize: 134 } } : {}),
  }))
}

export async function startHub(t: ExecutionContext): Promise<FakeHub> {
  const server = createServer((request, response) => answer(hub, request, response))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const hub: FakeHub = {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests: [],
    breakAfter: undefined,
    token: undefined,
    close: () => server.close().closeAllConnections(),
  }
  t.teardown(hub.close)
  return hub
}

function answer(hub: FakeHub, request: IncomingMessage, response: ServerResponse): void {
  const { pathname } = new URL(request.url!, hub.endpoint)
  hub.requests.push({ path: pathname, range: request.headers.range })
  const json = (status: number, value: unknown) =>
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
  if (hub.token !== undefined && request.headers.authorization !== `Bearer ${hub.token}`)
    json(401, { error: 'Invalid credentials' })
  else if (pathname === `/api/models/${id}/revision/main`) json(200, { id, sha: commit, lastModified: '2025-01-01' })
  else if (pathname === `/api/models/${id}/tree/${commit}`) json(200, tree())
  else if (pathname.startsWith(`/${id}/resolve/${commit}/`))
    sendFile(hub, request, response, files[pathname.split('/').at(-1)!]!)
  else json(404, { error: 'Repository not found' })
}

function sendFile(hub: FakeHub, request: IncomingMessage, response: ServerResponse, data: Buffer): void {
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? []
  const body = first === undefined ? data : data.subarray(Number(first), Number(last) + 1)
  response.writeHead(first === undefined ? 200 : 206, {
    'content-length': body.length,
    etag: `"${gitHash(data)}"`,
    ...(first === undefined ? {} : { 'content-range': `bytes ${first}-${last}/${data.length}` }),
  })
  if (hub.breakAfter === undefined || body.length <= hub.breakAfter) response.end(body)
  else response.write(body.subarray(0, hub.breakAfter), () => response.destroy())
}
