/** `heddle eval`: held-out loss and perplexity of a model, with or without an adapter. */
import type { Command } from 'commander'
import { causalLm } from '../objectives/causal_lm.js'
import { defaultLength, evaluate } from '../train/evaluate.js'
import {
  type CommonFlags,
  command,
  dataOption,
  inferencePrecisionOption,
  inSession,
  type ModelFlags,
  modelOption,
  withRequired,
} from './session.js'
import { integerFrom } from './values.js'

interface Flags extends CommonFlags, ModelFlags {
  readonly data: string
  readonly adapter?: string
  readonly batchSize: number
  readonly maxLength?: number
}

export const evalCommand = (): Command =>
  withRequired(command('eval'), modelOption(), dataOption())
    .description('Score a data file: mean negative log-likelihood per target token, and perplexity.')
    .option('-a, --adapter <folder>', 'PEFT adapter folder to use')
    .option('--batch-size <n>', 'sequences per batch', integerFrom(1), 8)
    .option('--max-length <n>', "most tokens per sequence (default: 256, or the model's maximum)", integerFrom(1))
    .addOption(inferencePrecisionOption())
    .addHelpText(
      'after',
      `
Example:
  $ heddle eval --model HuggingFaceTB/SmolLM2-135M --adapter adapters/support --data held-out.jsonl`,
    )
    .action((flags: Flags) =>
      inSession(flags, {}, async (session) => {
        const model = await session.loadModel(flags)
        const adapter = flags.adapter === undefined ? undefined : await model.loadAdapter(flags.adapter)
        const maxLength = flags.maxLength ?? defaultLength(model)
        const data = await session.openData({ path: flags.data, model, objective: causalLm(), maxLength })
        const bar = session.progress('Scoring', data.size)
        const result = await evaluate(model, data, {
          adapter,
          batchSize: flags.batchSize,
          signal: session.signal,
          onProgress: (share) => bar.update(Math.round(share * data.size)),
        })
        bar.stop()
        const { loss, perplexity, tokens } = result
        const text = `loss ${loss.toFixed(4)} · perplexity ${perplexity.toFixed(2)} · ${tokens.toLocaleString('en-US')} tokens`
        session.report('evaluation', { ...result }, text)
      }),
    )
