import { createHash } from 'node:crypto'
import { existsSync, lstatSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { HeddleError, type HeddleErrorCode } from '../lib/errors.js'
import { fetchFromHub, type HubProgress } from '../lib/formats/hub.js'
import { temporaryFolder } from './support/temporary_folder.js'

/** A hub on the loopback interface with one model, which answers the routes that the Hugging Face JS library uses. */
interface FakeHub {
  readonly endpoint: string
  readonly requests: { readonly path: string; readonly range: string | undefined }[]
  /** Breaks the connection after so many bytes of the next weights. */
  breakAfter: number | undefined
  /** Only this token gets an answer. */
  token: string | undefined
  close(): void
}

const id = 'loom/tiny'
const commit = '0123456789abcdef0123456789abcdef01234567'
const weights = Buffer.alloc(300_000, 'warp and weft ')
const files: Readonly<Record<string, Buffer>> = {
  'config.json': Buffer.from('{"model_type": "llama"}'),
  'tokenizer.json': Buffer.from('{}'),
  'README.md': Buffer.from('not wanted'),
  'model.safetensors': weights,
}

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex')
const gitHash = (data: Buffer) => createHash('sha1').update(`blob ${data.length}\0`).update(data).digest('hex')

function tree() {
  return Object.entries(files).map(([path, data]) => ({
    type: 'file',
    path,
    size: data.length,
    oid: gitHash(data),
    ...(data === weights ? { lfs: { oid: sha256(data), size: data.length, pointerSize: 134 } } : {}),
  }))
}

async function startHub(t: ExecutionContext): Promise<FakeHub> {
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

async function failure(t: ExecutionContext, work: Promise<unknown>, code: HeddleErrorCode): Promise<HeddleError> {
  const error = (await t.throwsAsync(work, { instanceOf: HeddleError })) as HeddleError
  t.is(error.code, code, error.message)
  return error
}

test('a model comes as a snapshot folder in the cache of Hugging Face', async (t) => {
  const hub = await startHub(t)
  const cacheFolder = temporaryFolder()
  const snapshot = await fetchFromHub(id, { endpoint: hub.endpoint, cacheFolder })
  t.is(snapshot, join(cacheFolder, 'models--loom--tiny', 'snapshots', commit))
  t.deepEqual(readdirSync(snapshot).sort(), ['config.json', 'model.safetensors', 'tokenizer.json'])
  t.true(lstatSync(join(snapshot, 'model.safetensors')).isSymbolicLink())
  t.true(readFileSync(join(snapshot, 'model.safetensors')).equals(weights))
  t.is(readFileSync(join(cacheFolder, 'models--loom--tiny', 'refs', 'main'), 'utf8'), commit)
})

test('what the cache has is not fetched again', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  await fetchFromHub(id, options)
  hub.requests.length = 0
  await fetchFromHub(id, options)
  t.deepEqual(
    hub.requests.filter(({ path }) => path.includes('/resolve/')),
    [],
  )
})

test('a download that breaks off goes on where it stopped', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  hub.breakAfter = 100_000
  await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_NETWORK')
  hub.breakAfter = undefined
  hub.requests.length = 0
  const snapshot = await fetchFromHub(id, options)
  t.true(readFileSync(join(snapshot, 'model.safetensors')).equals(weights))
  const starts = hub.requests.map(({ range }) => Number(/^bytes=(\d+)-/.exec(range ?? '')?.[1] ?? 0))
  t.true(Math.max(...starts) > 0, 'the second try asked for the rest only')
})

test('a partial file that is not what the hub has is dropped', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  await fetchFromHub(id, options)
  const blob = join(options.cacheFolder, 'models--loom--tiny', 'blobs', sha256(weights))
  writeFileSync(blob, '')
  writeFileSync(`${blob}.incomplete`, 'something else')
  const error = await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_NETWORK')
  t.regex(error.message, /damaged/)
  t.false(existsSync(`${blob}.incomplete`))
  await t.notThrowsAsync(fetchFromHub(id, options))
})

test('progress counts the bytes of all files', async (t) => {
  const hub = await startHub(t)
  const seen: HubProgress[] = []
  const onProgress = (progress: HubProgress) => seen.push(progress)
  await fetchFromHub(id, { endpoint: hub.endpoint, cacheFolder: temporaryFolder(), onProgress })
  const total = files['config.json']!.length + files['tokenizer.json']!.length + weights.length
  t.is(seen.at(-1)!.loaded, total)
  t.true(seen.every((progress) => progress.total === total && progress.loaded <= total))
})

test('a token is sent, and without it the refusal says what to do', async (t) => {
  const hub = await startHub(t)
  hub.token = 'hf_secret'
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  const error = await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_NETWORK')
  t.regex(error.message, /status 401.*HF_TOKEN/)
  await t.notThrowsAsync(fetchFromHub(id, { ...options, token: 'hf_secret' }))
})

test('an unknown model is ERR_HEDDLE_NETWORK with its name', async (t) => {
  const hub = await startHub(t)
  const work = fetchFromHub('loom/missing', { endpoint: hub.endpoint, cacheFolder: temporaryFolder() })
  const error = await failure(t, work, 'ERR_HEDDLE_NETWORK')
  t.is(error.place, 'loom/missing')
  t.regex(error.message, /status 404.*no such model/)
})

test('an unreachable hub is ERR_HEDDLE_NETWORK, or the cached snapshot', async (t) => {
  const hub = await startHub(t)
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder() }
  const snapshot = await fetchFromHub(id, options)
  hub.close()
  t.is(await fetchFromHub(id, options), snapshot)
  await failure(t, fetchFromHub('loom/other', options), 'ERR_HEDDLE_NETWORK')
})

test('an abort signal stops a download with ERR_HEDDLE_ABORTED', async (t) => {
  const hub = await startHub(t)
  const controller = new AbortController()
  const onProgress = () => controller.abort()
  const options = { endpoint: hub.endpoint, cacheFolder: temporaryFolder(), signal: controller.signal, onProgress }
  await failure(t, fetchFromHub(id, options), 'ERR_HEDDLE_ABORTED')
})

test('names that are no hub ids, and tokens that are none, are ERR_HEDDLE_ARGUMENT', async (t) => {
  for (const name of ['../etc/passwd', 'a/b/c', '', 'a//b', '/abs'])
    await failure(t, fetchFromHub(name, { cacheFolder: temporaryFolder() }), 'ERR_HEDDLE_ARGUMENT')
  await failure(t, fetchFromHub(id, { cacheFolder: temporaryFolder(), token: 'nonsense' }), 'ERR_HEDDLE_ARGUMENT')
})
