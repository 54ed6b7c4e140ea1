// Finds a CUDA toolkit: NVIDIA's own, or the wheels that Python's package index has of it. Plain Node.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, realpathSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { Refusal, root, runLogged } from './build.mjs'

/** C++20 on the device, and kernel parameters of more than 4 KB. */
const oldest = '12.4'

/** What `--fetch-toolkit` gets: one release of the toolkit. */
const wheels = [
  'nvidia-cuda-nvcc==13.5.37',
  'nvidia-cuda-crt==13.5.37',
  'nvidia-nvvm==13.5.37',
  'nvidia-cuda-runtime==13.5.37',
  'nvidia-cuda-cccl==13.3.5.0.6',
  'nvidia-cublas==13.10.0.20',
  'nvidia-cusolver==12.4.1.2',
]

const fetched = join(root, '.cache', 'cuda-toolkit')

/**
 * The first that is complete of: CUDA_HOME or CUDA_PATH, the nvcc on PATH, /usr/local/cuda, the Python environment that
 * HEDDLE_CUDA_WHEELS names, the wheels that were fetched before.
 */
export function findToolkit() {
  const tried = []
  const found = findComplete(tried)
  if (found) return found
  throw new Refusal(
    `No CUDA toolkit of ${oldest} or newer with nvcc, the static runtime, cuBLASLt and cuSOLVER was found.\n` +
      `${tried.length > 0 ? `Looked at:\n${tried.join('\n')}\n` : ''}` +
      'Set CUDA_HOME to one, or let Python fetch it (1.7 GB in .cache/cuda-toolkit):\n\n' +
      '  npm run build:cuda -- --fetch-toolkit',
  )
}

/** Fetches the wheels into an environment of this checkout, where there is no toolkit. */
export async function fetchToolkit() {
  if (findComplete([])) return 'present'
  const python = join(fetched, 'bin', 'python')
  if (!existsSync(python)) await runLogged('cuda-toolkit', 'python3', ['-m', 'venv', fetched])
  await runLogged('cuda-toolkit', python, ['-m', 'pip', 'install', '--disable-pip-version-check', '-q', ...wheels])
  return 'fetched'
}

/** The first complete one; says of the others what they lack. */
function findComplete(tried) {
  for (const folder of candidates()) {
    const toolkit = toolkitIn(folder)
    if (typeof toolkit !== 'string') return toolkit
    tried.push(`  ${folder}: ${toolkit}`)
  }
  return undefined
}

function candidates() {
  const { CUDA_HOME, CUDA_PATH, HEDDLE_CUDA_WHEELS, PATH = '' } = process.env
  const onPath = PATH.split(delimiter)
    .map((folder) => join(folder, 'nvcc'))
    .filter(existsSync)
    .map((nvcc) => dirname(dirname(realpathSync(nvcc))))
  const environments = [HEDDLE_CUDA_WHEELS, fetched].filter(Boolean).flatMap(wheelFolders)
  const all = [CUDA_HOME, CUDA_PATH, ...onPath, '/usr/local/cuda', ...environments]
  return [...new Set(all.filter((folder) => folder && existsSync(folder)))]
}

/** lib/python3.x/site-packages/nvidia/cu13 of a Python environment. */
function wheelFolders(environment) {
  const folders = (folder) => (existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : [])
  return folders(join(environment, 'lib'))
    .flatMap((python) => folders(join(python, 'site-packages', 'nvidia')))
    .filter((folder) => existsSync(join(folder, 'bin', 'nvcc')))
}

/** What a build needs of it, or what it lacks. */
function toolkitIn(folder) {
  const nvcc = join(folder, 'bin', 'nvcc')
  if (!existsSync(nvcc)) return 'no bin/nvcc'
  const version = /release (\d+\.\d+)/.exec(spawnSync(nvcc, ['--version'], { encoding: 'utf8' }).stdout ?? '')?.[1]
  if (version === undefined) return 'nvcc does not run'
  if (isOlder(version, oldest)) return `CUDA ${version}`
  const include = join(folder, 'include')
  if (!existsSync(join(include, 'cuda_runtime.h'))) return 'no include/cuda_runtime.h'
  const libraryFolder = [join(folder, 'lib64'), join(folder, 'lib')].find((each) =>
    existsSync(join(each, 'libcudart_static.a')),
  )
  if (libraryFolder === undefined) return 'no libcudart_static.a'
  const names = readdirSync(libraryFolder)
  const libraries = ['libcublasLt.so', 'libcusolver.so'].map((stem) => names.find((name) => name.startsWith(stem)))
  if (libraries.includes(undefined)) return 'no libcublasLt or no libcusolver'
  return {
    version,
    nvcc,
    include,
    libraryFolder,
    libraries: ['libcudart_static.a', ...libraries].map((name) => join(libraryFolder, name)),
  }
}

function isOlder(version, than) {
  const [[major, minor], [thanMajor, thanMinor]] = [version, than].map((text) => text.split('.').map(Number))
  return major < thanMajor || (major === thanMajor && minor < thanMinor)
}
