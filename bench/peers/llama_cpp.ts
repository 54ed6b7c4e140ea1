/** Where the benchmarks find node-llama-cpp: installed once into a cache folder, never a dependency of Heddle. */
import { execFile } from 'node:child_process'
import { access, mkdir, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const version = '3.21.1'

/** The entry file of node-llama-cpp; installs it when there is none yet. */
export async function llamaCppModule(): Promise<string> {
  const folder = join(homedir(), '.cache', 'heddle-bench', `node-llama-cpp-${version}`)
  const entry = join(folder, 'node_modules', 'node-llama-cpp', 'dist', 'index.js')
  const exists = await access(entry).then(
    () => true,
    () => false,
  )
  if (exists) return entry
  console.error(`Installing node-llama-cpp@${version} into ${folder}.`)
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'package.json'), '{ "private": true }\n')
  await promisify(execFile)('npm', ['install', '--prefix', folder, `node-llama-cpp@${version}`])
  return entry
}
