// The commands around a model: doctor, inspect, pull, chat.
import { spawn } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { loadModel, lora } from '../lib/index.js'
import { id, startHub } from './support/fake_hub.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModelFolder } from './tiny_model.js'

const script = fileURLToPath(new URL('../lib/cli/heddle.js', import.meta.url))

async function heddle(args: readonly string[], { input = '', env = {} }: { input?: string; env?: object } = {}) {
  const child = spawn(process.execPath, [script, ...args], { env: { ...process.env, ...env } })
  const exit = new Promise<number | null>((resolve) => child.once('exit', resolve))
  child.stdin.end(input)
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), exit])
  return { stdout, stderr, code }
}

const events = (stdout: string): Record<string, unknown>[] =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)

/** A chat template that shows who speaks. */
async function chatModelFolder(): Promise<string> {
  const folder = await tinyModelFolder()
  const path = join(folder, 'tokenizer_config.json')
  const template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}assistant:"
  const config = JSON.parse(await readFile(path, 'utf8')) as object
  await writeFile(path, JSON.stringify({ ...config, chat_template: template }))
  return folder
}

test('doctor measures what this machine can do', async (t) => {
  const { stdout, code } = await heddle(['doctor', '--json'])
  t.is(code, 0)
  const finding = (name: string) => events(stdout).find((event) => event.name === name)!
  t.regex(String(finding('instructions').isa), /^\w+$/)
  for (const precision of ['f32', 'bf16']) t.true((finding('products')[precision] as number) > 1e8)
  t.true((finding('memory reads').bytesPerSecond as number) > 1e8)
  t.true((finding('threads').threads as number) >= 1)
})

test('doctor names the native core that is in use', async (t) => {
  const { stdout } = await heddle(['doctor'])
  t.regex(stdout, /✓ native core\s+\S+heddle\.node/)
})

test('inspect shows the architecture and sizes of a model', async (t) => {
  const { stdout, code } = await heddle(['inspect', await tinyModelFolder()])
  t.is(code, 0)
  t.regex(stdout, /architecture\s+llama/)
  t.regex(stdout, /layers\s+2/)
})

test('inspect lists the tensors whose names contain a text, with their shapes', async (t) => {
  const { stdout } = await heddle(['inspect', await tinyModelFolder(), '--json', '--filter', 'layers.1.mlp'])
  const names = events(stdout)
    .filter(({ event }) => event === 'tensor')
    .map(({ name }) => name)
  t.deepEqual(
    names.sort(),
    ['down', 'gate', 'up'].map((part) => `model.layers.1.mlp.${part}_proj.weight`),
  )
})

test('inspect shows what an adapter is and what it was made for', async (t) => {
  const model = await loadModel(await tinyModelFolder())
  const folder = temporaryFolder()
  await (await model.attach(lora({ r: 4, target_modules: ['q_proj'] }))).save(folder)
  await model.dispose()
  const { stdout } = await heddle(['inspect', folder])
  t.regex(stdout, /adapter\s+LORA/)
  t.regex(stdout, /r\s+4/)
  t.regex(stdout, /target_modules\s+q_proj/)
})

test('inspect says what a source is not', async (t) => {
  const { stderr, code } = await heddle(['inspect', '/nowhere/at-all.bin'])
  t.is(code, 2)
  t.regex(stderr, /a model folder, a \.gguf file, or a hub id/)
})

test('pull fetches a model into the cache and prints its folder', async (t) => {
  const hub = await startHub(t)
  const cache = temporaryFolder()
  const { stdout, code } = await heddle(['pull', id], { env: { HF_ENDPOINT: hub.endpoint, HEDDLE_CACHE: cache } })
  t.is(code, 0)
  t.true(stdout.startsWith(cache))
  t.true((await readFile(join(stdout.trim(), 'config.json'), 'utf8')).includes('llama'))
})

test('pull refuses what is no hub id', async (t) => {
  const { stderr, code } = await heddle(['pull', '../escape'])
  t.is(code, 2)
  t.regex(stderr, /a hub id such as/)
})

test('chat answers line by line and remembers the conversation', async (t) => {
  const model = await chatModelFolder()
  const args = ['chat', '--model', model, '--max-tokens', '4', '--json', '--temperature', '0']
  const { stdout, code } = await heddle(args, { input: 'one\ntwo\n/reset\ntwo\n/exit\n' })
  t.is(code, 0)
  const answers = events(stdout).map(({ prompt, text: answer }) => ({ prompt, answer }))
  t.deepEqual(
    answers.map(({ prompt }) => prompt),
    ['one', 'two', 'two'],
  )
  // After /reset "two" is the first message: it is answered as a fresh conversation answers it.
  const fresh = await heddle(args, { input: 'two\n' })
  t.is(events(fresh.stdout)[0]!.text, answers[2]!.answer)
})

test('chat refuses a model without a chat template and names the way out', async (t) => {
  const { stderr, code } = await heddle(['chat', '--model', await tinyModelFolder()])
  t.is(code, 2)
  t.regex(stderr, /generate --raw/)
})

async function adapterFolder(model: string): Promise<string> {
  const loaded = await loadModel(model)
  const folder = temporaryFolder()
  await (await loaded.attach(lora({ r: 2, target_modules: ['q_proj'] }))).save(folder)
  await loaded.dispose()
  return folder
}

test('export writes a GGUF file that is the same model', async (t) => {
  const model = await tinyModelFolder()
  const output = join(temporaryFolder(), 'tiny.gguf')
  const { stderr, code } = await heddle(['export', '--model', model, '--output', output, '--type', 'f32'])
  t.is(code, 0, stderr)
  const ask = async (source: string) =>
    (await heddle(['generate', '--model', source, '--raw', '--max-tokens', '6', 'warp and'])).stdout
  t.is(await ask(output), await ask(model))
})

test('export --lora writes the adapter alone', async (t) => {
  const model = await tinyModelFolder()
  const output = join(temporaryFolder(), 'lora.gguf')
  const args = ['export', '--model', model, '--adapter', await adapterFolder(model), '--lora', '--output', output]
  const { stderr, code } = await heddle(args)
  t.is(code, 0, stderr)
  t.true((await readFile(output)).includes('blk.0.attn_q.weight.lora_a'))
})

test('export works an adapter into a folder', async (t) => {
  const model = await tinyModelFolder()
  const output = join(temporaryFolder(), 'merged')
  const args = ['export', '--model', model, '--adapter', await adapterFolder(model), '--output', output]
  t.is((await heddle(args)).code, 0)
  t.regex((await heddle(['inspect', output])).stdout, /architecture\s+llama/)
})

test('export refuses what cannot be, before it loads anything', async (t) => {
  const folder = await heddle(['export', '--model', 'none', '--output', 'out', '--type', 'q8_0'])
  t.is(folder.code, 2)
  t.regex(folder.stderr, /--type f32, f16 or bf16 for a folder/)
  const alone = await heddle(['export', '--model', 'none', '--output', 'x.gguf', '--lora'])
  t.is(alone.code, 2)
  t.regex(alone.stderr, /no adapter/)
})
