/** llama.cpp by node-llama-cpp: installed once per machine into the cache of the test models, from a pinned lock file. */
import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

/** Texts to go on with, on one model file. */
export interface LlamaCppJob {
  readonly model: string
  /** A GGUF LoRA file. */
  readonly lora?: string
  readonly prompts: readonly (readonly number[])[]
}

/** Its only binary that is fetched. */
export const hasLlamaCpp = process.platform === 'linux' && process.arch === 'x64'

const run = promisify(execFile)
const cacheFolder = process.env.HEDDLE_TEST_CACHE ?? join(homedir(), '.cache', 'heddle-test-models')
const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url))

/** The greedy continuation of each prompt of each job, `count` tokens or up to the end of the text. */
export async function greedyTokens(jobs: readonly LlamaCppJob[], count: number): Promise<number[][][]> {
  const folder = await install()
  const { stdout } = await run(process.execPath, [
    here('./llama_cpp_child.js'),
    folder,
    JSON.stringify({ jobs, count }),
  ])
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as number[][][]
}

async function install(): Promise<string> {
  const target = join(cacheFolder, 'node-llama-cpp-3.21.1')
  const exists = await stat(target).then(
    () => true,
    () => false,
  )
  if (exists) return target
  await mkdir(cacheFolder, { recursive: true })
  const work = await mkdtemp(join(cacheFolder, 'fetch-'))
  try {
    const source = here('../../../test/peers/node-llama-cpp')
    for (const file of ['package.json', 'package-lock.json']) await cp(join(source, file), join(work, file))
    // The optional packages are the binaries for other machines; no install script has anything to do.
    const npm = ['ci', '--omit=optional', '--ignore-scripts', '--no-audit', '--no-fund']
    await run('npm', npm, { cwd: work, env: { ...process.env, NODE_ENV: 'production' } })
    await rename(work, target).catch(async (error: NodeJS.ErrnoException) => {
      // Another process was first; its copy is as good.
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
  return target
}
