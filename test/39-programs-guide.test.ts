// docs/numerics/programs.md: each snippet runs as it stands and prints what it says it prints.
import { execFile } from 'node:child_process'
import { mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { root } from './golden.js'
import { temporaryFolder } from './support/temporary_folder.js'

test('the snippets of docs/numerics/programs.md print what they say', async (t) => {
  const folder = temporaryFolder()
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  await mkdir(join(folder, 'node_modules'))
  await symlink(root, join(folder, 'node_modules', 'heddle'))
  const guide = await readFile(join(root, 'docs/numerics/programs.md'), 'utf8')
  const snippets = [...guide.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code!)
  t.true(snippets.length >= 7)
  for (const [i, code] of snippets.entries()) {
    const file = join(folder, `snippet-${i}.mjs`)
    await writeFile(file, code)
    const { stdout } = await promisify(execFile)(process.execPath, [file], { cwd: folder })
    const expected = [...code.matchAll(/\/\/ → (.*)/g)].map(([, line]) => line)
    t.deepEqual(stdout.trim().split('\n'), expected, code)
  }
})
