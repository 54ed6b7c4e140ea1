/** `heddle generate`: streams a model's answer to stdout. */
import { text as readAll } from 'node:stream/consumers'
import type { Command } from 'commander'
import { HeddleError } from '../errors.js'
import {
  type CommonFlags,
  command,
  inferencePrecisionOption,
  inSession,
  type ModelFlags,
  modelOption,
  withRequired,
} from './session.js'
import { integerFrom, numberFrom, repeated } from './values.js'

interface Flags extends CommonFlags, ModelFlags {
  readonly adapter?: string
  readonly system?: string
  readonly raw?: boolean
  readonly maxTokens: number
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly seed: number
  readonly stop?: readonly string[]
}

export const generateCommand = (): Command =>
  withRequired(command('generate'), modelOption())
    .usage('--model <source> [options] [prompt]')
    .description("Answer a prompt. It goes through the model's chat template, if it has one, as the user's message.")
    .argument('[prompt]', 'text of the prompt; left out or "-": read from stdin')
    .option('-a, --adapter <folder>', 'PEFT adapter folder to use')
    .option('--system <text>', 'system message before the prompt')
    .option('--raw', 'continue the prompt as it is, without the chat template')
    .option('--max-tokens <n>', 'at most so many new tokens', integerFrom(1), 256)
    .option('--temperature <t>', '0 always takes the most likely token, 1 samples as the model says', numberFrom(0), 0)
    .option('--top-k <k>', 'sample among the k most likely; 0: all', integerFrom(0), 0)
    .option('--top-p <p>', 'sample among the fewest that reach this probability', numberFrom(0, 1), 1)
    .option('--seed <n>', 'the same seed gives the same text', integerFrom(0), 0)
    .option('--stop <text>', 'end before this text; can be given several times', repeated)
    .addOption(inferencePrecisionOption())
    .addHelpText(
      'after',
      `
Examples:
  $ heddle generate --model HuggingFaceTB/SmolLM2-135M-Instruct "What is a heddle?"
  $ cat letter.txt | heddle generate --model model.gguf --raw --temperature 0.8 --seed 7`,
    )
    .action((prompt: string | undefined, flags: Flags) =>
      inSession(flags, {}, async (session) => {
        if (prompt === undefined && process.stdin.isTTY)
          throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'generate', expected: 'a prompt', got: 'none' })
        const given = prompt === undefined || prompt === '-' ? await readAll(process.stdin) : prompt
        if (flags.raw && flags.system !== undefined)
          throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
            place: 'generate',
            expected: '--raw or --system',
            got: 'both',
          })
        const model = await session.loadModel(flags)
        const adapter = flags.adapter === undefined ? undefined : await model.loadAdapter(flags.adapter)
        const { maxTokens, temperature, topK, topP, seed, stop = [] } = flags
        const options = { maxTokens, temperature, topK, topP, seed, stop, adapter, signal: session.signal }
        const messages = [
          { role: 'system', content: flags.system ?? '' },
          { role: 'user', content: given },
        ]
        const pieces =
          flags.system === undefined
            ? model.generate(given, { ...options, ...(flags.raw ? { chat: false } : {}) })
            : model.generate(messages, options)
        let answer = ''
        for await (const piece of pieces) {
          answer += piece
          session.write(piece)
        }
        session.report('answer', { prompt: given, text: answer }, '')
      }),
    )
