// `npm test`: builds what is needed, then runs every test. Arguments after `--` go to ava; a test may be named by its source.
import { join } from 'node:path'
import { exitOnFailure, prepare, root, runNode } from './build.mjs'

await exitOnFailure(async () => {
  await prepare({ emulation: true })
  const args = process.argv.slice(2).map((arg) => arg.replace(/^(?:\.\/)?(test\/.*)\.ts$/, 'dist/$1.js'))
  process.chdir(root)
  await runNode([join(root, 'node_modules/ava/entrypoints/cli.mjs'), ...args])
})
