// The `heddle` command as a user runs it: every subcommand, help, typos, JSON, exit codes, Ctrl-C and resuming.

import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { temporaryFolder } from './support/temporary_folder.js'
import { textFile, tinyModelFolder } from './tiny_model.js'

const script = fileURLToPath(new URL('../lib/cli/heddle.js', import.meta.url))

interface Outcome {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

interface Invocation {
  readonly input?: string
  readonly env?: Readonly<Record<string, string>>
  /** Ctrl-C as soon as this appears on stdout. */
  readonly interruptAt?: string
}

async function heddle(args: readonly string[], { input, env, interruptAt }: Invocation = {}): Promise<Outcome> {
  const child = spawn(process.execPath, [script, ...args], { env: { ...process.env, ...env } })
  const exit = new Promise<number | null>((resolve) => child.once('exit', resolve))
  child.stdin.end(input)
  if (interruptAt !== undefined) {
    let seen = ''
    child.stdout.on('data', (chunk: Buffer) => {
      const was = seen.includes(interruptAt)
      seen += chunk.toString()
      if (!was && seen.includes(interruptAt)) child.kill('SIGINT')
    })
  }
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), exit])
  return { code, stdout, stderr }
}

/** The events of a `--json` run. */
const events = ({ stdout }: Outcome): Record<string, unknown>[] =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)

const eventNames = (outcome: Outcome): unknown[] => events(outcome).map(({ event }) => event)

async function trainArguments(...more: readonly string[]): Promise<{ args: string[]; model: string; output: string }> {
  const [model, data, output] = [await tinyModelFolder(), await textFile(), temporaryFolder()]
  const sizes = ['--max-length', '32', '--batch-size', '2', '--rank', '4', '--learning-rate', '0.01']
  const args = ['train', '--model', model, '--data', data, '--output', output, ...sizes, ...more]
  return { args, model, output }
}

for (const name of ['quickstart', 'train', 'eval', 'generate', 'merge'])
  test(`heddle ${name} --help explains itself with an example`, async (t) => {
    const { code, stdout } = await heddle([name, '--help'])
    t.is(code, 0)
    t.regex(stdout, /Examples?:\n {2}\$ /)
    t.regex(stdout, new RegExp(`heddle ${name}`))
  })

test('heddle --help lists the commands and the exit codes', async (t) => {
  const { code, stdout } = await heddle(['--help'])
  t.is(code, 0)
  for (const word of ['quickstart', 'train', 'eval', 'generate', 'merge', 'Exit codes']) t.true(stdout.includes(word))
})

test('a mistyped flag is wrong use and names the nearest one', async (t) => {
  const { code, stderr } = await heddle(['train', '--modell', 'x'])
  t.is(code, 2)
  t.regex(stderr, /Did you mean --model\?/)
})

test('a mistyped command is wrong use and names the nearest one', async (t) => {
  const { code, stderr } = await heddle(['trian'])
  t.is(code, 2)
  t.regex(stderr, /Did you mean train\?/)
})

test('a value of the wrong kind is wrong use and names its flag', async (t) => {
  const { code, stderr } = await heddle(['eval', '-m', 'x', '-d', 'y.txt', '--batch-size', 'many'])
  t.is(code, 2)
  t.regex(stderr, /--batch-size.*integer of at least 1/)
})

test('a failure is one line without a stack, which --debug shows', async (t) => {
  const args = ['eval', '--model', join(temporaryFolder(), 'none.gguf'), '--data', 'x.txt']
  const plain = await heddle(args)
  t.is(plain.code, 2)
  t.regex(plain.stderr, /^heddle: model: expected a model folder.*\n$/)
  const debug = await heddle([...args, '--debug'])
  t.regex(debug.stderr, /\n {4}at /)
})

test('with --json a failure is an event, too', async (t) => {
  const outcome = await heddle(['eval', '--json', '-m', await tinyModelFolder(), '-d', 'missing.txt'])
  t.is(outcome.code, 1)
  t.like(events(outcome)[0], { event: 'error', code: 'ERR_HEDDLE_IO' })
})

test('train, eval, generate and merge do the whole job', async (t) => {
  const { args, model, output } = await trainArguments('--epochs', '2', '--eval-fraction', '0.1')
  const trained = await heddle(args)
  t.is(trained.code, 0, trained.stderr)
  t.regex(trained.stdout, /Held-out loss before: \d.*\nHeld-out loss after: {2}\d/)
  const report = await readFile(join(output, 'report.html'), 'utf8')
  t.true(report.includes('</html>'))

  const data = await textFile()
  const lossOf = async (...more: string[]): Promise<number> =>
    events(await heddle(['eval', '--json', '-m', model, '-d', data, ...more]))[0]!.loss as number
  const [base, adapted] = [await lossOf(), await lossOf('--adapter', output)]
  t.true(adapted < base)

  const ask = ['generate', '--max-tokens', '8', '--json', '1. A']
  const adaptedText = events(await heddle([...ask, '-m', model, '-a', output]))[0]!.text
  const streamed = await heddle(['generate', '--max-tokens', '8', '-m', model, '-a', output], { input: '1. A' })
  t.is(streamed.stdout, `${adaptedText}\n`)

  t.like(await heddle(['merge', '-m', model, '-a', output, '-o', join(output, 'merged'), '--dtype', 'f32']), {
    code: 0,
  })
  const merged = events(await heddle(['eval', '--json', '-m', join(output, 'merged'), '-d', data]))[0]!.loss as number
  t.true(Math.abs(merged - adapted) < 1e-4)
})

test('Ctrl-C saves the step, prints the command that goes on, and that command ends where one run would', async (t) => {
  const straight = await trainArguments('--json', '--max-steps', '12', '--checkpoint-every', '50')
  const whole = await heddle(straight.args)
  const other = temporaryFolder()
  const args = straight.args.map((arg) => (arg === straight.output ? other : arg))
  const first = await heddle(args, { interruptAt: '"index":4,' })
  t.is(first.code, 130, first.stderr)
  const command = /Go on with:\n\n {2}(.*)\n/.exec(first.stderr)?.[1]
  t.is(command, `node ${[script, ...args, '--resume'].join(' ')}`)
  const rest = await heddle([...args, '--resume'])
  t.is(rest.code, 0, rest.stderr)
  const losses = (outcome: Outcome) =>
    events(outcome).flatMap(({ event, index, loss }) => (event === 'step' ? [[index, loss]] : []))
  t.deepEqual([...losses(first), ...losses(rest)], losses(whole))
  const metrics = (await readFile(join(other, 'metrics.jsonl'), 'utf8')).trim().split('\n')
  t.is(metrics.filter((line) => line.includes('"step"')).length, 12)
  t.true(
    (await readFile(join(other, 'adapter_model.safetensors'))).equals(
      await readFile(join(straight.output, 'adapter_model.safetensors')),
    ),
  )
})

test('quickstart shows the model before and after, and leaves an adapter and a report', async (t) => {
  const out = temporaryFolder()
  const args = ['--model', await tinyModelFolder(), '--data', await textFile(), '--out', out, '--steps', '5']
  const { code, stdout, stderr } = await heddle(['quickstart', ...args])
  t.is(code, 0, stderr)
  for (const label of ['Held-out loss before', 'Held-out loss after', 'Prompt', 'Before', 'After', 'Adapter', 'Report'])
    t.true(stdout.includes(label), label)
  t.true((await readFile(join(out, 'report.html'), 'utf8')).includes('</html>'))
  t.truthy(JSON.parse(await readFile(join(out, 'adapter_config.json'), 'utf8')))
})

test('quickstart --json tells the same as events', async (t) => {
  const args = ['--model', await tinyModelFolder(), '--data', await textFile(), '--out', temporaryFolder()]
  const outcome = await heddle(['quickstart', '--json', '--steps', '2', ...args])
  t.deepEqual(eventNames(outcome), ['start', 'evaluation', 'step', 'step', 'evaluation', 'done'])
})
