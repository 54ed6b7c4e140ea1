// Reads the output of `npm test` and prints `N passed, N failed` from ava's own marks and summary. Exits with 1 unless
// tests ran and none failed. ava's summary leaves out the passed ones when something failed, and never counts a test
// file that died, so its marks are counted as well.
import { readFileSync } from 'node:fs'
import { stripVTControlCharacters } from 'node:util'

const lines = stripVTControlCharacters(readFileSync(process.argv[2], 'utf8')).split(/\r?\n/)
const marks = (pattern) => lines.filter((line) => pattern.test(line)).length
const summary = (pattern) => Number(lines.map((line) => pattern.exec(line)?.[1]).findLast((found) => found) ?? 0)

const passed = summary(/^ {2}(\d+) tests? passed$/) || marks(/^ {2}[✔√] (?!\[expected fail\])/)
// A file that an uncaught exception ended is reported as dead as well; it counts once.
const thrown = lines.map((line) => /^ {2}Uncaught exception in (.+)$/.exec(line)?.[1])
const died = lines
  .map((line) => /^ {2}[✘×] (.+) exited (?:due to|with a non-zero)/.exec(line)?.[1])
  .filter((file) => file !== undefined && !thrown.includes(file))
const failed =
  summary(/^ {2}(\d+) tests? failed$/) +
  summary(/^ {2}(\d+) hooks? failed$/) +
  summary(/^ {2}(\d+) uncaught exceptions?$/) +
  summary(/^ {2}(\d+) unhandled rejections?$/) +
  summary(/^ {2}(\d+) tests? remained pending after a timeout$/) +
  died.length +
  marks(/^ {2}[✘×] No tests found in /)

const wrong = failed + (passed === 0 && failed === 0 ? 1 : 0)
console.log(`${passed} passed, ${wrong} failed`)
process.exitCode = wrong === 0 ? 0 : 1
