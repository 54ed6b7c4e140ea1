/** llama.cpp by node-llama-cpp: installed once per machine into the cache of the test models, from a pinned lock file. */
import { cp } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { fetchedOnce, run } from '../models/once.js'

/** Texts to go on with, on one model file. */
export interface LlamaCppJob {
  readonly model: string
  /** A GGUF LoRA file. */
  readonly lora?: string
  readonly prompts: readonly (readonly number[])[]
}

/** Its only binary that is fetched. */
export const hasLlamaCpp = process.platform === 'linux' && process.arch === 'x64'

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

const install = (): Promise<string> =>
  fetchedOnce('node-llama-cpp-3.21.1', async (work) => {
    const source = here('../../../test/peers/node-llama-cpp')
    for (const file of ['package.json', 'package-lock.json']) await cp(join(source, file), join(work, file))
    // The optional packages are the binaries for other machines; no install script has anything to do.
    const npm = ['ci', '--omit=optional', '--ignore-scripts', '--no-audit', '--no-fund']
    await run('npm', npm, { cwd: work, env: { ...process.env, NODE_ENV: 'production' } })
    return work
  })
