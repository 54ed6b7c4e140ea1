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
import { randomNumbers } from './random_numbers.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModel } from './tiny_model.js'
import type { ChildSettings } from './training_child.js'

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

/** Runs the child to its end, or until it kills itself. */
async function runChild(settings: ChildSettings): Promise<string> {
  const process_ = spawn(process.execPath, [child, JSON.stringify(settings)], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  const [code, signal] = (await once(process_, 'exit')) as [number | null, string | null]
  return signal ?? String(code)
}

test('a run killed again and again, at random points, ends with the very bytes of one that was not', async (t) => {
  const data = await textFile()
  const whole = temporaryFolder()
  t.is(await runChild({ data, outputFolder: whole }), '0')
  const outputFolder = temporaryFolder()
  // Steps and delays from a fixed seed; a checkpoint is written after each step, so that some kills fall into one.
  const delays = randomNumbers(5, 7).map((number) => 6 + 6 * number)
  let kills = 0
  for (const [i, killAfter] of [1, 3, 4, 6, 8].entries()) {
    const end = await runChild({ data, outputFolder, killAfter, killWithin: Math.floor(delays[i]!) })
    t.true(['SIGKILL', '0'].includes(end))
    if (end === 'SIGKILL') kills += 1
  }
  t.true(kills >= 3, `${kills} kills`)
  t.is(await runChild({ data, outputFolder }), '0')
  const weights = 'adapter_model.safetensors'
  t.deepEqual(await readFile(join(outputFolder, weights)), await readFile(join(whole, weights)))
  const lines = async (folder: string) => {
    const text = await readFile(join(folder, 'metrics.jsonl'), 'utf8')
    return text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line).step)
      .map(({ index, loss, gradientNorm, learningRate, evaluation }) => [
        index,
        loss,
        gradientNorm,
        learningRate,
        evaluation,
      ])
  }
  t.deepEqual(await lines(outputFolder), await lines(whole))
})

for (const file of ['parameters.safetensors', 'optimizer.safetensors', 'trainer.json'])
  test(`killed while ${file} of a checkpoint was half written: the one before counts`, async (t) => {
    const data = await textFile()
    const outputFolder = temporaryFolder()
    await trained({ data, outputFolder, stopAfter: 3 })
    const folder = join(outputFolder, 'checkpoints')
    // What such a process leaves: a folder beside the place, in which some files are whole and one is cut off.
    const half = join(folder, '.step-4.1.tmp')
    await cp(join(folder, 'step-00000003'), half, { recursive: true })
    await truncate(join(half, file), 100)
    const rest = await trained({ data, outputFolder, options: { resume: true } })
    t.is([...rest.losses.keys()][0], 4)
    t.deepEqual((await readdir(folder)).sort(), ['step-00000003', 'step-00000010'])
  })

test('an evaluation that was cut short is made up for before the next step', async (t) => {
  const data = await textFile()
  const outputFolder = temporaryFolder()
  const options = { evaluationFraction: 0.3, evaluateEvery: 2, earlyStoppingPatience: 2, earlyStoppingThreshold: 100 }
  await trained({ data, outputFolder, stopAfter: 2, options })
  const path = join(outputFolder, 'checkpoints', 'step-00000002', 'trainer.json')
  const state = JSON.parse(await readFile(path, 'utf8'))
  await writeFile(path, JSON.stringify({ ...state, evaluationDue: true, memory: undefined }))
  const events: number[] = []
  const onEvaluation = ({ step }: { readonly step: number }) => events.push(step)
  const rest = await trained({ data, outputFolder, options: { ...options, resume: true, onEvaluation } })
  // The first evaluation sets the mark, the two after it do not beat it by 100.
  t.deepEqual(events, [2, 4, 6])
  t.deepEqual([...rest.losses.keys()], [3, 4, 5, 6])
  const again = await trained({ data, outputFolder, options: { ...options, resume: true } })
  t.is(again.losses.size, 0)
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
