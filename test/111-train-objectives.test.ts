// `heddle train` for other objectives than next tokens: by name, by what the rows are for, and again after Ctrl-C.
import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { parse } from 'yaml'
import { configTemplate, trainConfigOf } from '../lib/cli/train_config.js'
import { loadSequenceClassifier } from '../lib/index.js'
import { objectiveNames } from '../lib/objectives/registry.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyEncoderFolder, tinyModelFolder } from './tiny_model.js'

const script = fileURLToPath(new URL('../lib/cli/heddle.js', import.meta.url))

/** Runs `heddle train`; Ctrl-C as soon as `interruptAt` appears on stdout. */
async function heddleTrain(args: readonly string[], interruptAt?: string) {
  const child = spawn(process.execPath, [script, 'train', ...args])
  const exit = new Promise<number | null>((resolve) => child.once('exit', resolve))
  let seen = ''
  child.stdout.on('data', (chunk: Buffer) => {
    seen += chunk.toString()
    if (interruptAt !== undefined && seen.includes(interruptAt)) child.kill('SIGINT')
    if (interruptAt !== undefined && seen.includes(interruptAt)) interruptAt = undefined
  })
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), exit])
  return { code, stdout, stderr }
}

async function rowsFile(rows: readonly object[]): Promise<string> {
  const path = join(temporaryFolder(), 'rows.jsonl')
  await writeFile(path, rows.map((row) => JSON.stringify(row)).join('\n'))
  return path
}

const words = ['stitch', 'waters', 'haste', 'moon', 'whale', 'captain', 'storm', 'mast']
const numbered = Array.from({ length: 24 }, (_, i) => `${words[i % words.length]} ${i}`)
const preferences = numbered.map((word) => ({ prompt: `${word} `, chosen: word.toUpperCase(), rejected: word }))
const mails = numbered.map((word, i) =>
  i % 2 ? { text: word, label: 'small' } : { text: word.toUpperCase(), label: 'big' },
)
const pairs = numbered.map((word) => ({ anchor: word, positive: word.toUpperCase() }))

const short = ['--max-length', '32', '--rank', '2', '--learning-rate', '0.01', '--eval-fraction', '0.25']

async function run(model: string, rows: readonly object[], ...more: readonly string[]) {
  const output = temporaryFolder()
  const args = ['--model', model, '--data', await rowsFile(rows), '--output', output, ...short, ...more]
  return { ...(await heddleTrain(args)), output }
}

const record = async (output: string) => JSON.parse(await readFile(join(output, 'run.json'), 'utf8'))

test('--objective dpo with an option of its own; the run is told in rewards and recorded', async (t) => {
  const model = await tinyModelFolder()
  const dpo = ['--objective', 'dpo', '--objective-option', 'beta=0.5', '--objective-option', 'lossType=ipo']
  const { code, stdout, stderr, output } = await run(model, preferences, '--max-steps', '4', ...dpo)
  t.is(code, 0, stderr)
  t.regex(stderr, /rows\.jsonl: preferences \(chosen, rejected, prompt\); 24 examples, 6 held out/)
  t.regex(stdout, /Held-out loss after: .*reward margin -?\d.*reward accuracy \d/)
  t.deepEqual((await record(output)).objective, { name: 'dpo', beta: 0.5, lossType: 'ipo' })
  const trainer = JSON.parse(await readFile(join(output, 'checkpoints/step-00000004/trainer.json'), 'utf8'))
  t.like(trainer.settings.objective, { name: 'dpo', beta: 0.5, lossType: 'ipo' })
})

test('preferences without an objective: said to be preferences, with the objectives to choose from', async (t) => {
  const { code, stderr } = await run(await tinyModelFolder(), preferences)
  t.is(code, 2)
  t.regex(stderr, /objective: expected one of dpo, orpo for .*rows\.jsonl: preferences \(chosen, rejected, prompt\)/)
  t.regex(stderr, /--objective dpo/)
})

test('an encoder and rows with labels: a classifier, with the labels of the data and its head in the folder', async (t) => {
  const model = await tinyEncoderFolder()
  const { code, stdout, stderr, output } = await run(model, mails, '--epochs', '6')
  t.is(code, 0, stderr)
  t.regex(stderr, /Objective: sequence-classification, for .*text with a label/)
  t.regex(stdout, /Held-out loss after: .*accuracy 1\.000/)
  t.deepEqual((await record(output)).objective, { name: 'sequence-classification', labels: ['big', 'small'] })
  const classifier = await loadSequenceClassifier(model, { labels: ['big', 'small'] })
  const adapter = await classifier.loadAdapter(output)
  t.deepEqual(
    (await classifier.classify(['MOON 90', 'moon 91'], { adapter })).map(({ label }) => label),
    ['big', 'small'],
  )
  await classifier.dispose()
  t.regex(await readFile(join(output, 'report.html'), 'utf8'), /accuracy/)
})

test('after Ctrl-C, --resume and the folder are enough, and the result is the same, bit for bit', async (t) => {
  const model = await tinyEncoderFolder()
  const steps = ['--max-steps', '8', '--dropout', '0.1', '--seed', '3', '--json']
  const whole = await run(model, mails, ...steps)
  t.is(whole.code, 0, whole.stderr)
  const output = temporaryFolder()
  const args = ['--model', model, '--data', await rowsFile(mails), '--output', output, ...short, ...steps]
  const first = await heddleTrain(args, '"event":"step","index":3')
  t.is(first.code, 130, first.stderr)
  const again = await heddleTrain(args)
  t.is(again.code, 2, 'an unfinished run is not begun anew')
  const other = await heddleTrain(['--resume', '--output', output, '--learning-rate', '0.5'])
  t.is(other.code, 2, 'other settings are another run')
  const rest = await heddleTrain(['--resume', '--output', output])
  t.is(rest.code, 0, rest.stderr)
  const adapterOf = (folder: string) => readFile(join(folder, 'adapter_model.safetensors'))
  t.deepEqual(await adapterOf(output), await adapterOf(whole.output))
})

test('an encoder and pairs: embeddings', async (t) => {
  const { code, stdout, stderr, output } = await run(await tinyEncoderFolder(), pairs, '--max-steps', '3')
  t.is(code, 0, stderr)
  t.regex(stdout, /recall@1 \d.*mean reciprocal rank \d/)
  t.is((await record(output)).objective.name, 'multiple-negatives')
})

test('a decoder and rows with labels: next tokens, with the word that there is another way, which --objective takes', async (t) => {
  const model = await tinyModelFolder()
  const plain = await run(model, mails, '--max-steps', '1')
  t.is(plain.code, 0, plain.stderr)
  t.regex(plain.stderr, /Objective: causal-lm, .*plain text.*--objective sequence-classification is for them, too/)
  const named = await run(model, mails, '--max-steps', '1', '--objective', 'sequence-classification')
  t.is(named.code, 0, named.stderr)
  const { modules_to_save } = JSON.parse(await readFile(join(named.output, 'adapter_config.json'), 'utf8'))
  t.deepEqual(modules_to_save, ['score'])
})

test('rows that no objective of the model reads are refused, saying what they are for', async (t) => {
  const { code, stderr } = await run(await tinyModelFolder(), pairs)
  t.is(code, 2)
  t.regex(
    stderr,
    /expected rows for causal-lm, dpo, orpo, sequence-classification.*anchor and positive.*multiple-negatives/,
  )
})

const refused = (objective: object): Error => {
  try {
    trainConfigOf({ model: 'm', data: 'd', output: 'o', objective }, 'run.yaml')
  } catch (error) {
    return error as Error
  }
  throw new Error('not refused')
}

test('unknown objectives and options are refused with the nearest name, before anything is loaded', (t) => {
  t.regex(refused({ name: 'dpoo' }).message, /objective\.name: .*Did you mean "dpo"/)
  t.regex(refused({ name: 'dpo', betta: 1 }).message, /dpo: .*Did you mean "beta"/)
  t.regex(refused({ name: 'sequence-classification', textcolumn: 'x' }).message, /Did you mean "textColumn"/)
  t.regex(refused({ name: 'sequence-classification', labels: ['one'] }).message, /at least two labels/)
  t.regex(refused({ name: 'causal-lm', acuracy: true }).message, /Did you mean "accuracy"/)
})

test('every objective of the file that init writes is a section that is accepted', (t) => {
  const [, commented] = /# objective: .*\n((?:#.*\n)+)/.exec(configTemplate)!
  const sections = commented!
    .replaceAll(/^#/gm, '')
    .split(/\n\s*\n/)
    .map((section) => parse(section) as { readonly name: string })
  t.deepEqual(
    sections.map(({ name }) => name),
    objectiveNames,
  )
  for (const objective of sections)
    t.notThrows(() => trainConfigOf({ model: 'm', data: 'd', output: 'o', objective }, 'x'), objective.name)
})
