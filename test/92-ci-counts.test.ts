// The counts that the continuous integration reports, read from the output of the test runner.

import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { temporaryFolder } from './support/temporary_folder.js'

function counts(output: string): { readonly line: string; readonly status: number | null } {
  const file = join(temporaryFolder(), 'test.log')
  writeFileSync(file, output)
  const { stdout, status } = spawnSync(process.execPath, ['.ci/counts.mjs', file], { encoding: 'utf8' })
  return { line: stdout.trimEnd(), status }
}

test('passed tests alone are a success', (t) => {
  t.deepEqual(counts('  ✔ one\n  ✔ two\n  ─\n\n  2 tests passed\n'), { line: '2 passed, 0 failed', status: 0 })
})

test('when something failed, the passed ones are still counted', (t) => {
  const output = '  ✔ one\n  ✘ [fail]: two\n  ✔ three\n  ─\n\n  1 test failed\n'
  t.deepEqual(counts(output), { line: '2 passed, 1 failed', status: 1 })
})

test('a test file that crashed is a failure, although its summary says only what passed', (t) => {
  const output = '  ✔ one\n  ✘ dist/test/a.test.js exited due to SIGSEGV\n  ─\n\n  1 test passed\n'
  t.deepEqual(counts(output), { line: '1 passed, 1 failed', status: 1 })
})

test('an uncaught exception counts once', (t) => {
  const output = [
    '  ✔ one',
    '  Uncaught exception in dist/test/a.test.js',
    '  ✘ dist/test/a.test.js exited with a non-zero exit code: 1',
    '  ─',
    '',
    '  1 test passed',
    '  1 uncaught exception',
  ]
  t.deepEqual(counts(output.join('\n')), { line: '1 passed, 1 failed', status: 1 })
})

test('no tests at all are a failure', (t) => {
  t.deepEqual(counts('  ✘ Couldn’t find any files to test\n'), { line: '0 passed, 1 failed', status: 1 })
})
