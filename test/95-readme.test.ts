// The README's code, pasted into a file and run as a user would run it; and the links of all pages.

import { execFile } from 'node:child_process'
import { access, cp, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { root } from './golden.js'
import { fetchModel } from './models/fetch.js'
import { temporaryFolder } from './support/temporary_folder.js'

test('the code of the README fine-tunes, saves a PEFT folder and generates', async (t) => {
  const folder = temporaryFolder()
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const readme = await readFile(join(root, 'README.md'), 'utf8')
  const code = /```ts\n([\s\S]*?)```/.exec(readme)![1]!
  const model = await fetchModel('smollm2')
  t.true(code.includes("'HuggingFaceTB/SmolLM2-135M-Instruct'"))
  await writeFile(join(folder, 'app.mjs'), code.replace('HuggingFaceTB/SmolLM2-135M-Instruct', model))
  await cp(join(root, 'examples/data/support.jsonl'), join(folder, 'support.jsonl'))
  await mkdir(join(folder, 'node_modules'))
  await symlink(root, join(folder, 'node_modules', 'heddle'))

  const { stdout } = await promisify(execFile)(process.execPath, ['app.mjs'], { cwd: folder })
  const steps = stdout.split('\n').filter((line) => /^\d+\/\d+ /.test(line))
  t.true(steps.length >= 4)
  t.true(stdout.trim().length > steps.join('\n').length, 'an answer follows the steps')
  await access(join(folder, 'adapters', 'support', 'adapter_model.safetensors'))
})

test('every link between pages leads to a file', async (t) => {
  const docs = await readdir(join(root, 'docs'), { recursive: true })
  const pages = docs
    .filter((name) => name.endsWith('.md') && !name.startsWith('api'))
    .map((name) => join(root, 'docs', name))
  for (const page of [join(root, 'README.md'), ...pages]) {
    const text = await readFile(page, 'utf8')
    for (const [, target] of text.matchAll(/\]\((?!\w+:)([^)#\s]+)/g)) {
      await t.notThrowsAsync(access(resolve(dirname(page), target!)), `${page}: ${target}`)
    }
  }
})
