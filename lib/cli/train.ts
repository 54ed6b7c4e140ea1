/** `heddle train`: fine-tunes an adapter on a data file, as flags or a config file say. */
import { type Command, Option } from 'commander'
import { parse } from 'yaml'
import { HeddleError } from '../errors.js'
import { objectiveNames } from '../objectives/registry.js'
import { optimizerNames } from '../optim/registry.js'
import { scheduleNames } from '../optim/schedule.js'
import { defaultLength } from '../train/evaluate.js'
import { expectNoUnfinishedRun } from '../train/run.js'
import { readRunRecord, writeRunRecord } from './run_record.js'
import { type CommonFlags, command, dataOption, inSession, modelOption, type Session } from './session.js'
import { overlaid, type PartialTrainConfig, readTrainConfig, type TrainConfig, trainConfigOf } from './train_config.js'
import { trainingTask } from './train_objective.js'
import { parameterCount, runTraining, stopAndResume, type TrainingRunOptions, writeReport } from './training_run.js'
import { integerFrom, numberFrom, repeated } from './values.js'

interface Flags extends CommonFlags {
  readonly config?: string
  readonly model?: string
  readonly data?: string
  readonly output?: string
  readonly evalData?: string
  readonly evalFraction?: number
  readonly evalEvery?: number
  readonly packing?: boolean
  readonly objective?: string
  readonly objectiveOption?: readonly string[]
  readonly rank?: number
  readonly alpha?: number
  readonly dropout?: number
  readonly rslora?: boolean
  readonly dora?: boolean
  readonly targetModules?: string
  readonly full?: boolean
  readonly epochs?: number
  readonly maxSteps?: number
  readonly batchSize?: number
  readonly accumulation?: number
  readonly maxLength?: number
  readonly optimizer?: string
  readonly learningRate?: number
  readonly weightDecay?: number
  readonly schedule?: string
  readonly warmupSteps?: number
  readonly warmupRatio?: number
  readonly clip?: number
  readonly seed?: number
  readonly precision?: string
  readonly checkpointEvery?: number
  readonly resume?: boolean
}

export const trainCommand = (): Command =>
  command('train')
    .usage('--model <source> --data <file> --output <folder> [options], or --config <file>')
    .description('Fine-tune a model. Writes a PEFT adapter folder, metrics.jsonl and report.html.')
    .option('-c, --config <file>', 'YAML or JSON with the same settings; `heddle init` writes one. Flags win')
    .addOption(modelOption())
    .addOption(dataOption())
    .addOption(new Option('-o, --output <folder>', 'gets the adapter, checkpoints, metrics and report'))
    .option('--resume', 'go on from the newest checkpoint in the output folder; the result is the same, bit for bit')
    .option('--packing', 'several sequences in one row, each seeing itself only: little padding')
    .optionsGroup('Objective:')
    .addOption(
      new Option('--objective <name>', 'what to train for (default: what the rows are for)').choices(objectiveNames),
    )
    .option(
      '--objective-option <name=value>',
      'such as beta=0.2 for dpo, or labels=[ham,spam]; may be given several times (docs/guides/training.md)',
      repeated,
    )
    .optionsGroup('Held-out data:')
    .option('--eval-data <file>', 'score this file before, during and after training')
    .option('--eval-fraction <share>', 'without --eval-data: share to hold out (default: 0.05)', numberFrom(0, 0.5))
    .option('--eval-every <steps>', 'steps between evaluations (default: once per epoch)', integerFrom(1))
    .optionsGroup('Adapter:')
    .option('-r, --rank <r>', 'rank of the LoRA matrices (default: 16)', integerFrom(1))
    .option('--alpha <alpha>', "numerator of LoRA's scale (default: twice the rank)", numberFrom(0))
    .option(
      '--dropout <p>',
      "probability of dropping an element of the adapter's input (default: 0)",
      numberFrom(0, 0.99),
    )
    .option('--rslora', 'scale by alpha/√r instead of alpha/r')
    .option('--dora', 'learn direction and length of each row apart')
    .option('--target-modules <names>', '"all-linear" (default), names separated by commas, or a regular expression')
    .option('--full', 'train all weights instead of an adapter; writes a whole model')
    .optionsGroup('Training:')
    .addOption(
      new Option('--epochs <n>', 'passes over the data (default: 1)').argParser(numberFrom(0)).conflicts('maxSteps'),
    )
    .option('--max-steps <n>', 'optimizer steps, instead of --epochs', integerFrom(1))
    .option('--batch-size <n>', 'sequences per batch (default: 4)', integerFrom(1))
    .option('--accumulation <n>', 'batches per optimizer step (default: 1)', integerFrom(1))
    .option('--max-length <n>', "most tokens per sequence (default: 256, or the model's maximum)", integerFrom(1))
    .addOption(new Option('--optimizer <name>', 'update rule (default: adamw)').choices(optimizerNames))
    .option('--learning-rate <rate>', 'peak learning rate (default for adamw: 2e-4)', numberFrom(0))
    .option('--weight-decay <rate>', 'decoupled weight decay (default for adamw: 0.01)', numberFrom(0))
    .addOption(new Option('--schedule <name>', 'course after the warm-up (default: cosine)').choices(scheduleNames))
    .option('--warmup-steps <n>', 'steps of linear warm-up, instead of --warmup-ratio', integerFrom(0))
    .option('--warmup-ratio <share>', 'share of all steps for the warm-up (default: 0.03)', numberFrom(0, 1))
    .option('--clip <norm>', 'largest norm of the gradients (default: 1); 0: any', numberFrom(0))
    .option('--seed <n>', 'decides initial values, order of the data and dropout (default: 0)', integerFrom(0))
    .addOption(new Option('--precision <type>', 'operands of matrix products (default: f32)').choices(['f32', 'bf16']))
    .option('--checkpoint-every <steps>', 'steps between checkpoints (default: 100)', integerFrom(1))
    .addHelpText(
      'after',
      `
Examples:
  $ heddle train --model HuggingFaceTB/SmolLM2-135M-Instruct --data support.jsonl --output adapters/support
  $ heddle train --model model.gguf --data notes.txt --output adapters/notes --epochs 3 --rank 8 --precision bf16
  $ heddle train --model HuggingFaceTB/SmolLM2-135M-Instruct --data pairs.jsonl --objective dpo --output adapters/dpo
  $ heddle train --model sentence-transformers/all-MiniLM-L6-v2 --data mails.csv --output adapters/spam
  $ heddle init && heddle train --config heddle.yaml --learning-rate 1e-4

Ctrl-C stops after the running step, saves it, and prints the command that goes on from there.`,
    )
    .action((flags: Flags, action: Command) =>
      inSession(flags, stopAndResume, async (session) => {
        const file = flags.config === undefined ? {} : await readTrainConfig(flags.config)
        const told = overlaid(file, configOfFlags(flags))
        const isResumed = flags.resume === true && typeof told.output === 'string'
        const record = isResumed ? await readRunRecord(told.output as string) : undefined
        const given = overlaid(record ?? {}, told)
        for (const name of ['model', 'data', 'output'] as const)
          if (given[name] === undefined && flags.config === undefined)
            action.error(`error: required option '--${name}' not specified`)
        await trainAs(session, {
          given,
          config: trainConfigOf(given, flags.config ?? 'train'),
          resume: flags.resume ?? false,
          isRecorded: record !== undefined,
        })
      }),
    )

interface TrainRequest {
  /** As the user said it. */
  readonly given: PartialTrainConfig
  readonly config: TrainConfig
  readonly resume: boolean
  /** The folder says already what its run was asked for; other settings are refused, or do not change its result. */
  readonly isRecorded: boolean
}

async function trainAs(session: Session, { given, config, resume, isRecorded }: TrainRequest): Promise<void> {
  const { output, training } = config
  if (!resume) await expectNoUnfinishedRun(output)
  const { model, objective, section } = await trainingTask(session, config)
  const { evaluationFraction = 0, packing: _, ...options } = training
  const { seed = 0, full = false, maxLength = defaultLength(model) } = options
  const request = { model, objective, maxLength, seed }
  const data = await session.openData({ ...request, path: config.data, evaluationFraction })
  const evaluationData =
    config.evaluationData === undefined
      ? undefined
      : await session.openData({ ...request, path: config.evaluationData })
  const { batchSize = 4 } = options
  const adapter = full ? undefined : await session.attach(model, config.method, { objective, data, seed, batchSize })
  if (!isRecorded) await writeRunRecord(output, { ...given, objective: section })
  const run: TrainingRunOptions = {
    model,
    objective,
    adapter,
    data,
    evaluationData,
    dataName: config.data,
    outputFolder: output,
    options: { ...options, maxLength, optimizer: config.optimizer, resume },
    config: { ...config.shown, objective: objective.name },
  }
  const record = await runTraining(session, run)
  if (full) await model.save(output)
  const report = await writeReport(run, record)
  const trained = (adapter?.parameterCount ?? parameterCount(model)).toLocaleString('en-US')
  const speed = Math.round(record.tokensPerSecond).toLocaleString('en-US')
  session.report(
    'done',
    { output, report, seconds: record.seconds, tokensPerSecond: record.tokensPerSecond },
    `Trained ${trained} parameters in ${record.seconds.toFixed(0)} s (${speed} tokens/s)
${full ? 'Model:  ' : 'Adapter:'} ${output}
Report:  ${report}`,
  )
}

/** The flags that were given, in the form of a config file. */
function configOfFlags(flags: Flags): PartialTrainConfig {
  const { model, data, output, evalData: evaluationData, precision } = flags
  return given({
    model,
    data,
    output,
    evaluationData,
    precision,
    objective: given({ name: flags.objective, ...namedValues('--objective-option', flags.objectiveOption ?? []) }),
    adapter: given({
      r: flags.rank,
      lora_alpha: flags.alpha,
      lora_dropout: flags.dropout,
      use_rslora: flags.rslora,
      use_dora: flags.dora,
      target_modules: flags.targetModules === undefined ? undefined : targetModules(flags.targetModules),
    }),
    optimizer: given({ name: flags.optimizer, lr: flags.learningRate, weightDecay: flags.weightDecay }),
    training: given({
      epochs: flags.epochs,
      maxSteps: flags.maxSteps,
      batchSize: flags.batchSize,
      accumulation: flags.accumulation,
      maxLength: flags.maxLength,
      packing: flags.packing,
      full: flags.full,
      schedule: flags.schedule,
      warmupSteps: flags.warmupSteps,
      warmupRatio: flags.warmupRatio,
      clip: flags.clip,
      seed: flags.seed,
      evaluationFraction: flags.evalFraction,
      evaluateEvery: flags.evalEvery,
      checkpointEvery: flags.checkpointEvery,
    }),
  })
}

/** Without the fields that nothing was said about. */
const given = (fields: Readonly<Record<string, unknown>>): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(fields).filter(
      ([, value]) =>
        value !== undefined && !(typeof value === 'object' && value !== null && Object.keys(value).length === 0),
    ),
  )

/** `name=value` texts as fields; values are read as YAML, so that 0.2 is a number and [a, b] a list. */
function namedValues(flag: string, texts: readonly string[]): Record<string, unknown> {
  const fields = texts.map((text) => {
    const [, name, value] = /^(\w+)=(.*)$/s.exec(text) ?? []
    if (name !== undefined) return [name, parse(value!)] as const
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: flag, expected: 'name=value', got: JSON.stringify(text) })
  })
  return Object.fromEntries(fields)
}

/** A list where there are commas or a single plain name; everything else is PEFT's own string form. */
function targetModules(text: string): string | string[] {
  if (/^[\w.-]+(,[\w.-]+)*$/.test(text) && text !== 'all-linear') return text.split(',')
  if (text !== '') return text
  throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: '--target-modules', expected: 'names', got: 'nothing' })
}
