// Models on a CUDA device: one option for loading, or a flag of the command line.
import './support/cuda_host.js'
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { currentDevice, onDevice, setDevice } from '../lib/graph/device.js'
import { loadModel } from '../lib/model.js'
import { addon } from '../lib/native.js'
import { tinyModelFolder } from './tiny_model.js'

const run = promisify(execFile)
const script = fileURLToPath(new URL('../lib/cli/heddle.js', import.meta.url))

/** What the command prints, and how it ends. */
async function heddle(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<string> {
  try {
    const { stdout, stderr } = await run(process.execPath, [script, ...args], { env: { ...process.env, ...env } })
    return stdout + stderr
  } catch (error) {
    const { stdout, stderr, code } = error as { stdout: string; stderr: string; code: number }
    return `${stdout}${stderr}exit ${code}`
  }
}

/** What a Llama needs; the first one that a device lacks is named. */
const needed = ['attention_cached', 'cache_update', 'gather_rows', 'matmul', 'rms_norm', 'rope', 'sample_token']

test('a model that is loaded for a device is computed there, or says which operator it lacks', async (t) => {
  const folder = await tinyModelFolder()
  const text = async (device: 'cpu' | 'cuda'): Promise<string> => {
    const model = await loadModel(folder, { device })
    try {
      let all = ''
      for await (const piece of model.generate('Still', { maxTokens: 8 })) all += piece
      return all
    } finally {
      await model.dispose()
    }
  }
  const expected = await text('cpu')
  if (needed.every((op) => addon.cudaInfo().operators.includes(op))) t.is(await text('cuda'), expected)
  else
    await t.throwsAsync(text('cuda'), {
      code: 'ERR_HEDDLE_DEVICE',
      message: /: expected an operator that CUDA devices have a kernel for, got one that runs on the CPU only$/,
    })
})

test.serial('where the device cannot be used, loading says what is missing', async (t) => {
  const folder = await tinyModelFolder()
  const output = await heddle(['generate', '--model', folder, '--device', 'cuda', 'Still'], {
    HEDDLE_CUDA_ADDON: '/nowhere/heddle_cuda.node',
  })
  t.regex(output, /device cuda: expected the CUDA addon at \/nowhere\/heddle_cuda.node, got none/)
  t.regex(output, /npm run build:cuda/)
  t.regex(output, /exit 1$/)
  await t.throwsAsync(loadModel(folder, { device: 'gpu' as 'cuda' }), { code: 'ERR_HEDDLE_ARGUMENT' })
})

test.serial('a flag that names no device is refused', async (t) => {
  t.regex(await heddle(['generate', '--model', 'x', '--device', 'gpu', 'Still']), /Allowed choices are cpu, cuda/)
})

test.serial('the default device: what was set, and within a function another one', (t) => {
  t.is(currentDevice(), 'cpu')
  setDevice('cuda')
  t.is(currentDevice(), 'cuda')
  t.is(
    onDevice('cpu', () => currentDevice()),
    'cpu',
  )
  setDevice('cpu')
  t.throws(() => setDevice('tpu' as 'cuda'), { code: 'ERR_HEDDLE_ARGUMENT' })
})

test('`heddle doctor` names the GPU and how many operators run on it', async (t) => {
  const { name, operators } = addon.cudaInfo()
  const line = (await heddle(['doctor', '--json'])).split('\n').find((each) => each.includes('"GPU"'))!
  t.like(JSON.parse(line), { name: 'GPU', available: true, device: name, operators: operators.length })
})
