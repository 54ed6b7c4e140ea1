// `npm run package`: the tarballs that are published. `heddle` is JavaScript and sources; the addon with the libraries
// that it loads is a package of its own for each platform, which npm chooses by `os`, `cpu` and `libc`. Nothing of it
// needs an install script.
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join, resolve } from 'node:path'
import { addonFile, exitOnFailure, prepare, Refusal, root, stage } from './build.mjs'

/** Every platform that a package is published for; npm skips those that do not fit. */
const platforms = ['linux-x64', 'linux-arm64', 'darwin-arm64', 'darwin-x64']

/** What a system has beside Node: the C library and the C++ run time that Node itself is linked to. */
const ofTheSystem = /^(linux-vdso|ld-linux|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s))[.-]/

await exitOnFailure(async () => {
  const target = resolve(process.argv[2] ?? join(root, '.cache', 'packages'))
  await prepare()
  mkdirSync(target, { recursive: true })
  await stage('Addon package', () => packAddon(target))
  await stage('Main package', () => packMain(target))
})

function packAddon(target) {
  if (process.platform !== 'linux') throw new Refusal('The addon is packed on Linux only so far.')
  const { version, license, engines } = manifest()
  const platform = `${process.platform}-${process.arch}`
  const name = `heddle-${platform}`
  return inFolder((folder) => {
    copyFileSync(addonFile, join(folder, 'heddle.node'))
    const libraries = librariesOf(addonFile)
    mkdirSync(join(folder, 'licences'))
    for (const { soname, path } of libraries) {
      copyFileSync(path, join(folder, soname))
      chmodSync(join(folder, soname), 0o644)
      copyFileSync(licenceOf(path), join(folder, 'licences', `${soname}.txt`))
    }
    copyFileSync(join(root, 'LICENSE'), join(folder, 'LICENSE'))
    const glibc = newestGlibc([addonFile, ...libraries.map(({ path }) => path)])
    writeManifest(folder, {
      name,
      version,
      description: `Native core of heddle for ${platform} (glibc ${glibc} or newer), with the libraries that it loads`,
      license,
      engines,
      os: [process.platform],
      cpu: [process.arch],
      libc: ['glibc'],
      main: 'heddle.node',
    })
    return `${pack(folder, target)} (${libraries.map(({ soname }) => soname).join(', ')}; glibc ${glibc})`
  })
}

/** The files that npm would publish, with the platform packages as optional dependencies. */
function packMain(target) {
  return inFolder((folder) => {
    const tarball = pack(root, folder)
    run('tar', ['-xzf', join(folder, tarball), '-C', folder])
    const packed = join(folder, 'package')
    const { version } = manifest()
    const optional = Object.fromEntries(platforms.map((platform) => [`heddle-${platform}`, version]))
    const { devDependencies: _, optionalDependencies, ...published } = manifest()
    writeManifest(packed, { ...published, optionalDependencies: { ...optionalDependencies, ...optional } })
    return pack(packed, target)
  })
}

/** Shared libraries that the addon loads, directly or not, and that a bare system does not have. */
function librariesOf(file) {
  const lines = run('ldd', [file]).split('\n')
  const found = lines.map((line) => /^\s*(\S+) => (\S+)/.exec(line)).filter((match) => match !== null)
  const missing = found.find(([, , path]) => path === 'not')
  if (missing) throw new Refusal(`${file} needs ${missing[1]}, which is not installed.`)
  return found
    .map(([, soname, path]) => ({ soname, path: realpathSync(path) }))
    .filter(({ soname }) => !ofTheSystem.test(soname))
}

/** The copyright file of the system package that a library came from. */
function licenceOf(library) {
  const packages = [library, library.replace(/^\/usr/, '')].map((path) => spawnSync('dpkg', ['-S', path]))
  const owner = packages
    .find(({ status }) => status === 0)
    ?.stdout.toString()
    .split(':')[0]
  const file = owner && `/usr/share/doc/${owner}/copyright`
  if (!file || !existsSync(file)) throw new Refusal(`No licence found for ${library}, so it may not be shipped.`)
  return file
}

/** The newest version of glibc that any of the files asks for. */
function newestGlibc(files) {
  const versions = files.flatMap((file) => [...readFileSync(file, 'latin1').matchAll(/GLIBC_2\.(\d+)\0/g)])
  return `2.${Math.max(...versions.map(([, minor]) => Number(minor)))}`
}

function manifest() {
  return JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
}

function writeManifest(folder, content) {
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(content, null, 2)}\n`)
}

/** Runs `npm pack` on a folder; gives the tarball's name. */
function pack(folder, target) {
  const options = ['--ignore-scripts', '--json', '--pack-destination', target]
  const npm = process.env.npm_execpath
  const output = npm
    ? run(process.execPath, [npm, 'pack', ...options], { cwd: folder })
    : run('npm', ['pack', ...options], { cwd: folder })
  return basename(JSON.parse(output)[0].filename)
}

function inFolder(work) {
  const folder = mkdtempSync(join(tmpdir(), 'heddle-package-'))
  try {
    return work(folder)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

function run(command, args, options = {}) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1e8, ...options })
  if (status !== 0) throw new Refusal(`${command} ${args.join(' ')} failed:\n${error?.message ?? stderr}`)
  return stdout
}
