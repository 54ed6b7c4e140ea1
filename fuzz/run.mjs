// `npm run fuzz [-- seconds]`: coverage-guided fuzzing of the readers of untrusted bytes, a third of the time each:
// safetensors and GGUF headers (fuzz/readers.ts) and instruction lists (fuzz/instruction_list.cpp, by libFuzzer).
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const seconds = Math.max(3, Number(process.argv[2] ?? 45))
const each = Math.floor(seconds / 3)
const work = join(root, '.cache', 'fuzz')
mkdirSync(join(work, 'corpus'), { recursive: true })

const run = (command, ...args) => spawnSync(command, args, { cwd: root, stdio: 'inherit' }).status === 0

/** clang++ under its own name, or as Debian's clang packages install it beside. */
function compiler() {
  const llvm = existsSync('/usr/lib') ? readdirSync('/usr/lib').filter((name) => name.startsWith('llvm-')) : []
  const names = [process.env.CLANGXX, 'clang++', ...llvm.map((name) => `/usr/lib/${name}/bin/clang++`)]
  return names.find((name) => name && spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0)
}

function fuzzInstructions() {
  const clang = compiler()
  if (!clang) {
    console.error('instruction list: needs clang++ with libFuzzer (Debian: apt-get install clang)')
    return false
  }
  const target = join(work, 'instruction_list')
  const sources = ['fuzz/instruction_list.cpp', 'cpp/program/instruction_list.cpp']
  const core = ['status', 'shape', 'dtype'].map((name) => `cpp/core/${name}.cpp`)
  const flags = ['-std=c++20', '-g', '-O1', '-Icpp', '-fsanitize=fuzzer,address,undefined', '-fno-sanitize-recover=all']
  return (
    run(clang, ...flags, ...sources, ...core, '-o', target) &&
    run(
      target,
      `-max_total_time=${each}`,
      '-max_len=4096',
      '-print_final_stats=1',
      '-verbosity=0',
      `-artifact_prefix=${work}/`,
      join(work, 'corpus'),
      'fuzz/seeds/instructions',
    )
  )
}

const readers = ['safetensors', 'gguf'].map((format) =>
  run(process.execPath, '--enable-source-maps', 'dist/fuzz/readers.js', format, `${each}`),
)
const instructions = fuzzInstructions()
process.exitCode = readers.every(Boolean) && instructions ? 0 : 1
