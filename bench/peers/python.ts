/** The Python that runs the peers: HEDDLE_PEER_PYTHON, or a virtual environment made once under .cache/peers. */
import { execFile } from 'node:child_process'
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const packages = ['torch', 'peft', 'transformers', 'safetensors', 'gguf']

/** Path of a Python with torch and PEFT; installs them (5.6 GB) when there is none yet. */
export async function peerPython(root: string): Promise<string> {
  if (process.env.HEDDLE_PEER_PYTHON) return process.env.HEDDLE_PEER_PYTHON
  const folder = join(root, '.cache', 'peers')
  const python = join(folder, 'bin', 'python')
  const exists = await access(python).then(
    () => true,
    () => false,
  )
  if (exists) return python
  console.error(`Installing the peers (${packages.join(', ')}) into ${folder}; set HEDDLE_PEER_PYTHON to use your own.`)
  await run('python3', ['-m', 'venv', folder])
  await run(join(folder, 'bin', 'pip'), ['install', '--quiet', ...packages], { maxBuffer: 1 << 26 })
  return python
}
