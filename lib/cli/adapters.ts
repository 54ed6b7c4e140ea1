/** `heddle adapters`: which methods there are, what each is good for, and what it would train on a model. */
import type { Command } from 'commander'
import { parameterCount } from '../adapters/parameter_count.js'
import type { ParametrizationType } from '../adapters/parametrization.js'
import { parametrizations } from '../adapters/registry.js'
import { unknownName } from '../config.js'
import { HeddleError } from '../errors.js'
import { openCheckpoint } from '../formats/checkpoint.js'
import { buildNetwork, siteStructures } from '../models/build.js'
import { type Architecture, decoders, encoders, imageClassifiers } from '../models/registry.js'
import type { Network } from '../nn/network.js'
import { type CommonFlags, command, inSession, modelOption, type Session } from './session.js'

interface Flags extends CommonFlags {
  readonly model?: string
  readonly targetModules?: readonly string[]
}

export const adaptersCommand = (): Command =>
  command('adapters')
    .usage('[method] [options]')
    .description('List the adapter methods: what each is good for, and how many numbers it would train on a model.')
    .argument('[method]', 'only this one, with its paper')
    .addOption(modelOption())
    .option('--target-modules <names...>', 'modules to count on; default: as the method chooses')
    .addHelpText(
      'after',
      '\nExamples:\n  $ heddle adapters\n  $ heddle adapters --model model.gguf --target-modules q_proj v_proj\n  $ heddle adapters lora',
    )
    .action((method: string | undefined, flags: Flags) =>
      inSession(flags, {}, async (session) => {
        const types = method === undefined ? parametrizations : [typeNamed(method)]
        const { model } = flags
        const network = model === undefined ? undefined : await networkOf(session, model)
        const rows = types.map((type) => ({ type, count: network && countOf(type, network, flags.targetModules) }))
        const width = Math.max(...types.map(({ name }) => name.length))
        for (const { type, count } of rows) reportMethod(session, { type, count, width })
        if (method !== undefined) reportDetails(session, types[0]!)
      }),
    )

/** The network of any model; none of its weights is read. */
const networkOf = (session: Session, source: string): Promise<Network> =>
  session.fetched(source, async (hub) => {
    const checkpoint = await openCheckpoint(source, hub)
    try {
      const known: readonly Architecture<Network>[] = [...decoders, ...encoders, ...imageClassifiers]
      return buildNetwork(known, checkpoint, await siteStructures(checkpoint))
    } finally {
      checkpoint.close()
    }
  })

/** @throws ERR_HEDDLE_ARGUMENT with the nearest name */
function typeNamed(name: string): ParametrizationType {
  const found = parametrizations.find((type) => type.name === name)
  if (found) return found
  throw unknownName(
    'adapters',
    name,
    parametrizations.map((type) => type.name),
  )
}

/** What the method trains with its default config, or why it cannot act on this model. */
function countOf(type: ParametrizationType, network: Network, targets: readonly string[] | undefined): number | string {
  try {
    return parameterCount(network, type.create(targets ? { target_modules: targets } : {})).parameters
  } catch (error) {
    if (error instanceof HeddleError) return `expected ${error.expected}, got ${error.got}`
    throw error
  }
}

interface Row {
  readonly type: ParametrizationType
  readonly count: number | string | undefined
  readonly width: number
}

function reportMethod(session: Session, { type, count, width }: Row): void {
  const { name, title, isPeft, purpose, initialChange } = type
  const shown = typeof count === 'number' ? count.toLocaleString('en-US') : '–'
  const columns = [name.padEnd(width), ...(count === undefined ? [] : [shown.padStart(12)]), purpose]
  const reason = typeof count === 'string' ? `\n${' '.repeat(width + 16)}${count}` : ''
  const text = `${columns.join('  ')}${reason}`
  session.report('method', { name, title, isPeft, purpose, initialChange, parameters: count }, text)
}

const initialWords = {
  none: 'nothing',
  rounding: 'nothing but rounding',
  small: 'a little',
  any: 'the output, on purpose',
} as const

function reportDetails(
  session: Session,
  { title, source, isPeft, peftType, initialChange, name, page = name }: ParametrizationType,
): void {
  const details = {
    'published as': `${title}, ${source}`,
    'a fresh one changes': initialWords[initialChange],
    folder: isPeft ? `PEFT's, peft_type ${peftType}` : `Heddle's own, peft_type ${peftType}`,
    guide: `docs/adapters/${page}.md`,
  }
  const text = Object.entries(details).map(([key, value]) => `${key.padEnd(20)} ${value}`)
  session.report('details', details, text.join('\n'))
}
