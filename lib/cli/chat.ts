/** `heddle chat`: a conversation in the terminal, with or without an adapter. */
import { createInterface, type Interface } from 'node:readline'
import type { Command } from 'commander'
import type { Adapter } from '../adapters/adapter.js'
import { HeddleError } from '../errors.js'
import type { GenerateOptions, Model } from '../model.js'
import type { ChatMessage } from '../tokenize/tokenizer.js'
import {
  type CommonFlags,
  command,
  inferencePrecisionOption,
  inSession,
  type ModelFlags,
  modelOption,
  type Session,
  withRequired,
} from './session.js'
import { integerFrom, numberFrom } from './values.js'

interface Flags extends CommonFlags, ModelFlags {
  readonly adapter?: string
  readonly system?: string
  readonly maxTokens: number
  readonly temperature: number
  readonly topP: number
  readonly seed: number
}

const commands = `/adapter on|off  use the adapter, or the plain model
/reset           forget the conversation
/help            this list
/exit            end (so does Ctrl-D); Ctrl-C stops an answer`

export const chatCommand = (): Command =>
  withRequired(command('chat'), modelOption())
    .description('Talk to a model. /help lists what can be typed besides messages.')
    .option('-a, --adapter <folder>', 'PEFT adapter folder to use')
    .option('--system <text>', 'system message before the conversation')
    .option('--max-tokens <n>', 'at most so many tokens per answer', integerFrom(1), 512)
    .option('--temperature <t>', '0 always takes the most likely token', numberFrom(0), 0.7)
    .option('--top-p <p>', 'sample among the fewest tokens that reach this probability', numberFrom(0, 1), 0.9)
    .option('--seed <n>', 'the same seed gives the same conversation', integerFrom(0), 0)
    .addOption(inferencePrecisionOption())
    .addHelpText(
      'after',
      `
Examples:
  $ heddle chat --model HuggingFaceTB/SmolLM2-135M-Instruct
  $ heddle chat --model model.gguf --adapter adapters/support --system "You are the support desk."`,
    )
    .action((flags: Flags) =>
      inSession(flags, {}, async (session) => {
        const model = await session.loadModel(flags)
        if (!model.tokenizer.hasChatTemplate)
          throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
            place: 'chat',
            expected: 'a model with a chat template',
            got: 'one without',
            hint: 'Use `heddle generate --raw` to continue a text',
          })
        const adapter = flags.adapter === undefined ? undefined : await model.loadAdapter(flags.adapter)
        await converse(session, model, { flags, adapter })
      }),
    )

interface Setting {
  readonly flags: Flags
  readonly adapter: Adapter | undefined
}

async function converse(session: Session, model: Model, { flags, adapter }: Setting): Promise<void> {
  const opening: readonly ChatMessage[] = flags.system === undefined ? [] : [{ role: 'system', content: flags.system }]
  let messages = [...opening]
  let isAdapted = adapter !== undefined
  let turn = 0
  const terminal = createInterface({ input: process.stdin, output: process.stderr, prompt: '> ' })
  if (process.stdin.isTTY)
    session.note(`${model.source}${adapter ? ` with ${flags.adapter}` : ''}. /help lists commands.`)
  terminal.prompt()
  for await (const line of terminal) {
    const text = line.trim()
    if (text === '/exit') break
    if (text === '/reset') messages = [...opening]
    else if (text === '/adapter on' || text === '/adapter off') isAdapted = switched(session, text, adapter)
    else if (text.startsWith('/')) session.note(commands)
    else if (text !== '') {
      messages.push({ role: 'user', content: text })
      const { maxTokens, temperature, topP, seed } = flags
      const options = { maxTokens, temperature, topP, seed: seed + turn, adapter: isAdapted ? adapter : undefined }
      const content = await answer(session, terminal, model.generate.bind(model, messages), options)
      messages.push({ role: 'assistant', content })
      session.report('answer', { prompt: text, text: content })
      turn += 1
    }
    terminal.prompt()
  }
  terminal.close()
}

function switched(session: Session, text: string, adapter: Adapter | undefined): boolean {
  const isOn = text.endsWith('on') && adapter !== undefined
  session.note(adapter === undefined ? 'There is no adapter: start with --adapter.' : `Adapter ${isOn ? 'on' : 'off'}.`)
  return isOn
}

/** Streams one answer; Ctrl-C ends it and keeps what is there. */
async function answer(
  session: Session,
  terminal: Interface,
  generate: (options: GenerateOptions) => AsyncIterable<string>,
  options: GenerateOptions,
): Promise<string> {
  const stop = new AbortController()
  const onStop = (): void => stop.abort()
  terminal.on('SIGINT', onStop)
  let text = ''
  try {
    for await (const piece of generate({ ...options, signal: AbortSignal.any([stop.signal, session.signal]) })) {
      text += piece
      session.write(piece)
    }
  } catch (error) {
    if (!stop.signal.aborted || !(error instanceof HeddleError) || error.code !== 'ERR_HEDDLE_ABORTED') throw error
  } finally {
    terminal.off('SIGINT', onStop)
  }
  session.write('\n')
  return text
}
