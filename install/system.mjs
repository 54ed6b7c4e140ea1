// The system packages that building the native core takes: is everything here, and if not, can we install it?
// Plain Node without dependencies, because it runs before `npm ci`.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** What the build needs, with the package that provides it for each package manager. */
const requirements = [
  { name: 'CMake 3.20 or newer', apt: 'cmake', brew: 'cmake', present: cmakePresent },
  { name: 'make or ninja', apt: 'make', brew: 'ninja', present: () => runs('make') || runs('ninja') },
  {
    name: 'a C++20 compiler',
    apt: 'g++',
    brew: 'llvm',
    present: () => compiles('#include <concepts>\n#include <span>\ntemplate <std::integral T> T f(T x) { return x; }'),
  },
  { name: 'oneDNN', apt: 'libdnnl-dev', brew: 'onednn', present: () => hasHeader('dnnl.hpp') },
  { name: 'OpenBLAS', apt: 'libopenblas-pthread-dev', brew: 'openblas', present: () => hasHeader('cblas.h') },
  { name: 'LAPACKE', apt: 'liblapacke-dev', brew: 'lapack', present: () => hasHeader('lapacke.h') },
  { name: 'Highway', apt: 'libhwy-dev', brew: 'highway', present: () => hasHeader('hwy/highway.h') },
]

/** Requirements that this machine lacks. */
export function missingRequirements() {
  return requirements.filter(({ present }) => !present())
}

/**
 * How to get the missing ones: the line a person would run, and the commands that we may run without asking
 * (as root, with password-free sudo, or through Homebrew), if any.
 */
export function installPlan(missing) {
  if (process.platform === 'darwin' && runs('brew')) {
    const packages = missing.map(({ brew }) => brew)
    return {
      line: `brew install ${packages.join(' ')}`,
      commands: [{ command: 'brew', args: ['install', ...packages], env: { HOMEBREW_NO_ENV_HINTS: '1' } }],
    }
  }
  if (process.platform === 'linux' && runs('apt-get')) return aptPlan(missing.map(({ apt }) => apt))
  return { line: `Install with your package manager: ${missing.map(({ name }) => name).join(', ')}.`, commands: [] }
}

function aptPlan(packages) {
  const root = process.getuid() === 0
  const sudo = root ? [] : ['sudo']
  const apt = (...args) => [...sudo, 'apt-get', ...args]
  const line = `${apt('update').join(' ')} && ${apt('install', '-y', ...packages).join(' ')}`
  if (!root && !runs('sudo', ['-n', 'true'])) return { line, commands: [] }

  const quiet = ['-y', '-q', '--no-install-recommends', '-o', 'DPkg::Lock::Timeout=300']
  const prefix = root ? [] : ['sudo', '-n']
  const command = (...args) => {
    const [first, ...rest] = [...prefix, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', ...args]
    return { command: first, args: rest, env: {} }
  }
  return { line, commands: [command('update', '-q'), command('install', ...quiet, ...packages)] }
}

/** Homebrew keeps these out of the default search path, so neither the check nor CMake sees them without a hint. */
export function brewPrefixes() {
  if (process.platform !== 'darwin') return []
  const prefixes = ['', 'openblas', 'lapack', 'onednn', 'highway'].map((formula) => {
    const result = spawnSync('brew', ['--prefix', ...(formula ? [formula] : [])], { encoding: 'utf8' })
    return result.status === 0 ? result.stdout.trim() : ''
  })
  return [...new Set(prefixes.filter((prefix) => prefix !== ''))]
}

function cmakePresent() {
  const version = /version (\d+)\.(\d+)/.exec(spawnSync('cmake', ['--version'], { encoding: 'utf8' }).stdout ?? '')
  return version !== null && (Number(version[1]) > 3 || Number(version[2]) >= 20)
}

function runs(command, args = ['--version']) {
  return spawnSync(command, args, { stdio: 'ignore' }).status === 0
}

function hasHeader(header) {
  return compiles(`#include <${header}>`, ['-E'])
}

/** Asks the compiler itself: only that says for sure what it finds, whichever way the package came. */
function compiles(source, mode = ['-fsyntax-only']) {
  const folder = mkdtempSync(join(tmpdir(), 'heddle-check-'))
  try {
    const file = join(folder, 'check.cpp')
    writeFileSync(file, `${source}\n`)
    const compiler = process.env.CXX || 'c++'
    const args = ['-std=c++20', ...includeFlags(), ...mode, file]
    return spawnSync(compiler, args, { stdio: 'ignore', shell: compiler.includes(' ') }).status === 0
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

let cachedFlags
function includeFlags() {
  // Debian selects among OpenBLAS builds by symbolic link; the headers of one may be reachable only in its own folder.
  const debian = ['x86_64', 'aarch64'].flatMap((cpu) =>
    ['pthread', 'openmp'].map((kind) => `/usr/include/${cpu}-linux-gnu/openblas-${kind}`),
  )
  const folders = process.platform === 'linux' ? debian : brewPrefixes().map((prefix) => join(prefix, 'include'))
  cachedFlags ??= folders.map((folder) => `-I${folder}`)
  return cachedFlags
}
