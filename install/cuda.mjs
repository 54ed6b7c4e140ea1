// `npm run build:cuda`: builds heddle_cuda.node with node-gyp and nvcc (binding.gyp), only the kernels that have changed.
//
//   --fetch-toolkit     gets the toolkit from Python's package index where there is none
//   --check [name…]     compiles kernels (those whose path has one of the names) without linking, and prints registers,
//                       shared memory and spills of each
//   --sources, --headers, --flags   what binding.gyp asks for
//   --compile nvcc …    what it runs for a kernel: nvcc, whose account of the kernel is kept for `npm run report:cuda`
import { spawn, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { buildJobs, exitOnFailure, filesBelow, Refusal, root, runLogged, stage } from './build.mjs'
import { fetchToolkit, findToolkit } from './toolkit.mjs'

const flags = ['-std=c++20', '-O3', '-Xcompiler=-fPIC,-Wall,-Wextra,-fvisibility=hidden', '-Werror=all-warnings']
const architectures = ['80', '86', '89', '90']

/** node-gyp always builds into `build` beside binding.gyp, which here is CMake's: it gets a folder of its own. */
const staging = join(root, '.cache', 'cuda')

/** By source file, what the assembler says about each kernel in it. */
const accounts = join(staging, 'kernels')

const args = process.argv.slice(2)
if (args[0] === '--compile') process.exitCode = compileKernel(args.slice(1))
else if (args.includes('--sources')) print(kernelFiles().concat(hostFiles()))
else if (args.includes('--headers')) print(headerFiles())
else if (args.includes('--flags')) print(flags)
else
  await exitOnFailure(async () => {
    if (args.includes('--fetch-toolkit')) await stage('CUDA toolkit', fetchToolkit)
    if (args.includes('--check')) await checkKernels(args.filter((arg) => !arg.startsWith('--')))
    else await stage('CUDA addon', buildCuda)
  })

function print(lines) {
  process.stdout.write(`${lines.join('\n')}\n`)
}

function kernelFiles() {
  return filesBelow('cuda').filter((file) => file.endsWith('.cu'))
}

function hostFiles() {
  const own = /^cuda\/(?!host\/|addon\.cpp)/
  return filesBelow('cuda').filter((file) => own.test(file) && file.endsWith('.cpp'))
}

function headerFiles() {
  const headers = filesBelow('cuda').filter((file) => /\.(h|cuh)$/.test(file) && !file.startsWith('cuda/host/'))
  return [...headers, 'cpp/core/backend.h', 'cpp/io/encoding.h', 'cpp/program/kernel.h', 'cpp/kernels/strided.h']
}

async function buildCuda() {
  const toolkit = findToolkit()
  mkdirSync(staging, { recursive: true })
  for (const name of ['binding.gyp', 'cuda', 'cpp', 'install', 'node_modules', 'package.json']) {
    rmSync(join(staging, name), { force: true })
    symlinkSync(join(root, name), join(staging, name))
  }
  const gyp = (command, ...more) =>
    runLogged('cuda', process.execPath, [nodeGyp(), command, '--directory', staging, ...more])
  const settings = {
    cuda_nvcc: toolkit.nvcc,
    cuda_include: toolkit.include,
    cuda_library_folder: toolkit.libraryFolder,
    cuda_libraries: toolkit.libraries.join(' '),
  }
  const defines = Object.entries(settings).map(([name, value]) => `-D${name}=${value}`)
  await gyp('configure', ...nodeHeaders(), '--', ...defines)
  await gyp('build', '--jobs', String(buildJobs()))
  const target = join(root, 'build', 'Release')
  mkdirSync(target, { recursive: true })
  copyFileSync(join(staging, 'build', 'Release', 'heddle_cuda.node'), join(target, 'heddle_cuda.node'))
  return `built with CUDA ${toolkit.version} for sm_${architectures.join(', sm_')} and newer ones`
}

/** npm brings one along. */
function nodeGyp() {
  const npm = process.env.npm_execpath
  const found = [
    process.env.npm_config_node_gyp,
    npm && join(dirname(npm), '..', 'node_modules', 'node-gyp', 'bin', 'node-gyp.js'),
    join(
      dirname(process.execPath),
      '..',
      'lib',
      'node_modules',
      'npm',
      'node_modules',
      'node-gyp',
      'bin',
      'node-gyp.js',
    ),
  ].find((path) => path && existsSync(path))
  if (found) return found
  try {
    return createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js')
  } catch {
    throw new Refusal('node-gyp was not found. Run this by npm, which has it: npm run build:cuda')
  }
}

/** Node's headers, where they are installed beside it, instead of a download. */
function nodeHeaders() {
  const prefix = dirname(dirname(process.execPath))
  const file = join(prefix, 'include', 'node', 'node_version.h')
  if (!existsSync(file)) return []
  const text = readFileSync(file, 'utf8')
  const version = ['MAJOR', 'MINOR', 'PATCH'].map((part) => new RegExp(`NODE_${part}_VERSION (\\d+)`).exec(text)?.[1])
  return version.join('.') === process.versions.node ? [`--nodedir=${prefix}`] : []
}

function compileKernel([nvcc, ...nvccArgs]) {
  const source = nvccArgs[nvccArgs.indexOf('-c') + 1]
  const { status, error, stdout, stderr } = spawnSync(nvcc, ['-Xptxas=-v', ...nvccArgs], { encoding: 'utf8' })
  if (status !== 0) {
    process.stderr.write(error ? `${error.message}\n` : stdout + stderr)
    return 1
  }
  mkdirSync(accounts, { recursive: true })
  writeFileSync(join(accounts, `${relative(staging, source).replaceAll('/', '.')}.txt`), stderr)
  return 0
}

async function checkKernels(names) {
  const { nvcc } = findToolkit()
  const chosen = kernelFiles().filter((file) => names.length === 0 || names.some((name) => file.includes(name)))
  const code = architectures.map((number) => `-gencode=arch=compute_${number},code=sm_${number}`)
  for (const file of chosen) {
    const started = performance.now()
    const report = await output(nvcc, [...flags, ...code, '-Xptxas=-v', '-I.', '-Icpp', '-c', file, '-o', '/dev/null'])
    process.stdout.write(`${file} (${((performance.now() - started) / 1000).toFixed(1)} s)\n${summary(report)}`)
  }
}

/** One line a kernel; numbers of the architectures, in their order, where they differ. */
function summary(report) {
  const kernels = new Map()
  const entries = report.matchAll(
    /entry function '(\S+)' for 'sm_(\d+)'[\s\S]*?(\d+) bytes stack frame, (\d+) bytes spill stores[\s\S]*?Used (\d+) registers(.*)/g,
  )
  for (const [, name, , stack, spills, registers, rest] of entries) {
    const shared = /(\d+) bytes smem/.exec(rest)?.[1] ?? '0'
    const known = kernels.get(name) ?? []
    kernels.set(name, [...known, { registers, shared, stack, spills }])
  }
  const names = [...kernels.keys()]
  const readable = spawnSync('c++filt', ['--no-params'], { input: names.join('\n'), encoding: 'utf8' }).stdout
  const shown = readable ? readable.trimEnd().split('\n') : names
  return names
    .map((name, i) => {
      const column = (key) => [...new Set(kernels.get(name).map((entry) => entry[key]))].join('/')
      const numbers = `${column('registers')} registers, ${column('shared')} B shared, ${column('stack')} B stack, ${column('spills')} B spilled`
      return `  ${shown[i].replace(/^void |heddle::cuda::|\(anonymous namespace\)::/g, '')}: ${numbers}\n`
    })
    .sort()
    .join('')
}

function output(command, commandArgs) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, commandArgs, { cwd: root })
    let text = ''
    child.stdout.on('data', (data) => (text += data))
    child.stderr.on('data', (data) => (text += data))
    child.on('error', reject)
    child.on('close', (status) => (status === 0 ? resolve(text) : reject(new Refusal(text))))
  })
}
