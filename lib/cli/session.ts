/** What every subcommand shares: common flags, where output goes, how Ctrl-C and failures end the process. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Command, Option } from 'commander'
import type { Adapter } from '../adapters/adapter.js'
import type { Parametrization } from '../adapters/parametrization.js'
import { HeddleError } from '../errors.js'
import type { HubOptions } from '../formats/hub.js'
import { devices, setDevice } from '../graph/device.js'
import type { Precision } from '../graph/ops/matmul.js'
import { loadModel, type Model } from '../model.js'
import { addon, type Device } from '../native.js'
import type { Network } from '../nn/network.js'
import type { Objective, OpenOptions, TrainingData } from '../objectives/objective.js'
import type { Trainable } from '../train/trainable.js'
import { attachShown, type ShownOptions } from '../train/trained.js'
import { type Progress, progress } from './progress.js'
import { integerFrom } from './values.js'

/** A file of this package; this code runs from dist/lib/cli. */
export const packageFile = (path: string): string => fileURLToPath(new URL(`../../../${path}`, import.meta.url))

/** Version of this package. */
export const packageVersion = (): string =>
  (JSON.parse(readFileSync(packageFile('package.json'), 'utf8')) as { readonly version: string }).version

export interface CommonFlags {
  readonly json?: boolean
  readonly debug?: boolean
  readonly threads?: number
  readonly device?: Device
}

export interface ModelFlags {
  readonly model: string
  /** Default: that of {@link inferencePrecisionOption}. */
  readonly precision?: Precision
}

/** A subcommand with the flags that all have. */
export const command = (name: string): Command =>
  new Command(name)
    .option('--json', 'one JSON object per line on stdout, for programs')
    .option('--threads <n>', 'threads to compute with (default: HEDDLE_NUM_THREADS, else all cores)', integerFrom(1))
    .addOption(new Option('--device <device>', 'where to compute (default: HEDDLE_DEVICE, else cpu)').choices(devices))
    .option('--debug', 'show the stack of a failure')

export const modelOption = (): Option =>
  new Option('-m, --model <source>', 'Hugging Face folder, .gguf file, or hub id')

/**
 * Adds options that must be given. Unlike commander's own mandatory options, a missing one is only reported after
 * unknown ones: who mistypes --model is told so, not that --model is missing.
 */
export function withRequired(to: Command, ...options: readonly Option[]): Command {
  for (const option of options) to.addOption(option)
  const shown = options.map(({ flags }) => flags.replace(/^-\w, /, ''))
  return to.usage([...shown, '[options]'].join(' ')).hook('preAction', (_, action) => {
    for (const option of options)
      if (action.getOptionValue(option.attributeName()) === undefined)
        action.error(`error: required option '${option.flags}' not specified`)
  })
}

export const dataOption = (): Option =>
  new Option(
    '-d, --data <file>',
    'file, folder or glob of .jsonl, .json, .csv, .tsv, .parquet, .txt, .md (docs/guides/data.md)',
  )

export const precisionOption = (): Option =>
  new Option('--precision <type>', 'operands of matrix products; sums are always f32')
    .choices(['f32', 'bf16'])
    .default('f32')

/** For commands that only run a model. */
export const inferencePrecisionOption = (): Option =>
  new Option(
    '--precision <type>',
    'f32, bf16, or as stored in a GGUF file (default: stored for .gguf files, else f32)',
  ).choices(['f32', 'bf16', 'stored'])

const inferencePrecision = (source: string): Precision => (source.toLowerCase().endsWith('.gguf') ? 'stored' : 'f32')

/** One running subcommand. */
export interface Session {
  readonly signal: AbortSignal
  /** Something that a program wants to know: a line of JSON with `--json`, else `text`, if any, for people. */
  report(event: string, fields: Readonly<Record<string, unknown>>, text?: string): void
  /** Text for people as it comes, on stdout; nothing with `--json`. */
  write(text: string): void
  /** A remark for people, on stderr. */
  note(text: string): void
  loadModel(flags: ModelFlags): Promise<Model>
  /** What `load` gives, with a bar for what comes from the hub. */
  fetched<T>(source: string, load: (options: Pick<HubOptions, 'onProgress' | 'signal'>) => Promise<T>): Promise<T>
  /** The same thing, which is disposed of when the command ends. */
  keep<T extends { dispose(): unknown }>(made: T): T
  /** Reads a file of examples, and notes what its rows are. */
  openData<N extends Network, B>(data: DataRequest<N, B>): Promise<TrainingData<B>>
  /** Attaches a method, with a bar where it takes its time; warnings are notes. */
  attach(model: Trainable, method: Parametrization, options: ShownOptions): Promise<Adapter>
  /** A progress bar that is taken down when the command ends, whatever the reason. */
  progress(label: string, total: number, unit?: 'count' | 'bytes'): Progress
}

/** A file of examples for a model. */
export interface DataRequest<N extends Network, B>
  extends Pick<OpenOptions, 'maxLength'>,
    Partial<Pick<OpenOptions, 'evaluationFraction' | 'seed'>> {
  readonly path: string
  readonly model: Trainable<N>
  readonly objective: Objective<N, B>
}

export interface SessionOptions {
  /** Said at the first Ctrl-C, which then only sets the signal. Default: the first Ctrl-C quits. */
  readonly onInterrupt?: string
  /** Printed when the command was interrupted. */
  readonly afterInterrupt?: () => string | undefined
}

/** Runs a subcommand's body; sets the exit code: 0, 1 failed, 2 wrong use, 130 interrupted. */
export async function inSession(
  flags: CommonFlags,
  options: SessionOptions,
  body: (session: Session) => Promise<void>,
): Promise<void> {
  const interrupt = new AbortController()
  const cleanups: (() => unknown)[] = []
  const cleanUp = async (): Promise<void> => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
  }
  const onSignal = (): void => {
    if (interrupt.signal.aborted || !options.onInterrupt) void cleanUp().finally(() => process.exit(130))
    else process.stderr.write(`\n${options.onInterrupt} Ctrl-C again quits at once.\n`)
    interrupt.abort()
  }
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  try {
    if (flags.threads !== undefined) addon.setThreads(flags.threads)
    if (flags.device !== undefined) setDevice(flags.device)
    await body(makeSession(flags, interrupt.signal, cleanups))
  } catch (error) {
    await cleanUp()
    const isInterrupt = interrupt.signal.aborted && error instanceof HeddleError && error.code === 'ERR_HEDDLE_ABORTED'
    if (isInterrupt) process.stderr.write(`${options.afterInterrupt?.() ?? 'Interrupted.'}\n`)
    else reportFailure(error, flags)
    process.exitCode = isInterrupt ? 130 : isMisuse(error) ? 2 : 1
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
    await cleanUp()
  }
}

function makeSession({ json = false }: CommonFlags, signal: AbortSignal, cleanups: (() => unknown)[]): Session {
  const startProgress = (label: string, total: number, unit: 'count' | 'bytes' = 'count'): Progress => {
    const bar = progress({ label, total, unit })
    cleanups.push(() => bar.stop())
    return bar
  }
  const note = (text: string): void => {
    process.stderr.write(`${text}\n`)
  }
  const report: Session['report'] = (event, fields, text) => {
    if (json) process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`)
    else if (text !== undefined) process.stdout.write(`${text}\n`)
  }
  const keep = <T extends { dispose(): unknown }>(made: T): T => {
    cleanups.push(() => made.dispose())
    return made
  }
  const fetched: Session['fetched'] = async (source, load) => {
    let bar: Progress | undefined
    const result = await load({
      signal,
      onProgress: ({ loaded, total }) => {
        bar ??= startProgress(`Fetching ${source}`, total, 'bytes')
        bar.update(loaded, { total })
      },
    })
    bar?.stop()
    return result
  }
  return {
    signal,
    note,
    write(text) {
      if (!json) process.stdout.write(text)
    },
    progress: startProgress,
    report,
    async loadModel({ model: source, precision = inferencePrecision(source) }) {
      return keep(await fetched(source, (hub) => loadModel(source, { ...hub, precision })))
    },
    fetched,
    keep,
    async attach(model, method, options) {
      let bar: Progress | undefined
      let counted: string | undefined
      const adapter = await attachShown(model, method, {
        ...options,
        signal,
        onProgress: ({ unit, done, total }) => {
          if (unit !== counted) {
            bar?.stop()
            bar = startProgress(`Attaching ${method.name}, ${unit}`, total)
            counted = unit
          }
          bar?.update(done, { total })
        },
        onWarning(message) {
          report('warning', { message })
          note(message)
        },
      })
      bar?.stop()
      return adapter
    },
    async openData({ path, model, objective, evaluationFraction = 0, seed = 0, maxLength }) {
      let bar: Progress | undefined
      const data = await objective.open(path, {
        tokenizer: model.tokenizer,
        network: model.network,
        maxLength,
        evaluationFraction,
        seed,
        signal,
        onProgress: (share) => {
          if (share === 1 && !bar) return
          bar ??= startProgress('Tokenizing', 100)
          bar.update(Math.round(100 * share))
        },
      })
      bar?.stop()
      if (data.description) note(data.description)
      const [first] = data.skipped ?? []
      if (first) note(`The first skipped row is ${first.file}:${first.line}: ${first.reason}`)
      return data
    },
  }
}

function reportFailure(error: unknown, { json, debug }: CommonFlags): void {
  const message = error instanceof Error ? error.message : String(error)
  const code = error instanceof HeddleError ? error.code : 'ERR_HEDDLE_INTERNAL'
  if (json) process.stdout.write(`${JSON.stringify({ event: 'error', code, message })}\n`)
  const shown = debug && error instanceof Error ? error.stack : message
  process.stderr.write(`heddle: ${shown}\n`)
  if (!debug && !(error instanceof HeddleError)) process.stderr.write('This is a defect; --debug shows where.\n')
}

const isMisuse = (error: unknown): boolean => error instanceof HeddleError && error.code === 'ERR_HEDDLE_ARGUMENT'

/** The command line that runs this one again, with more flags. */
export function commandLineWith(...flags: readonly string[]): string {
  const args = process.argv.slice(2).filter((arg) => !flags.includes(arg))
  if (process.env.npm_lifecycle_event === 'quickstart')
    return ['npm run quickstart --', ...[...args.slice(1), ...flags].map(quoted)].join(' ')
  const script = process.argv[1] ?? ''
  const program = script.endsWith('.js') ? `node ${quoted(script)}` : 'heddle'
  return [program, ...[...args, ...flags].map(quoted)].join(' ')
}

const quoted = (arg: string): string => (/^[\w@%+=:,./-]+$/.test(arg) ? arg : `'${arg.replaceAll("'", `'\\''`)}'`)
