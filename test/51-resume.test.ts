// Checkpoints: resumed runs are the same bit for bit, whatever stopped them; broken or foreign ones are refused.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { HeddleError, lora } from '../lib/index.js'
import type { TrainOptions } from '../lib/train/options.js'
import { train } from '../lib/train/train.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModel } from './tiny_model.js'

const child = fileURLToPath(new URL('./training_child.js', import.meta.url))
const total = 10

interface Part {
  readonly data: string
  readonly outputFolder: string
  readonly stopAfter?: number
  readonly options?: Partial<TrainOptions>
}

/** Trains (a part of) the run of this file; gives losses by step and the trained numbers. */
async function trained({ data, outputFolder, stopAfter, options }: Part) {
  const model = await tinyModel()
  const method = lora({ r: 4, lora_dropout: 0.1 })
  const losses = new Map<number, number>()
  const abort = new AbortController()
  try {
    const steps = train(model, {
      data,
      method,
      maxLength: 32,
      maxSteps: total,
      batchSize: 2,
      accumulation: 2,
      outputFolder,
      signal: abort.signal,
      ...options,
    })
    for await (const { index, loss } of steps) {
      losses.set(index, loss)
      if (index === stopAfter) abort.abort()
    }
  } catch (error) {
    if (!abort.signal.aborted) throw error
  }
  const parameters = [...model.adapters[0]!.parameters().values()]
  const numbers = await Promise.all(parameters.map(async (each) => Array.from((await each.data()) as Float32Array)))
  await model.dispose()
  return { losses, numbers }
}

test('stopping at step 4 and resuming gives the very numbers of a run in one go', async (t) => {
  const data = await textFile()
  const whole = await trained({ data, outputFolder: temporaryFolder() })
  const outputFolder = temporaryFolder()
  const first = await trained({ data, outputFolder, stopAfter: 4 })
  const rest = await trained({ data, outputFolder, options: { resume: true } })
  t.deepEqual([...rest.losses.keys()], [5, 6, 7, 8, 9, 10])
  t.deepEqual(new Map([...first.losses, ...rest.losses]), whole.losses)
  t.deepEqual(rest.numbers, whole.numbers)
})

test('a process that is killed loses nothing but the steps since its last checkpoint', async (t) => {
  const data = await textFile()
  const whole = await trained({ data, outputFolder: temporaryFolder() })
  const outputFolder = temporaryFolder()
  const victim = spawn(process.execPath, [child, data, outputFolder], { stdio: 'inherit' })
  t.deepEqual(await once(victim, 'exit'), [null, 'SIGKILL'])
  const rest = await trained({ data, outputFolder, options: { resume: true, checkpointEvery: 2 } })
  t.is([...rest.losses.keys()][0], 5)
  for (const [index, loss] of rest.losses) t.is(loss, whole.losses.get(index)!)
  t.deepEqual(rest.numbers, whole.numbers)
})

test('the newest two checkpoints stay, and nothing half written', async (t) => {
  const outputFolder = temporaryFolder()
  await trained({ data: await textFile(), outputFolder, options: { checkpointEvery: 3 } })
  t.deepEqual((await readdir(join(outputFolder, 'checkpoints'))).sort(), ['step-00000009', 'step-00000010'])
})

test('leftovers of a writer that was killed are ignored and removed', async (t) => {
  const outputFolder = temporaryFolder()
  const data = await textFile()
  await trained({ data, outputFolder, stopAfter: 3 })
  const folder = join(outputFolder, 'checkpoints')
  await cp(join(folder, 'step-00000003'), join(folder, '.step-9.1.tmp'), { recursive: true })
  const rest = await trained({ data, outputFolder, options: { resume: true } })
  t.is([...rest.losses.keys()][0], 4)
  t.deepEqual((await readdir(folder)).sort(), ['step-00000003', 'step-00000010'])
})

test('a checkpoint can be named, and a finished run has nothing left to do', async (t) => {
  const outputFolder = temporaryFolder()
  const data = await textFile()
  const done = await trained({ data, outputFolder, options: { checkpointEvery: 8 } })
  const resume = join(outputFolder, 'checkpoints', 'step-00000008')
  const rest = await trained({ data, outputFolder: temporaryFolder(), options: { resume } })
  t.deepEqual([...rest.losses.keys()], [9, 10])
  t.deepEqual(rest.numbers, done.numbers)
  const again = await trained({ data, outputFolder, options: { resume: true } })
  t.is(again.losses.size, 0)
  t.deepEqual(again.numbers, done.numbers)
})

test('resume without a checkpoint starts at the beginning', async (t) => {
  const options = { resume: true, maxSteps: 1 }
  const { losses } = await trained({ data: await textFile(), outputFolder: temporaryFolder(), options })
  t.deepEqual([...losses.keys()], [1])
})

test('resuming with other settings is refused, naming the setting', async (t) => {
  const outputFolder = temporaryFolder()
  const data = await textFile()
  await trained({ data, outputFolder, stopAfter: 1 })
  for (const [name, options] of [
    ['batchSize', { batchSize: 3 }],
    ['steps', { maxSteps: 20 }],
    ['method', { method: lora({ r: 2 }) }],
    ['data', { data: await textFile('other text '.repeat(90)) }],
  ] as const)
    await t.throwsAsync(trained({ data, outputFolder, options: { resume: true, ...options } }), {
      instanceOf: HeddleError,
      code: 'ERR_HEDDLE_ARGUMENT',
      message: new RegExp(`resume: ${name}`),
    })
})

test('an unfinished run is not overwritten by accident', async (t) => {
  const outputFolder = temporaryFolder()
  const data = await textFile()
  await trained({ data, outputFolder, stopAfter: 2 })
  await t.throwsAsync(trained({ data, outputFolder }), {
    instanceOf: HeddleError,
    code: 'ERR_HEDDLE_ARGUMENT',
    message: /step 2 of 10 is done/,
  })
})

for (const [what, damage, code] of [
  ['cut off', (folder: string) => truncate(join(folder, 'optimizer.safetensors'), 1000), 'ERR_HEDDLE_FORMAT'],
  ['without its weights', (folder: string) => rm(join(folder, 'parameters.safetensors')), 'ERR_HEDDLE_IO'],
  [
    'with another JSON',
    (folder: string) => writeFile(join(folder, 'trainer.json'), '{"step": -1}'),
    'ERR_HEDDLE_FORMAT',
  ],
] as const)
  test(`a checkpoint ${what} is refused`, async (t) => {
    const outputFolder = temporaryFolder()
    const data = await textFile()
    await trained({ data, outputFolder, stopAfter: 1 })
    await damage(join(outputFolder, 'checkpoints', 'step-00000001'))
    await t.throwsAsync(trained({ data, outputFolder, options: { resume: true } }), { instanceOf: HeddleError, code })
  })

test("the trainer's state is readable JSON", async (t) => {
  const outputFolder = temporaryFolder()
  await trained({ data: await textFile(), outputFolder, stopAfter: 2 })
  const state = JSON.parse(await readFile(join(outputFolder, 'checkpoints', 'step-00000002', 'trainer.json'), 'utf8'))
  t.like(state, { format: 1, step: 2, total, settings: { batchSize: 2, accumulation: 2 } })
})
