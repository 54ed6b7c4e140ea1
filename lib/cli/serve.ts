/** `heddle serve`: a model and its adapters behind OpenAI's HTTP API; `heddle serve keys`: who may ask. */
import { once } from 'node:events'
import { basename } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { addKey, limitsText, listKeys, refusePublicAddress, removeKey, type Scope, scopes } from '../serve/keys.js'
import type { ClientLimits } from '../serve/limits.js'
import { type LogLevel, logLevels } from '../serve/log.js'
import { type RunningServer, startServer } from '../serve/server.js'
import {
  type CommonFlags,
  command,
  inferencePrecisionOption,
  inSession,
  type ModelFlags,
  modelOption,
  type Session,
} from './session.js'
import { bytesFrom, integerFrom, numberFrom, repeated } from './values.js'

/** What a client may take: of the server for all keys, or of a key for itself. */
interface LimitFlags {
  readonly maxBody?: number
  readonly maxPromptTokens?: number
  readonly maxNewTokens?: number
  readonly maxConcurrency?: number
  readonly maxRate?: number
  readonly maxSeconds?: number
}

interface Flags extends CommonFlags, LimitFlags, Partial<ModelFlags> {
  readonly name?: string
  readonly adapters?: string
  readonly data: string
  readonly host: string
  readonly port: number
  readonly keys?: string
  readonly insecure?: boolean
  readonly cors?: readonly string[]
  readonly page: boolean
  readonly maxBatch?: number
  readonly maxQueue?: number
  readonly cacheMemory?: number
  readonly adapterMemory?: number
  readonly maxUpload?: number
  readonly maxUploads?: number
  readonly drainSeconds: number
  readonly logLevel: LogLevel
  readonly logPrompts?: boolean
}

export const serveCommand = (): Command => {
  const serving = command('serve')
    .usage('--model <source> [options]')
    .addOption(modelOption())
    .description("Serve a model and its adapters over HTTP, in the form of OpenAI's API.")
    .addOption(inferencePrecisionOption())
    .option('--name <name>', 'name under which the model alone is asked for (default: the last part of --model)')
    .option('--adapters <folder>', 'folder whose subfolders are adapters by name (default: adapters in --data)')
    .option('--data <folder>', 'uploaded files, training jobs and their database', 'heddle-data')
    .optionsGroup('Who may ask:')
    .option('--host <address>', 'address to listen on; others than loopback need --keys', '127.0.0.1')
    .option('-p, --port <n>', 'port to listen on; 0: a free one', integerFrom(0), 8000)
    .option('--keys <file>', 'keys that clients must have, as `heddle serve keys add` makes them')
    .option('--insecure', 'allow a public address without keys')
    .option('--cors <origin>', 'origin whose pages may ask, or *; may be given several times (default: none)', repeated)
    .option('--no-page', 'show no page at / (default: one with models, chat, jobs and load)')
    .optionsGroup('How much at a time:')
    .option('--max-batch <n>', 'texts made at the same time (default: 32)', integerFrom(1))
    .option('--max-queue <n>', 'requests that may wait (default: 256)', integerFrom(0))
    .option('--cache-memory <bytes>', 'keys and values, such as 512M or 4G (default: 512M)', bytesFrom)
    .option('--adapter-memory <bytes>', 'adapters in memory (default: 256M)', bytesFrom)
    .option('--max-upload <bytes>', 'file to fine-tune with (default: 512M)', bytesFrom)
    .option('--max-uploads <bytes>', 'all such files together (default: 4G)', bytesFrom)
    .option('--drain-seconds <s>', 'time for running requests when the server is told to end', numberFrom(0), 30)
    .optionsGroup('What each key may take that has no limits of its own:')
  for (const each of limitOptions((byDefault) => byDefault)) serving.addOption(each)
  return serving
    .optionsGroup('Log:')
    .addOption(new Option('--log-level <level>', 'lines of JSON on stdout').choices(logLevels).default('info'))
    .option('--log-prompts', 'log what clients send; default: never')
    .addHelpText(
      'after',
      `
Examples:
  $ heddle serve --model HuggingFaceTB/SmolLM2-135M-Instruct --adapters adapters
  $ heddle serve keys add alice --keys keys.txt --scopes infer,train
  $ heddle serve --model model.gguf --keys keys.txt --host 0.0.0.0 --port 8080

/healthz, /readyz and /metrics are for whoever runs it (docs/guides/operating-a-server.md). SIGTERM or Ctrl-C ends it
once running requests have ended; a second one ends it at once. SIGHUP reads the keys again.
Exit codes: 0 ended as told, 1 failed, 2 wrong use, 130 or 143 ended at once.`,
    )
    .action((flags: Flags, action: Command) => {
      if (flags.model === undefined) action.error("error: required option '-m, --model <source>' not specified")
      const onInterrupt = `Running requests have ${flags.drainSeconds} s to end.`
      return inSession(flags, { onInterrupt }, (session) => serve(session, { ...flags, model: flags.model! }))
    })
    .addCommand(keysCommand())
}

/** @param byDefault what holds where an option is not given, in words */
const limitOptions = (byDefault: (ofServer: string) => string): Option[] =>
  (
    [
      ['--max-body <bytes>', 'body of a request', '1M', bytesFrom],
      ['--max-prompt-tokens <n>', 'tokens of a prompt', "the model's maximum", integerFrom(1)],
      ['--max-new-tokens <n>', 'tokens that a request may ask for', '4096', integerFrom(1)],
      ['--max-concurrency <n>', 'requests at the same time', '64', integerFrom(1)],
      ['--max-rate <n>', 'requests per minute', '600', integerFrom(1)],
      ['--max-seconds <s>', 'time for an answer', '600', numberFrom(0.001)],
    ] as const
  ).map(([flag, words, ofServer, parse]) =>
    new Option(flag, `${words} (default: ${byDefault(ofServer)})`).argParser(parse),
  )

async function serve(session: Session, flags: Flags & ModelFlags): Promise<void> {
  const { host, port, keys, insecure = false, data, adapters, logLevel: level, logPrompts = false } = flags
  refusePublicAddress(host, { hasKeys: keys !== undefined, insecure })
  // V8's helpers would wait for cores that the network has, and the event loop for them: 16 ms for a collection of 3.
  setFlagsFromString('--no-parallel-scavenge')
  const model = await session.loadModel(flags)
  const server = await startServer({
    ...given({ adapters, keys, modelName: flags.name ?? basename(flags.model), cors: originsOf(flags.cors) }),
    model,
    data,
    host,
    port,
    insecure,
    page: flags.page,
    logBodies: logPrompts,
    logger: { level },
    limits: limitsOf(flags),
    uploads: given({ fileBytes: flags.maxUpload, totalBytes: flags.maxUploads }),
    engine: {
      ...given({ maxBatch: flags.maxBatch, maxQueue: flags.maxQueue }),
      memory: given({ cache: flags.cacheMemory, adapters: flags.adapterMemory }),
    },
  })
  announce(session, server, keys !== undefined)
  await aborted(session.signal)
  await server.close(AbortSignal.timeout(1000 * flags.drainSeconds))
}

function announce(session: Session, { url, modelName, engine }: RunningServer, hasKeys: boolean): void {
  const { adapterNames } = engine
  session.report('listening', { url, model: modelName, adapters: adapterNames })
  const names = adapterNames.length === 0 ? 'No adapters yet.' : `Adapters: ${adapterNames.slice(0, 10).join(', ')}`
  session.note(`Listening on ${url}
${names}${adapterNames.length > 10 ? `, and ${adapterNames.length - 10} more` : ''}
Next: curl ${url}/v1/chat/completions -H 'content-type: application/json'${hasKeys ? " -H 'authorization: Bearer <key>'" : ''} \\
        -d '${JSON.stringify({ model: modelName, messages: [{ role: 'user', content: 'Hello' }] })}'`)
}

const limitsOf = (flags: LimitFlags): ClientLimits =>
  given({
    bodyBytes: flags.maxBody,
    promptTokens: flags.maxPromptTokens,
    newTokens: flags.maxNewTokens,
    concurrency: flags.maxConcurrency,
    requestsPerMinute: flags.maxRate,
    answerSeconds: flags.maxSeconds,
  })

const originsOf = (origins: readonly string[] | undefined): '*' | readonly string[] | undefined =>
  origins?.includes('*') ? '*' : origins

/** Without the fields that nothing was said about, so that defaults stay. */
const given = <T extends object>(fields: T): { [K in keyof T]?: Exclude<T[K], undefined> } =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never

const aborted = async (signal: AbortSignal): Promise<void> => {
  if (!signal.aborted) await once(signal, 'abort')
}

interface KeyFlags extends CommonFlags, LimitFlags {
  readonly keys: string
  readonly scopes: readonly Scope[]
}

/** `heddle serve` takes the flags that it has, too, wherever they stand. */
const inKeySession = (action: Command, body: (session: Session, flags: KeyFlags) => Promise<void>): Promise<void> => {
  const flags = action.optsWithGlobals<KeyFlags>()
  return inSession(flags, {}, (session) => body(session, flags))
}

const keysOption = (): Option => new Option('--keys <file>', 'the file').default('keys.txt')

function keysCommand(): Command {
  const keys = command('keys').description(
    'Make, list and remove the keys of a server. Running servers see the change.',
  )
  for (const each of [addKeyCommand(), listKeysCommand(), removeKeyCommand()])
    keys.addCommand(each.addOption(keysOption()).showSuggestionAfterError().exitOverride())
  return keys.exitOverride()
}

function addKeyCommand(): Command {
  const add = command('add')
    .description('Make a key, print it, and add its hash to the file. It cannot be printed again.')
    .argument('<name>', 'who has it')
    .addOption(
      new Option('--scopes <list>', `out of ${scopes.join(', ')}`).argParser(scopesFrom).default(['infer'], 'infer'),
    )
  for (const each of limitOptions(() => "the server's")) add.addOption(each)
  return add
    .addHelpText(
      'after',
      `
Examples:
  $ heddle serve keys add alice --keys keys.txt --scopes infer,train
  $ heddle serve keys add crawler --keys keys.txt --max-rate 30 --max-new-tokens 256`,
    )
    .action((name: string, _, action: Command) =>
      inKeySession(action, async (session, flags) => {
        const limits = limitsOf(flags)
        const key = await addKey(flags.keys, { name, scopes: flags.scopes, limits })
        session.report('key', { name, scopes: flags.scopes, limits, key }, key)
        session.note(`Next: heddle serve --model <source> --keys ${flags.keys}`)
      }),
    )
}

const listKeysCommand = (): Command =>
  command('list')
    .description('Print the names, scopes and limits in the file.')
    .action((_, action: Command) =>
      inKeySession(action, async (session, flags) => {
        for (const { name, scopes: granted, limits } of await listKeys(flags.keys)) {
          const line = [name, granted.join(','), ...limitsText(limits)].join(' ')
          session.report('key', { name, scopes: granted, limits }, line)
        }
      }),
    )

const removeKeyCommand = (): Command =>
  command('remove')
    .description('Take a key out of the file.')
    .argument('<name>', 'who had it')
    .action((name: string, _, action: Command) =>
      inKeySession(action, async (session, flags) => {
        await removeKey(flags.keys, name)
        session.report('removed', { name }, `Removed ${name}.`)
      }),
    )

function scopesFrom(text: string): readonly Scope[] {
  const names = text.split(',')
  if (names.every((name): name is Scope => (scopes as readonly string[]).includes(name))) return names
  throw new InvalidArgumentError(`Expected names out of ${scopes.join(', ')}, separated by commas.`)
}
