// Brings a checkout to the point where its code can run: system packages, npm packages, the native core, TypeScript.
// Each stage does nothing when its inputs have not changed. Plain Node without dependencies: it runs before `npm ci`.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createWriteStream, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism, totalmem } from 'node:os'
import { join, relative } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { brewPrefixes, installPlan, missingRequirements } from './system.mjs'

export const root = fileURLToPath(new URL('..', import.meta.url))
export const addonFile = join(root, 'build', 'Release', 'heddle.node')
const addonStamp = join(root, 'build', '.heddle-stamp')
const upToDate = 'up to date'
/** Scripts of the server's page, compiled for browsers. */
const pageFolder = 'lib/serve/page/client'

/** Everything, in order. Reports on stderr, so that the output of what runs afterwards stays alone on stdout. */
export async function prepare({ database = true, emulation = false } = {}) {
  checkNode()
  if (!addonCurrent()) await stage('System packages', installSystemPackages)
  await stage('npm packages', installNpmPackages)
  if (database) await stage('SQLite', buildDatabase)
  await stage('Native core', buildAddon)
  if (emulation) await stage('CUDA emulation', buildEmulation)
  await stage('TypeScript', buildTypeScript)
}

/** Runs `main` and turns an expected failure into its message and exit status 1. */
export async function exitOnFailure(main) {
  try {
    await main()
  } catch (error) {
    if (!(error instanceof Refusal)) throw error
    process.stderr.write(`\n${error.message}\n`)
    process.exitCode = 1
  }
}

/** Runs Node on a file of this checkout with the terminal handed over, and ends with its exit status. */
export function runNode(args) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, args, { stdio: 'inherit', cwd: process.cwd() })
    // A terminal sends Ctrl-C to the child as well, which saves its work and says so; this process has to outlive it.
    process.on('SIGINT', () => process.stdin.isTTY || child.kill('SIGINT'))
    process.on('SIGTERM', () => child.kill('SIGTERM'))
    child.on('exit', (code, signal) => {
      process.exitCode = code ?? (signal === 'SIGINT' ? 130 : 1)
      resolve()
    })
  })
}

/** A failure that the message explains in full: no stack trace helps. */
export class Refusal extends Error {}

export async function installSystemPackages({ mayInstall = true } = {}) {
  const missing = missingRequirements()
  if (missing.length === 0) return 'present'
  const { line, commands } = installPlan(missing)
  const names = missing.map(({ name }) => name).join(', ')
  if (!mayInstall || commands.length === 0) {
    throw new Refusal(`Missing to build Heddle's native core: ${names}.\nInstall and run this again:\n\n  ${line}`)
  }
  for (const { command, args, env } of commands) await runLogged('system-packages', command, args, env)

  const still = missingRequirements()
  if (still.length > 0) {
    throw new Refusal(`Still missing after "${line}": ${still.map(({ name }) => name).join(', ')}.`)
  }
  return `installed ${names}`
}

async function installNpmPackages() {
  if (npmPackagesCurrent()) return upToDate
  // The own install script would build the addon a second time; the one dependency that needs its own is built next.
  const args = ['ci', '--include=dev', '--ignore-scripts', '--no-audit', '--no-fund', '--no-progress']
  const npm = process.env.npm_execpath
  await (npm ? runLogged('npm-ci', process.execPath, [npm, ...args]) : runLogged('npm-ci', 'npm', args))
  return 'installed'
}

/** The database of training jobs, which is compiled where no binary can be downloaded. */
async function buildDatabase() {
  const folder = join(root, 'node_modules', 'better-sqlite3')
  if (!existsSync(folder) || existsSync(join(folder, 'build', 'Release', 'better_sqlite3.node'))) return upToDate
  const args = ['rebuild', 'better-sqlite3', '--no-audit', '--no-fund', '--no-progress']
  const npm = process.env.npm_execpath
  await (npm ? runLogged('sqlite', process.execPath, [npm, ...args]) : runLogged('sqlite', 'npm', args))
  return 'built'
}

/** Compares the lock with the record that npm keeps of what it installed. */
function npmPackagesCurrent() {
  const record = join(root, 'node_modules', '.package-lock.json')
  if (!existsSync(record)) return false
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages
  const installed = JSON.parse(readFileSync(record, 'utf8')).packages
  return Object.entries(wanted).every(([path, { version, optional }]) => {
    const found = installed[path]
    return path === '' || (found ? found.version === version : optional === true)
  })
}

export async function buildAddon() {
  if (addonCurrent()) return upToDate
  const prefixes = brewPrefixes()
  const configure = [
    'configure',
    '--directory',
    root,
    '--out',
    join(root, 'build'),
    '--CDCMAKE_EXPORT_COMPILE_COMMANDS=ON',
    ...(prefixes.length > 0 ? [`--CDCMAKE_PREFIX_PATH=${prefixes.join(';')}`] : []),
  ]
  try {
    await cmake(...configure)
  } catch {
    // CMake refuses a cache from another place or compiler (a copied checkout): start from nothing, once.
    rmSync(join(root, 'build'), { recursive: true, force: true })
    await cmake(...configure)
  }
  await cmakeBuild()
  if (!existsSync(addonFile)) throw new Refusal(`The build ended without ${relative(root, addonFile)}.`)
  writeFileSync(addonStamp, addonKey())
  return 'built'
}

/** The CUDA kernels compiled for the processor, which only tests run. */
async function buildEmulation() {
  const file = join(root, 'build', 'Release', 'heddle_cuda_host.node')
  const stamp = join(root, 'build', '.cuda-emulation-stamp')
  const key = hashOf([...filesBelow('cuda'), 'test/native/cuda_emulation.cu'], [addonKey()])
  if (existsSync(file) && read(stamp) === key) return upToDate
  await cmakeBuild('--target', 'cuda_emulation')
  writeFileSync(stamp, key)
  return 'built'
}

const cmakeBuild = (...args) =>
  cmake('build', '--directory', root, '--out', join(root, 'build'), '--parallel', String(buildJobs()), ...args)

function cmake(...args) {
  const { resolve } = createRequire(import.meta.url)
  return runLogged('native-core', process.execPath, [resolve('cmake-js/bin/cmake-js'), ...args])
}

function addonCurrent() {
  return existsSync(addonFile) && read(addonStamp) === addonKey()
}

/** Changes when the addon has to be built again. */
function addonKey() {
  const versions = ['node-addon-api', 'node-api-headers', 'cmake-js'].map(installedVersion)
  return hashOf(
    ['CMakeLists.txt', ...filesBelow('cpp')],
    [process.platform, process.arch, process.env.CXX, ...versions],
  )
}

function installedVersion(name) {
  try {
    return createRequire(import.meta.url)(`${name}/package.json`).version
  } catch {
    return undefined
  }
}

/** One compiler per core, but not more than fit: a kernel file with all its SIMD targets takes over a gigabyte. */
export function buildJobs() {
  const memory = Math.min(totalmem(), process.constrainedMemory?.() || Number.POSITIVE_INFINITY)
  return Math.max(1, Math.min(availableParallelism(), Math.floor(memory / 1.5e9)))
}

async function buildTypeScript() {
  const dist = join(root, 'dist')
  const stamp = join(dist, '.heddle-stamp')
  const folders = ['lib', 'test', 'bench', 'examples', 'fuzz']
  const inputs = [
    'tsconfig.json',
    join(pageFolder, 'tsconfig.json'),
    'package-lock.json',
    ...folders.flatMap(filesBelow).filter((file) => file.endsWith('.ts')),
  ]
  const key = hashOf(inputs, [])
  if (read(stamp) === key) return upToDate

  // Without a stamp nobody knows that the files which tsc believes to have written are still there.
  if (!existsSync(stamp))
    for (const record of ['.tsbuildinfo', '.tsbuildinfo-page']) rmSync(join(dist, record), { force: true })
  const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
  for (const project of ['.', pageFolder])
    await runLogged('typescript', process.execPath, [tsc, '-p', join(root, project)])
  removeOrphans(dist, folders)
  writeFileSync(stamp, key)
  return 'compiled'
}

/** Outputs whose source is gone: a deleted test must not go on running. */
function removeOrphans(dist, folders) {
  for (const file of folders.flatMap((folder) => filesBelow(join('dist', folder)))) {
    const source = relative(dist, join(root, file)).replace(/\.(js|js\.map|d\.ts)$/, '.ts')
    if (!existsSync(join(root, source))) rmSync(join(root, file))
  }
}

function checkNode() {
  const major = Number(process.versions.node.split('.')[0])
  if (major < 20) throw new Refusal(`Heddle needs Node.js 20 or newer; this is ${process.version}.`)
}

/** Runs one stage and reports it in one line, unless there was nothing to do. */
export async function stage(label, work) {
  const started = performance.now()
  const elapsed = () => `${((performance.now() - started) / 1000).toFixed(1)} s`
  const live = process.stderr.isTTY === true
  const clear = live ? '\r\x1b[K' : ''
  const report = (mark, outcome) =>
    process.stderr.write(`${clear}  ${mark} ${label.padEnd(16)} ${elapsed().padStart(7)}  ${outcome}\n`)
  const show = () => process.stderr.write(`${clear}  … ${label.padEnd(16)} ${elapsed().padStart(7)}`)
  const announce = () => process.stderr.write(`  … ${label}\n`)
  const timer = live ? setInterval(show, 500) : setTimeout(announce, 5000)
  try {
    const outcome = await work()
    if (outcome !== upToDate) report('✓', outcome)
  } catch (error) {
    report('✗', 'failed')
    throw error
  } finally {
    clearTimeout(timer)
  }
}

const startedLogs = new Set()

/** Runs a command with its output in a log file, whose end is shown only when the command fails. */
export function runLogged(name, command, args, env = {}) {
  const folder = join(root, '.cache', 'logs')
  mkdirSync(folder, { recursive: true })
  const file = join(folder, `${name}.log`)
  const log = createWriteStream(file, { flags: startedLogs.has(name) ? 'a' : 'w' })
  startedLogs.add(name)
  log.write(`$ ${[command, ...args].join(' ')}\n`)
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    child.stdout.pipe(log, { end: false })
    child.stderr.pipe(log, { end: false })
    child.on('error', (error) => log.write(`${error.message}\n`) && child.emit('close', 127))
    child.on('close', (code, signal) => {
      log.end(() => {
        if (code === 0) return resolve()
        const tail = readFileSync(file, 'utf8').trimEnd().split('\n').slice(-30).join('\n')
        const reason = signal ? `was ended by ${signal}` : `failed with exit status ${code}`
        reject(new Refusal(`${tail}\n\n${name} ${reason}. The whole log: ${file}`))
      })
    })
  })
}

function hashOf(files, extra) {
  const hash = createHash('sha256').update(JSON.stringify(extra))
  for (const file of files) hash.update(`\0${file}\0`).update(readFileSync(join(root, file)))
  return hash.digest('hex')
}

/** Paths of all files below a folder of the checkout, relative to the root, in a fixed order. */
export function filesBelow(folder) {
  if (!existsSync(join(root, folder))) return []
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name)))
    .sort()
}

function read(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : undefined
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await exitOnFailure(prepare)
