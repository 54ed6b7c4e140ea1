// What helps to choose a method: counts before anything is attached, and `heddle adapters`.
import { execFile } from 'node:child_process'
import { access, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { settings } from '../bench/adapters/settings.js'
import { parameterCount } from '../lib/adapters/parameter_count.js'
import { parametrizations } from '../lib/adapters/registry.js'
import { HeddleError } from '../lib/errors.js'
import { lora } from '../lib/index.js'
import { golden, root } from './golden.js'
import { tinyModel } from './tiny_model.js'

const run = promisify(execFile)
const heddle = (...args: readonly string[]) =>
  run(process.execPath, [fileURLToPath(new URL('../lib/cli/heddle.js', import.meta.url)), ...args])

test('what a method would train is what it trains once it is attached, copied modules and biases included', async (t) => {
  const model = await tinyModel()
  const method = lora({ r: 4, target_modules: ['q_proj'], modules_to_save: ['norm'] })
  const { parameters, sites } = parameterCount(model.network, method)
  const adapter = await model.attach(method)
  t.is(parameters, adapter.parameterCount)
  t.is(sites, adapter.sitePaths.length)
  await model.dispose()
})

test('counting refuses what attaching would refuse', async (t) => {
  const model = await tinyModel()
  t.throws(() => parameterCount(model.network, lora({ target_modules: ['nowhere'] })), { instanceOf: HeddleError })
  await model.dispose()
})

test('heddle adapters lists every method with what it is good for', async (t) => {
  const { stdout } = await heddle('adapters', '--json')
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { readonly name: string; readonly purpose: string })
  t.deepEqual(
    lines.map(({ name }) => name),
    parametrizations.map(({ name }) => name),
  )
  t.true(lines.every(({ purpose }) => purpose.length > 10))
})

test('heddle adapters counts on a model', async (t) => {
  const model = join(root, 'models', 'heddle-tiny')
  const { stdout } = await heddle('adapters', 'lora', '--model', model, '--target-modules', 'q_proj', '--json')
  const { parameters } = JSON.parse(stdout.split('\n')[0]!) as { readonly parameters: number }
  t.is(parameters, 4 * 8 * (256 + 256))
})

test('heddle adapters counts on an encoder, and says in a line of its own why a method cannot act there', async (t) => {
  const { stdout } = await heddle('adapters', '--model', golden('models/bert'))
  const lines = stdout.split('\n')
  const lora = lines.find((line) => line.startsWith('lora '))!
  t.regex(lora, /^lora +[\d,]+ {2}the one to begin with/)
  const s2ft = lines.findIndex((line) => line.startsWith('s2ft '))
  t.regex(lines[s2ft]!, / – {2}trains heads/)
  t.regex(lines[s2ft + 1]!, /^ +expected v_ratio, o_ratio, u_ratio, d_ratio above 0/)
})

test('a method that is not known is answered with the nearest', async (t) => {
  await t.throwsAsync(heddle('adapters', 'lorra'), { message: /Did you mean "lora"/ })
})

const changes = { none: 'nothing', rounding: 'rounding only', small: 'a little', any: 'the output' } as const

test('docs/guides/adapters.md lists every method as the registry has it, and each has its page', async (t) => {
  const overview = await readFile(join(root, 'docs/guides/adapters.md'), 'utf8')
  for (const { name, title, source, purpose, isPeft, initialChange, page = name } of parametrizations) {
    const folder = isPeft ? "PEFT's" : "Heddle's"
    const row = `| [${title}](../adapters/${page}.md) | \`${name}\` | ${purpose} | ${changes[initialChange]} | ${folder} | ${source} |`
    t.true(overview.includes(row), row)
    await t.notThrowsAsync(access(join(root, 'docs', 'adapters', `${page}.md`)), name)
  }
})

test('the comparison of bench/adapters has a setting of every method, which the method takes', (t) => {
  for (const { name, create } of parametrizations) {
    const own = settings.filter(({ method }) => method === name)
    t.true(own.length > 0, name)
    for (const { config } of own) t.notThrows(() => create(config), name)
  }
})
