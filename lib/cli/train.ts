/** `heddle train`: fine-tunes an adapter on a data file. */
import { type Command, Option } from 'commander'
import { lora } from '../adapters/lora.js'
import { HeddleError } from '../errors.js'
import { adamw } from '../optim/adamw.js'
import { defaultLength } from '../train/evaluate.js'
import type { ScheduleName } from '../train/options.js'
import {
  type CommonFlags,
  command,
  dataOption,
  inSession,
  type ModelFlags,
  modelOption,
  precisionOption,
  withRequired,
} from './session.js'
import { runTraining, stopAndResume, type TrainingRunOptions, writeReport } from './training_run.js'
import { integerFrom, numberFrom } from './values.js'

interface Flags extends CommonFlags, ModelFlags {
  readonly data: string
  readonly output: string
  readonly evalData?: string
  readonly evalFraction: number
  readonly evalEvery?: number
  readonly rank: number
  readonly alpha?: number
  readonly dropout: number
  readonly rslora?: boolean
  readonly targetModules: string
  readonly epochs?: number
  readonly maxSteps?: number
  readonly batchSize: number
  readonly accumulation: number
  readonly maxLength?: number
  readonly packing?: boolean
  readonly learningRate: number
  readonly weightDecay: number
  readonly schedule: ScheduleName
  readonly warmupSteps?: number
  readonly warmupRatio: number
  readonly clip: number
  readonly seed: number
  readonly checkpointEvery: number
  readonly resume?: boolean
}

export const trainCommand = (): Command =>
  withRequired(
    command('train'),
    modelOption(),
    dataOption(),
    new Option('-o, --output <folder>', 'gets the adapter, checkpoints, metrics and report'),
  )
    .description('Fine-tune a model with LoRA. Writes a PEFT adapter folder, metrics.jsonl and report.html.')
    .option('--resume', 'go on from the newest checkpoint in the output folder; the result is the same, bit for bit')
    .optionsGroup('Held-out data:')
    .option('--eval-data <file>', 'score this file before, during and after training')
    .option('--eval-fraction <share>', 'without --eval-data: share of the data to hold out', numberFrom(0, 0.5), 0.05)
    .option('--eval-every <steps>', 'steps between evaluations (default: once per epoch)', integerFrom(1))
    .optionsGroup('Adapter:')
    .option('-r, --rank <r>', 'rank of the LoRA matrices', integerFrom(1), 16)
    .option('--alpha <alpha>', "numerator of LoRA's scale (default: twice the rank)", numberFrom(0))
    .option('--dropout <p>', "probability of dropping an element of the adapter's input", numberFrom(0, 0.99), 0)
    .option('--rslora', 'scale by alpha/√r instead of alpha/r')
    .option(
      '--target-modules <names>',
      '"all-linear", names separated by commas, or a regular expression',
      'all-linear',
    )
    .optionsGroup('Training:')
    .addOption(
      new Option('--epochs <n>', 'passes over the data (default: 1)').argParser(numberFrom(0)).conflicts('maxSteps'),
    )
    .option('--max-steps <n>', 'optimizer steps, instead of --epochs', integerFrom(1))
    .option('--batch-size <n>', 'sequences per batch', integerFrom(1), 4)
    .option('--accumulation <n>', 'batches per optimizer step', integerFrom(1), 1)
    .option('--max-length <n>', "most tokens per sequence (default: 256, or the model's maximum)", integerFrom(1))
    .option('--packing', 'several sequences in one row, each seeing itself only: little padding')
    .option('--learning-rate <rate>', 'peak learning rate of AdamW', numberFrom(0), 2e-4)
    .option('--weight-decay <rate>', 'decoupled weight decay', numberFrom(0), 0.01)
    .addOption(
      new Option('--schedule <name>', 'course after the warm-up')
        .choices(['cosine', 'linear', 'constant'])
        .default('cosine'),
    )
    .option('--warmup-steps <n>', 'steps of linear warm-up, instead of --warmup-ratio', integerFrom(0))
    .option('--warmup-ratio <share>', 'share of all steps for the warm-up', numberFrom(0, 1), 0.03)
    .option('--clip <norm>', 'largest norm of the gradients; 0: any', numberFrom(0), 1)
    .option('--seed <n>', 'decides initial values, order of the data and dropout', integerFrom(0), 0)
    .addOption(precisionOption())
    .option('--checkpoint-every <steps>', 'steps between checkpoints', integerFrom(1), 100)
    .addHelpText(
      'after',
      `
Examples:
  $ heddle train --model HuggingFaceTB/SmolLM2-135M-Instruct --data support.jsonl --output adapters/support
  $ heddle train --model model.gguf --data notes.txt --output adapters/notes --epochs 3 --rank 8 --precision bf16

Ctrl-C stops after the running step, saves it, and prints the command that goes on from there.`,
    )
    .action((flags: Flags) =>
      inSession(flags, stopAndResume, async (session) => {
        const model = await session.loadModel(flags)
        const method = lora({
          r: flags.rank,
          lora_alpha: flags.alpha ?? 2 * flags.rank,
          lora_dropout: flags.dropout,
          use_rslora: flags.rslora ?? false,
          target_modules: targetModules(flags.targetModules),
        })
        const adapter = await model.attach(method, { seed: flags.seed })
        const maxLength = flags.maxLength ?? defaultLength(model)
        const evaluationFraction = flags.evalData === undefined ? flags.evalFraction : 0
        const { packing = false, seed } = flags
        const data = await session.openData(model, flags.data, { maxLength, packing, evaluationFraction, seed })
        const { evalData } = flags
        const run: TrainingRunOptions = {
          model,
          adapter,
          data,
          dataName: flags.data,
          outputFolder: flags.output,
          options: {
            ...(evalData === undefined
              ? {}
              : { evaluationData: await session.openData(model, evalData, { maxLength, packing }) }),
            epochs: flags.epochs,
            maxSteps: flags.maxSteps,
            batchSize: flags.batchSize,
            accumulation: flags.accumulation,
            optimizer: adamw({ lr: flags.learningRate, weightDecay: flags.weightDecay }),
            clip: flags.clip,
            schedule: flags.schedule,
            warmupSteps: flags.warmupSteps,
            warmupRatio: flags.warmupRatio,
            seed: flags.seed,
            evaluateEvery: flags.evalEvery,
            checkpointEvery: flags.checkpointEvery,
            resume: flags.resume ?? false,
          },
          config: configOf(flags, maxLength),
        }
        const record = await runTraining(session, run)
        const report = await writeReport(run, record)
        const summary = [
          `Trained ${adapter.parameterCount.toLocaleString('en-US')} parameters in ${record.seconds.toFixed(0)} s`,
          `(${Math.round(record.tokensPerSecond).toLocaleString('en-US')} tokens/s)`,
        ]
        session.report(
          'done',
          { output: flags.output, report, seconds: record.seconds, tokensPerSecond: record.tokensPerSecond },
          `${summary.join(' ')}\nAdapter: ${flags.output}\nReport:  ${report}`,
        )
      }),
    )

/** A list where there are commas or a single plain name; everything else is PEFT's own string form. */
function targetModules(text: string): string | string[] {
  if (/^[\w.-]+(,[\w.-]+)*$/.test(text) && text !== 'all-linear') return text.split(',')
  if (text !== '') return text
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: '--target-modules', expected: 'names', got: 'nothing' })
}

function configOf(flags: Flags, maxLength: number): TrainingRunOptions['config'] {
  const { rank, alpha, dropout, batchSize, accumulation, learningRate, weightDecay, schedule, clip, seed } = flags
  return {
    rank,
    alpha: alpha ?? 2 * rank,
    dropout,
    'target modules': flags.targetModules,
    'batch size': batchSize,
    accumulation,
    'max length': maxLength,
    'learning rate': learningRate,
    'weight decay': weightDecay,
    schedule,
    clip,
    precision: flags.precision,
    seed,
  }
}
