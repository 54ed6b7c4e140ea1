// `heddle train --config` and `heddle init`: one file says a whole run; flags win over it; typos are refused.
import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { parse } from 'yaml'
import { configTemplate, overlaid, readTrainConfig, trainConfigOf } from '../lib/cli/train_config.js'
import { HeddleError } from '../lib/errors.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModelFolder } from './tiny_model.js'

const script = fileURLToPath(new URL('../lib/cli/heddle.js', import.meta.url))

async function heddle(args: readonly string[]) {
  const child = spawn(process.execPath, [script, ...args])
  const exit = new Promise<number | null>((resolve) => child.once('exit', resolve))
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), exit])
  return { stdout, stderr, code }
}

const least = { model: 'm', data: 'd.jsonl', output: 'o' }

const refusal = (given: object): HeddleError => {
  try {
    trainConfigOf({ ...least, ...given }, 'run.yaml')
  } catch (error) {
    if (error instanceof HeddleError) return error
    throw error
  }
  throw new Error('not refused')
}

test('the file that init writes says the defaults', (t) => {
  const written = trainConfigOf(parse(configTemplate), 'heddle.yaml')
  const plain = trainConfigOf(least, 'train')
  t.deepEqual(written.method.config, plain.method.config)
  t.deepEqual(written.optimizer.config, plain.optimizer.config)
  t.is(written.optimizer.learningRate, plain.optimizer.learningRate)
  t.is(written.precision, plain.precision)
})

test('a run by config file does what the file says, and flags win', async (t) => {
  const [model, data, output] = [await tinyModelFolder(), await textFile(), temporaryFolder()]
  const file = join(temporaryFolder(), 'run.yaml')
  await writeFile(
    file,
    `model: ${model}\ndata: ${data}\noutput: ${output}
adapter: { r: 2, target_modules: [q_proj] }
optimizer: { name: lion, lr: 1e-3 }
training: { maxSteps: 50, batchSize: 2, maxLength: 32 }\n`,
  )
  const { stdout, stderr, code } = await heddle(['train', '--config', file, '--max-steps', '3', '--json'])
  t.is(code, 0, stderr)
  t.is(stdout.split('\n').filter((line) => line.includes('"event":"step"')).length, 3)
  const adapter = JSON.parse(await readFile(join(output, 'adapter_config.json'), 'utf8'))
  t.is(adapter.r, 2)
  t.is(adapter.lora_alpha, 4)
  t.deepEqual(adapter.target_modules, ['q_proj'])
  t.regex(await readFile(join(output, 'report.html'), 'utf8'), /lion/)
})

test('--full trains all weights and writes a whole model', async (t) => {
  const [model, data, output] = [await tinyModelFolder(), await textFile(), temporaryFolder()]
  const args = [
    '--model',
    model,
    '--data',
    data,
    '--output',
    output,
    '--max-steps',
    '2',
    '--max-length',
    '32',
    '--full',
  ]
  const { stderr, code } = await heddle(['train', ...args])
  t.is(code, 0, stderr)
  const config = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'))
  t.is(config.model_type, 'llama')
  t.not(
    (await readFile(join(output, 'model.safetensors'))).toString('latin1'),
    (await readFile(join(model, 'model.safetensors'))).toString('latin1'),
  )
})

test('init writes the file once and never over another', async (t) => {
  const file = join(temporaryFolder(), 'heddle.yaml')
  t.is((await heddle(['init', file])).code, 0)
  t.is(await readFile(file, 'utf8'), configTemplate)
  const again = await heddle(['init', file])
  t.is(again.code, 1)
  t.regex(again.stderr, /--force/)
})

for (const [given, place, hint] of [
  [{ modle: 'x' }, 'run.yaml', 'model'],
  [{ training: { epoch: 2 } }, 'train', 'epochs'],
  [{ adapter: { rank: 2 } }, 'lora', 'r'],
  [{ adapter: { method: 'lorra' } }, 'adapter.method', 'lora'],
  [{ optimizer: { name: 'adam' } }, 'optimizer.name', 'adamw'],
  [{ optimizer: { learning_rate: 1 } }, 'optimizer adamw', 'lr'],
] as const)
  test(`${JSON.stringify(given)} is refused with the nearest known name`, (t) => {
    const error = refusal(given)
    t.is(error.code, 'ERR_HEDDLE_ARGUMENT')
    t.is(error.place, place)
    t.true(error.hint?.startsWith('Did you mean "'), error.message)
    if (place !== 'lora' && place !== 'optimizer adamw') t.regex(error.hint ?? '', new RegExp(`"${hint}"`))
  })

test('what other sections decide is refused in training', (t) => {
  t.regex(refusal({ training: { optimizer: 'adamw' } }).hint ?? '', /fields of their own/)
})

test('a value of the wrong kind is refused with its field', (t) => {
  t.is(refusal({ precision: 'f8' }).place, 'run.yaml.precision')
  t.is(refusal({ training: { batchSize: 0 } }).place, 'train.batchSize')
})

test('a file that is no YAML is ERR_HEDDLE_FORMAT, a missing one ERR_HEDDLE_IO', async (t) => {
  const file = join(temporaryFolder(), 'broken.yaml')
  await writeFile(file, 'model: [unclosed')
  const broken = await t.throwsAsync<HeddleError>(readTrainConfig(file), { instanceOf: HeddleError })
  t.is(broken?.code, 'ERR_HEDDLE_FORMAT')
  const missing = await t.throwsAsync<HeddleError>(readTrainConfig('/nowhere.yaml'), { instanceOf: HeddleError })
  t.is(missing?.code, 'ERR_HEDDLE_IO')
})

test('flags replace single fields of a section and leave the others', (t) => {
  const merged = overlaid({ ...least, adapter: { r: 2, lora_alpha: 8 } }, { adapter: { r: 4 } })
  t.deepEqual(merged.adapter, { r: 4, lora_alpha: 8 })
})
