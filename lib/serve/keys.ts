/**
 * API keys: a file of their hashes, who may do what, and the check of every request.
 *
 * A line of the file is `<name> <scope,scope> sha256:<64 hexadecimal digits>`, with limits of the key's own behind it
 * (`max-rate=60`); empty lines and those that begin with # say nothing. Keys are 32 random bytes, which nobody can guess from a hash, so that a plain hash is as safe as a slow one
 * and costs a request microseconds. The file holds nothing that opens the server.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { unwatchFile, watchFile } from 'node:fs'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { HeddleError } from '../errors.js'
import { type ClientLimits, parseClientLimits } from './limits.js'
import { refuse } from './openai/refusal.js'

/** What a key may be good for; `admin` is good for all. */
export const scopes = ['infer', 'train', 'metrics', 'admin'] as const

/** See {@link scopes}. */
export type Scope = (typeof scopes)[number]

/** Who asks. */
export interface Client {
  /** The key's name, or the address where there are no keys. */
  readonly name: string
  readonly scopes: readonly Scope[]
  /** Where they are not the server's. */
  readonly limits: ClientLimits
}

/** As the limits of a key are called in its line. */
const limitNames = {
  'max-body': 'bodyBytes',
  'max-prompt-tokens': 'promptTokens',
  'max-new-tokens': 'newTokens',
  'max-concurrency': 'concurrency',
  'max-rate': 'requestsPerMinute',
  'max-seconds': 'answerSeconds',
} as const satisfies Readonly<Record<string, keyof ClientLimits>>

interface Key extends Client {
  readonly hash: Buffer
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Who asks; null on routes that everybody may use. */
    client: Client | null
  }
  interface FastifyContextConfig {
    /** What a key must be good for; `public`: no key is asked for. Default: by the route's path, see `scopeOf`. */
    scope?: Scope | 'public'
  }
}

/** The keys of a file, read anew when it changes. */
export class KeyRing {
  #keys: readonly Key[]

  private constructor(
    readonly path: string,
    keys: readonly Key[],
  ) {
    this.#keys = keys
  }

  /** @throws ERR_HEDDLE_IO, or ERR_HEDDLE_FORMAT with the line */
  static async open(path: string): Promise<KeyRing> {
    return new KeyRing(path, await readKeys(path))
  }

  get names(): readonly string[] {
    return this.#keys.map(({ name }) => name)
  }

  /** Compares with every key in constant time, so that the time tells nothing about any of them. */
  find(secret: string): Client | undefined {
    const hash = hashOf(secret)
    let found: Key | undefined
    for (const key of this.#keys) if (timingSafeEqual(key.hash, hash)) found = key
    return found
  }

  /** Reads the file again; the keys stay as they were if it cannot be read. @throws as {@link KeyRing.open} */
  async reload(): Promise<void> {
    this.#keys = await readKeys(this.path)
  }

  /** Reloads when the file changes and on SIGHUP. @returns stops it */
  watch(onReload: (error: unknown) => void): () => void {
    const reload = (): void => {
      this.reload().then(() => onReload(undefined), onReload)
    }
    // Looks at the path and not at the file, so that a file that was put in its place is seen, too.
    watchFile(this.path, { interval: 1000, persistent: false }, reload)
    process.on('SIGHUP', reload)
    return () => {
      unwatchFile(this.path, reload)
      process.off('SIGHUP', reload)
    }
  }
}

/** What a key is made with. */
export type KeyOptions = Omit<Client, 'limits'> & Partial<Pick<Client, 'limits'>>

/**
 * Makes a key and adds its hash to a file, which is made when there is none.
 * @returns the key, which is nowhere else
 * @throws ERR_HEDDLE_ARGUMENT on a name that is taken or not plain, or a limit that is none; ERR_HEDDLE_FORMAT, ERR_HEDDLE_IO
 */
export async function addKey(path: string, { name, scopes: granted, limits = {} }: KeyOptions): Promise<string> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '# <name> <scopes> <hash>; written by `heddle serve keys`\n'
    throw unreadable(path, error)
  })
  const secret = `hk-${randomBytes(32).toString('base64url')}`
  const own = limitsText(parseClientLimits('keys', limits))
  const line = [name, granted.join(','), `sha256:${hashOf(secret).toString('hex')}`, ...own].join(' ')
  const keys = parseKeys(text, path)
  if (!isName(name)) throw misuse('keys.name', 'letters, digits, ".", "_" and "-", at most 64', name)
  if (keys.some((key) => key.name === name)) throw misuse('keys.name', 'a name that is not taken', name)
  await replaceFile(path, `${text}${text === '' || text.endsWith('\n') ? '' : '\n'}${line}\n`)
  return secret
}

/** Takes a key out of a file. @throws ERR_HEDDLE_ARGUMENT when it has none of that name */
export async function removeKey(path: string, name: string): Promise<void> {
  const keys = await readKeys(path)
  if (!keys.some((key) => key.name === name)) throw misuse('keys.name', 'the name of a key', name)
  const lines = (await readFile(path, 'utf8')).split('\n')
  await replaceFile(path, lines.filter((line) => line.trim().split(/\s+/)[0] !== name).join('\n'))
}

/** The keys of a file, without their hashes. @throws as {@link KeyRing.open} */
export const listKeys = async (path: string): Promise<Client[]> =>
  (await readKeys(path)).map(({ name, scopes, limits }) => ({ name, scopes, limits }))

/** Limits as they stand in a line: `max-rate=60`. */
export const limitsText = (limits: ClientLimits): string[] =>
  Object.entries(limitNames).flatMap(([name, field]) =>
    limits[field] === undefined ? [] : [`${name}=${limits[field]}`],
  )

/** Asks every request for a key, unless its route is public; without a ring, everybody may do everything. */
export function askForKeys(app: FastifyInstance, ring: KeyRing | undefined): void {
  app.decorateRequest('client', null)
  app.addHook('onRequest', async (request, reply) => {
    const scope = scopeOf(request)
    if (scope === 'public') return undefined
    if (ring === undefined) {
      request.client = { name: request.ip, scopes, limits: {} }
      return undefined
    }
    return admit(ring, scope, request, reply)
  })
}

function admit(ring: KeyRing, scope: Scope, request: FastifyRequest, reply: FastifyReply): FastifyReply | undefined {
  const secret = /^Bearer ([\w-]{1,256})$/i.exec(request.headers.authorization ?? '')?.[1]
  const client = secret === undefined ? undefined : ring.find(secret)
  if (client === undefined) {
    reply.header('www-authenticate', 'Bearer')
    return refuse(reply, 401, {
      type: 'invalid_request_error',
      code: 'invalid_api_key',
      message:
        secret === undefined ? 'No API key was sent: Authorization: Bearer <key>.' : 'This API key is not known.',
    })
  }
  request.client = client
  if (client.scopes.includes(scope) || client.scopes.includes('admin')) return undefined
  return refuse(reply, 403, {
    type: 'invalid_request_error',
    code: 'missing_scope',
    message: `The API key "${client.name}" is not good for "${scope}".`,
  })
}

/** What a request needs. A path that no one thought of needs a key, too. */
function scopeOf({ routeOptions: { config, url = '' } }: FastifyRequest): Scope | 'public' {
  if (config.scope !== undefined) return config.scope
  return /\/v1\/(fine_tuning|files)(\/|$)/.test(url) ? 'train' : 'infer'
}

/** @throws ERR_HEDDLE_ARGUMENT when others could reach the server and no one would ask them for a key */
export function refusePublicAddress(host: string, { hasKeys = false, insecure = false } = {}): void {
  if (isLoopback(host) || hasKeys || insecure) return
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
    place: 'serve.host',
    expected: 'a loopback address, as there are no keys',
    got: host,
    hint: 'Make a key with `heddle serve keys add <name> --keys <file>` and give --keys <file>, or say --insecure.',
  })
}

/** Whether only this machine reaches an address. */
export const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))

async function readKeys(path: string): Promise<Key[]> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw unreadable(path, error)
  })
  return parseKeys(text, path)
}

function parseKeys(text: string, path: string): Key[] {
  const keys = text.split('\n').flatMap((line, index) => {
    const trimmed = line.trim()
    return trimmed === '' || trimmed.startsWith('#') ? [] : [parseKey(trimmed, `${path}:${index + 1}`)]
  })
  const names = keys.map(({ name }) => name)
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined) throw malformed(path, 'names that differ', `"${twice}" twice`)
  return keys
}

/** What stands in a line is not repeated in messages: someone may have written a key there. */
function parseKey(line: string, place: string): Key {
  const [name = '', list = '', hash = '', ...own] = line.split(/\s+/)
  const digits = /^sha256:([0-9a-f]{64})$/i.exec(hash)?.[1]
  const granted = list.split(',')
  if (!isName(name)) throw malformed(place, 'a name of letters, digits, ".", "_" and "-"', 'something else')
  if (!granted.every(isScope)) throw malformed(place, `scopes out of ${scopes.join(',')}`, 'others')
  if (digits === undefined)
    throw malformed(place, '<name> <scopes> sha256:<64 hexadecimal digits> <limits>', 'something else')
  return { name, scopes: granted, hash: Buffer.from(digits, 'hex'), limits: limitsFrom(own, place) }
}

function limitsFrom(words: readonly string[], place: string): ClientLimits {
  const limits = words.map((word) => {
    const [, name = '', value] = /^([a-z-]+)=(\d+(?:\.\d+)?)$/.exec(word) ?? []
    if (!isLimitName(name))
      throw malformed(place, `limits out of ${Object.keys(limitNames).join(', ')}: max-rate=60`, 'others')
    return [limitNames[name], Number(value)] as const
  })
  try {
    return parseClientLimits('limits', Object.fromEntries(limits))
  } catch (error) {
    throw error instanceof HeddleError ? malformed(place, `${error.place}: ${error.expected}`, error.got) : error
  }
}

/** Puts a new file in the old one's place, readable by its owner only. */
async function replaceFile(path: string, text: string): Promise<void> {
  const next = `${path}.${process.pid}.tmp`
  try {
    await writeFile(next, text, { mode: 0o600 })
    await rename(next, path)
  } catch (error) {
    throw unreadable(path, error)
  }
}

const isName = (text: string): boolean => /^[\w.-]{1,64}$/.test(text)
const isLimitName = (text: string): text is keyof typeof limitNames => Object.hasOwn(limitNames, text)
const isScope = (text: string): text is Scope => (scopes as readonly string[]).includes(text)
const hashOf = (secret: string): Buffer => createHash('sha256').update(secret).digest()
const misuse = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got: JSON.stringify(got) })
const malformed = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
const unreadable = (path: string, cause: unknown): HeddleError =>
  new HeddleError('ERR_HEDDLE_IO', {
    place: path,
    expected: 'a file of keys that can be read and written',
    got: (cause as NodeJS.ErrnoException).code ?? String(cause),
    hint: 'Make one with `heddle serve keys add <name> --keys <file>`.',
    cause,
  })
