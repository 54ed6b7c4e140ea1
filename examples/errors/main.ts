/**
 * Failures as a program sees them: a code to switch on, the place, what was expected, what came, and the next step.
 *
 *   node dist/examples/errors/main.js
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { HeddleError, loadModel, lora, matmul, program, train, zeros } from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const folder = await mkdtemp(join(tmpdir(), 'heddle-example-'))
const model = await loadModel(file('models/heddle-tiny'))

const broken = join(folder, 'broken.gguf')
await writeFile(broken, 'GGUF, but not really')

const failures: Readonly<Record<string, () => Promise<unknown>>> = {
  'a mistyped option': () => model.attach(lora({ rank: 8 } as object)),
  'a module that is not there': () => model.attach(lora({ target_modules: ['query'] })),
  'a file that is no model': () => loadModel(broken),
  'a model that is not there': () => loadModel('/no/such/model'),
  'shapes that do not fit': () => program((a, b) => matmul(a!, b!))(zeros([2, 3]), zeros([4, 5])),
  'data that is not there': () => train(model, { data: 'no-such-file.jsonl' }).next(),
  'an aborted answer': () => model.generate('Call me', { signal: AbortSignal.abort() }).next(),
}

for (const [name, fail] of Object.entries(failures)) {
  try {
    await fail()
    console.log(`${name}: nothing failed`)
    process.exitCode = 1
  } catch (error) {
    if (!(error instanceof HeddleError)) throw error
    console.log(`${name}\n  ${error.code}\n  ${error.message}\n`)
  }
}
await model.dispose()
await rm(folder, { recursive: true })
