/**
 * Models from the Hugging Face hub, into the cache that Hugging Face's own tools share: blobs under their hash,
 * snapshots that link to them. A download that breaks off goes on where it stopped, and what arrives is checked.
 */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream, type Stats } from 'node:fs'
import { type FileHandle, mkdir, open, readdir, readFile, rename, rm, stat, symlink } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import type { ListFileEntry } from '@huggingface/hub'
import { HeddleError } from '../errors.js'
import { writeFileAtomic } from './atomic_file.js'

/** Progress, abort and access of a download from the hub. */
export interface HubOptions {
  /** Branch, tag or commit. Default `main`. */
  readonly revision?: string
  /** Access token for private and gated models. Default: the environment's `HF_TOKEN`. */
  readonly token?: string | undefined
  /** Default: the environment's `HF_ENDPOINT`, else https://huggingface.co. */
  readonly endpoint?: string | undefined
  /** Default: the environment's `HEDDLE_CACHE`, else the hub cache of Hugging Face (`HF_HUB_CACHE`, `HF_HOME`). */
  readonly cacheFolder?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Called as bytes arrive. */
  onProgress?(progress: HubProgress): void
}

/** How far a download is. */
export interface HubProgress {
  readonly file: string
  /** Bytes of all files that are here, those of earlier runs included. */
  readonly loaded: number
  readonly total: number
}

type HubLibrary = typeof import('@huggingface/hub')

interface Download {
  readonly library: HubLibrary
  readonly id: string
  readonly revision: string
  readonly folder: string
  readonly options: HubOptions
  /** What every call of the library takes. */
  readonly access: { readonly hubUrl: string; readonly fetch: typeof fetch; readonly accessToken?: string }
}

/** `organisation/model`, or a bare old-style model name. */
const idPattern = /^[A-Za-z0-9][\w.-]*(\/[\w][\w.-]*)?$/
const defaultEndpoint = 'https://huggingface.co'
const wantedFiles = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
  'modules.json',
  'sentence_bert_config.json',
  '1_Pooling/config.json',
  'model.safetensors.index.json',
])
const weights = /^model(-\d{5}-of-\d{5})?\.safetensors$/

/** Whether a model source can be a hub id, as opposed to a path. */
export const isHubId = (source: string): boolean => idPattern.test(source) && !source.includes('..')

/** Where downloads go unless an option says otherwise. */
export const hubCacheFolder = async (): Promise<string> =>
  process.env.HEDDLE_CACHE ?? (await import('@huggingface/hub')).getHFHubCachePath()

/**
 * Fetches what Heddle needs of a model (config, safetensors, tokenizer) unless the cache has it, and returns the
 * snapshot's folder. With `HF_HUB_OFFLINE=1`, or when the hub cannot be reached, the cached snapshot serves.
 * @throws ERR_HEDDLE_NETWORK when the hub refuses or breaks off, ERR_HEDDLE_ABORTED by the signal
 */
export async function fetchFromHub(id: string, options: HubOptions = {}): Promise<string> {
  const download = await prepare(id, options)
  if (process.env.HF_HUB_OFFLINE === '1') return (await cachedSnapshot(download)) ?? Promise.reject(notCached(id))
  try {
    return await fetchSnapshot(download)
  } catch (cause) {
    if (options.signal?.aborted)
      throw new HeddleError('ERR_HEDDLE_ABORTED', { place: id, expected: 'to finish', got: 'an abort signal', cause })
    if (cause instanceof HeddleError) throw cause
    const cached = isUnreachable(cause) ? await cachedSnapshot(download) : undefined
    if (cached) return cached
    throw networkError(download, cause)
  }
}

async function prepare(id: string, options: HubOptions): Promise<Download> {
  if (!isHubId(id))
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'model', expected: 'a hub id "organisation/name"', got: id })
  const library = await import('@huggingface/hub')
  const token = options.token ?? process.env.HF_TOKEN
  if (token && !token.startsWith('hf_'))
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: options.token === undefined ? 'HF_TOKEN' : 'token',
      expected: 'an access token that starts with "hf_"',
      got: 'another text',
    })
  const cache = options.cacheFolder ?? (await hubCacheFolder())
  return {
    library,
    id,
    revision: options.revision ?? 'main',
    folder: join(cache, library.getRepoFolderName({ type: 'model', name: id })),
    options,
    access: {
      hubUrl: (options.endpoint ?? process.env.HF_ENDPOINT ?? defaultEndpoint).replace(/\/+$/, ''),
      fetch: (input, init) => fetch(input, { ...init, ...(options.signal ? { signal: options.signal } : {}) }),
      ...(token ? { accessToken: token } : {}),
    },
  }
}

async function fetchSnapshot(download: Download): Promise<string> {
  const { library, id, revision, folder, access, options } = download
  const { sha } = await library.modelInfo({ name: id, revision, additionalFields: ['sha'], ...access })
  if (!/^[0-9a-f]{40}$/.test(sha)) throw new Error(`the hub named "${sha}" as the commit`)
  const files = await wantedOf(download, sha)
  const total = files.reduce((sum, { size }) => sum + size, 0)
  const snapshot = join(folder, 'snapshots', sha)
  let earlier = 0
  for (const file of files) {
    const report = (loaded: number) => options.onProgress?.({ file: file.path, loaded: earlier + loaded, total })
    await fetchFile(download, { file, commit: sha, target: join(snapshot, file.path), report })
    earlier += file.size
  }
  // Last, so that a ref never names a snapshot that is not whole.
  if (revision !== sha) await writeFileAtomic(join(folder, 'refs', revision), sha)
  return snapshot
}

async function wantedOf({ library, id, access }: Download, commit: string): Promise<ListFileEntry[]> {
  const files: ListFileEntry[] = []
  for await (const entry of library.listFiles({ repo: id, revision: commit, ...access }))
    if (entry.type === 'file' && (wantedFiles.has(entry.path) || weights.test(entry.path))) files.push(entry)
  const has = (test: (path: string) => boolean) => files.some(({ path }) => test(path))
  if (!has((path) => path === 'config.json') || !has((path) => weights.test(path)))
    throw new HeddleError('ERR_HEDDLE_FORMAT', {
      place: id,
      expected: 'a model with config.json and model*.safetensors',
      got: files.map(({ path }) => path).join(', ') || 'none of them',
      hint: 'For a GGUF file, download it and give its path',
    })
  // Once the weights have come as one file, shards of the same are not needed.
  const whole = has((path) => path === 'model.safetensors')
  return whole ? files.filter(({ path }) => !/-of-|index/.test(path)) : files
}

interface FileJob {
  readonly file: ListFileEntry
  readonly commit: string
  /** Where the snapshot has it. */
  readonly target: string
  report(loaded: number): void
}

async function fetchFile(download: Download, job: FileJob): Promise<void> {
  const { file, target } = job
  const hash = file.lfs?.oid ?? file.oid
  if (!hash || !/^[0-9a-f]{40,64}$/.test(hash)) throw new Error(`the hub gave no hash for ${file.path}`)
  const blob = join(download.folder, 'blobs', hash)
  if ((await statOf(blob))?.size !== file.size) await fetchBlob(download, job, { blob, hash })
  job.report(file.size)
  await linkTo(blob, target)
}

async function fetchBlob(
  { library, id, access }: Download,
  { file, commit, report }: FileJob,
  { blob, hash }: { readonly blob: string; readonly hash: string },
): Promise<void> {
  const partial = `${blob}.incomplete`
  await mkdir(dirname(blob), { recursive: true })
  // Plain HTTP ranges, which are enough to resume and need no WebAssembly on the event loop.
  const content = await library.downloadFile({ repo: id, path: file.path, revision: commit, xet: false, ...access })
  if (!content || content.size !== file.size)
    throw new Error(`the hub has ${content?.size ?? 'no'} bytes of ${file.path} instead of ${file.size}`)
  const digest = file.lfs ? createHash('sha256') : createHash('sha1').update(`blob ${file.size}\0`)
  const handle = await open(partial, 'a')
  try {
    const start = await resumePoint(handle, partial, { size: file.size, digest })
    if (start < file.size)
      await append(handle, content.slice(start).stream(), { start, size: file.size, digest, report })
    await handle.sync()
  } finally {
    await handle.close()
  }
  if (digest.digest('hex') !== hash) {
    await rm(partial, { force: true })
    throw new Error(`${file.path} arrived damaged: its hash is not ${hash}`)
  }
  await rename(partial, blob)
}

/** Bytes of an earlier try, taken into the digest. */
async function resumePoint(
  handle: FileHandle,
  path: string,
  { size, digest }: { readonly size: number; readonly digest: Hash },
): Promise<number> {
  const { size: have } = await handle.stat()
  if (have > size) await handle.truncate(0)
  if (have === 0 || have > size) return 0
  for await (const chunk of createReadStream(path)) digest.update(chunk as Buffer)
  return have
}

interface Append {
  readonly start: number
  readonly size: number
  readonly digest: Hash
  report(loaded: number): void
}

async function append(
  handle: FileHandle,
  stream: ReadableStream<Uint8Array>,
  { start, size, digest, report }: Append,
): Promise<void> {
  let loaded = start
  const reader = stream.getReader()
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    await handle.appendFile(next.value)
    digest.update(next.value)
    loaded += next.value.length
    if (loaded > size) throw new Error(`the hub sent more than the ${size} bytes it had announced`)
    report(loaded)
  }
}

async function linkTo(blob: string, target: string): Promise<void> {
  await mkdir(dirname(target), { recursive: true })
  await rm(target, { force: true })
  await symlink(relative(dirname(target), blob), target)
}

/** The snapshot of an earlier run, when it has all that a model needs. */
async function cachedSnapshot({ folder, revision }: Download): Promise<string | undefined> {
  const commit = await readFile(join(folder, 'refs', revision), 'utf8').catch(() => revision)
  const snapshot = join(folder, 'snapshots', commit.trim())
  const names = await readdir(snapshot).catch((): string[] => [])
  return names.includes('config.json') && names.some((name) => weights.test(name)) ? snapshot : undefined
}

const statOf = (path: string): Promise<Stats | undefined> => stat(path).catch(() => undefined)

/** No answer at all, as opposed to one that refuses. */
const isUnreachable = (cause: unknown) => cause instanceof TypeError && cause.message === 'fetch failed'

const notCached = (id: string) =>
  new HeddleError('ERR_HEDDLE_NETWORK', {
    place: id,
    expected: 'a model in the cache, since HF_HUB_OFFLINE is 1',
    got: 'none',
    hint: 'Unset HF_HUB_OFFLINE once to fetch it',
  })

function networkError({ id, revision, access, library }: Download, cause: unknown): HeddleError {
  const place = revision === 'main' ? id : `${id}@${revision}`
  const status = cause instanceof library.HubApiError ? cause.statusCode : undefined
  return new HeddleError('ERR_HEDDLE_NETWORK', {
    place,
    expected: `a model from ${access.hubUrl}`,
    got: status === undefined ? reasonOf(cause) : `status ${status}`,
    hint: hintFor(status, access.accessToken !== undefined),
    cause,
  })
}

/** The innermost reason: fetch hides it in `cause`, and the library's streams fail with bare strings. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const { code } = error as { readonly code?: unknown }
  if (error.cause !== undefined) return reasonOf(error.cause)
  return error.message || String(code)
}

function hintFor(status: number | undefined, hasToken: boolean): string {
  switch (status) {
    case 401:
    case 403:
      return hasToken
        ? 'The token does not give access: accept the model’s terms on its page, or check HF_TOKEN'
        : 'Is the name right? A private or gated model needs a token in HF_TOKEN'
    case 404:
      return 'There is no such model or revision; the name is "organisation/model"'
    default:
      return 'Try again: the download goes on where it stopped. HF_ENDPOINT names another hub'
  }
}
