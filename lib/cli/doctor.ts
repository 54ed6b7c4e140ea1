/** `heddle doctor`: what is installed, what this machine can do, and what to install for more. */
import { totalmem } from 'node:os'
import { pathToFileURL } from 'node:url'
import type { Command } from 'commander'
import { HeddleError } from '../errors.js'
import { hubCacheFolder } from '../formats/hub.js'
import { availableMemory, cpu, measureProducts, measureReads } from '../machine.js'
import { addon, addonPath } from '../native.js'
import { type CommonFlags, command, inSession, packageFile, packageVersion, type Session } from './session.js'

export const doctorCommand = (): Command =>
  command('doctor')
    .description('Say what is installed, what this machine can do (measured), and what is missing.')
    .addHelpText('after', '\nExamples:\n  $ heddle doctor\n  $ heddle doctor --json')
    .action((flags: CommonFlags) => inSession(flags, {}, examine))

/** One line of the findings: good, worth knowing, or wrong. */
type Mark = '✓' | '–' | '✗'

async function examine(session: Session): Promise<void> {
  const say = (mark: Mark, name: string, fields: Readonly<Record<string, unknown>>, text: string): void =>
    session.report('finding', { name, ok: mark !== '✗', ...fields }, `${mark} ${name.padEnd(16)}${text}`)
  const version = packageVersion()
  say('✓', 'heddle', { version }, version)
  say('✓', 'node', { version: process.version }, `${process.version} ${process.platform}-${process.arch}`)
  const memory = { total: totalmem(), available: await availableMemory() }
  say('✓', 'memory', memory, `${gibibytes(memory.available)} available of ${gibibytes(memory.total)}`)
  const cache = await hubCacheFolder()
  say('✓', 'model cache', { path: cache }, cache)
  const missing = await missingBuildTools()
  if (!reportAddon(say, missing)) throw missingAddon(missing)
  await measure(say)
  if (missing === undefined) say('✓', 'source build', {}, 'everything is here: `heddle build` works')
  else
    say('–', 'source build', { missing: missing.names, install: missing.line }, `to build from source: ${missing.line}`)
  reportGpu(say)
}

type Say = (mark: Mark, name: string, fields: Readonly<Record<string, unknown>>, text: string) => void

function reportAddon(say: Say, missing: BuildTools | undefined): boolean {
  try {
    const path = addonPath()
    cpu()
    say('✓', 'native core', { path }, path)
    return true
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    say('✗', 'native core', { message, install: missing?.line }, message)
    return false
  }
}

function reportGpu(say: Say): void {
  try {
    const { name, capability, memory, operators } = addon.cudaInfo()
    const all = addon.cpuInfo().operators.length
    const text = `${name}, ${(memory / 2 ** 30).toFixed(0)} GiB; ${operators.length} of ${all} operators (--device cuda)`
    say('✓', 'GPU', { available: true, device: name, capability, memory, operators: operators.length }, text)
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    say('–', 'GPU', { available: false, message }, message)
  }
}

const missingAddon = (missing: BuildTools | undefined): HeddleError =>
  new HeddleError('ERR_HEDDLE_DEVICE', {
    place: 'doctor',
    expected: 'a native core for this platform',
    got: 'none that loads',
    hint: missing ? `Run \`${missing.line}\`, then \`npx heddle build\`` : 'Run `npx heddle build`',
  })

async function measure(say: Say): Promise<void> {
  const { isa, hasBf16, cores, threads } = cpu()
  const bf16Text = hasBf16 ? 'bf16 in hardware' : 'no bf16 in hardware: --precision f32 is faster here'
  say(hasBf16 ? '✓' : '–', 'instructions', { isa, hasBf16 }, `${isa}, ${bf16Text}`)
  const threadText = `${threads} of ${cores} cores (HEDDLE_NUM_THREADS sets it)`
  say(threads <= cores ? '✓' : '–', 'threads', { threads, cores }, threadText)
  const [f32, bf16] = [await measureProducts('f32'), await measureProducts('bf16')]
  say('✓', 'products', { f32, bf16 }, `${giga(f32)} GFLOP/s f32, ${giga(bf16)} bf16 (1024 × 1024 matrices)`)
  const reads = await measureReads()
  say('✓', 'memory reads', { bytesPerSecond: reads }, `${giga(reads)} GB/s`)
}

interface BuildTools {
  readonly names: readonly string[]
  /** The command that installs them. */
  readonly line: string
}

interface SystemModule {
  missingRequirements(): readonly { readonly name: string }[]
  installPlan(missing: readonly { readonly name: string }[]): { readonly line: string }
}

/** What a build from source would still need. */
async function missingBuildTools(): Promise<BuildTools | undefined> {
  const { missingRequirements, installPlan } = (await import(
    pathToFileURL(packageFile('install/system.mjs')).href
  )) as SystemModule
  const missing = missingRequirements()
  return missing.length === 0 ? undefined : { names: missing.map(({ name }) => name), line: installPlan(missing).line }
}

const gibibytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`
const giga = (value: number): string => (value / 1e9).toFixed(value < 1e10 ? 1 : 0)
