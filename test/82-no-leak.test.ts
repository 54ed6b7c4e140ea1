// What a long life brings: a thousand models come and go in the same memory, and disks that are full.

import { execFile } from 'node:child_process'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { HeddleError } from '../lib/errors.js'
import { writeRandomCheckpoint } from '../lib/models/random_checkpoint.js'
import { train } from '../lib/train/train.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModel, tinyModelFolder } from './tiny_model.js'

const run = promisify(execFile)
const childPath = (name: string): string => fileURLToPath(new URL(`./support/${name}`, import.meta.url))

/** One layer of a few numbers: what is left over from a cycle must not hide behind what belongs to it. */
const smallest = {
  vocab_size: 32,
  hidden_size: 8,
  intermediate_size: 8,
  num_hidden_layers: 1,
  num_attention_heads: 1,
  tie_word_embeddings: true,
}

/**
 * Compiled JavaScript comes and goes, and its heap breathes by tens of MiB. Interpreted, with a small nursery, the process
 * stays within 2 %, and what is left over from a cycle shows.
 */
const steadyHeap = [
  '--expose-gc',
  '--max-semi-space-size=1',
  '--optimize-for-size',
  '--no-opt',
  '--no-sparkplug',
  '--max-lazy',
]

async function residentBytes(kind: 'network' | 'model', folder: string, cycles: number): Promise<number[]> {
  const parameters = [childPath('leak_child.js'), kind, folder, String(cycles)]
  const { stdout } = await run(process.execPath, [...steadyHeap, ...parameters])
  return stdout.trim().split('\n').map(Number)
}

/** Once caches and arenas have filled up, in a tenth of the cycles, every mark is within 5 % of the first. */
function expectFlat(t: { true(value: boolean, message: string): unknown }, bytes: readonly number[]): void {
  const [first] = bytes
  const text = bytes.map((each) => (each / 2 ** 20).toFixed(1)).join(', ')
  t.true(bytes.length === 10 && bytes.every((each) => Math.abs(each / first! - 1) <= 0.05), `MiB: ${text}`)
}

test('1,000 cycles of load, attach, a training step and dispose hold resident memory flat', async (t) => {
  t.timeout(300_000)
  const folder = join(temporaryFolder(), 'smallest')
  await writeRandomCheckpoint(folder, smallest)
  expectFlat(t, await residentBytes('network', folder, 1000))
})

test('so do cycles of whole models, each with a tokenizer thread of its own', async (t) => {
  t.timeout(300_000)
  expectFlat(t, await residentBytes('model', await tinyModelFolder(), 60))
})

test('a full disk is an error that names the file, and nothing half written stays', async (t) => {
  const [folder, data, outputFolder] = [await tinyModelFolder(), await textFile(), temporaryFolder()]
  // Files may grow to 8 KiB: the checkpoint's tensors do not fit, what is written before them does.
  const command = `ulimit -f 8; exec "$0" "$@"`
  const parameters = ['-c', command, process.execPath, childPath('full_disk_child.js'), folder, data, outputFolder]
  const { stdout } = await run('bash', parameters)
  const error = JSON.parse(stdout)
  t.like(error, { code: 'ERR_HEDDLE_IO', known: true })
  t.regex(error.place, /checkpoints/)
  t.deepEqual(await readdir(join(outputFolder, 'checkpoints')), [])
  t.deepEqual((await readdir(outputFolder)).sort(), ['checkpoints', 'metrics.jsonl'])
  // The step was done, and its line is whole.
  const metrics = await readFile(join(outputFolder, 'metrics.jsonl'), 'utf8')
  t.is(JSON.parse(metrics).step.index, 1)
})

test('an output folder that cannot be made is refused before anything is trained', async (t) => {
  const model = await tinyModel()
  const file = join(temporaryFolder(), 'file')
  await writeFile(file, '')
  const steps = train(model, { data: await textFile(), outputFolder: join(file, 'out'), maxSteps: 1, maxLength: 32 })
  await t.throwsAsync(steps.next(), { instanceOf: HeddleError, code: 'ERR_HEDDLE_IO', message: /file\/out/ })
  await model.dispose()
})
