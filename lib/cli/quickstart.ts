/** `heddle quickstart`: the main job on a small example that ships with Heddle, or on the user's own model and data. */
import { isAbsolute, relative } from 'node:path'
import type { Command } from 'commander'
import type { Adapter } from '../adapters/adapter.js'
import { lora } from '../adapters/methods/lora.js'
import { readExamples } from '../data/examples.js'
import type { Model } from '../model.js'
import { causalLm } from '../objectives/causal_lm.js'
import type { Objective } from '../objectives/objective.js'
import { adamw } from '../optim/adamw.js'
import type { ChatMessage } from '../tokenize/tokenizer.js'
import { removeCheckpoints } from '../train/checkpoint.js'
import { defaultLength } from '../train/evaluate.js'
import { type CommonFlags, command, inSession, packageFile, precisionOption, type Session } from './session.js'
import { runTraining, stopAndResume, type TrainingRunOptions, writeReport } from './training_run.js'
import { integerFrom } from './values.js'

const embeddedModel = 'models/heddle-tiny'
const embeddedData = 'examples/data/quickstart.txt'
const embeddedPrompt = 'Queequeg looked at the sea, and'

interface Flags extends CommonFlags {
  readonly model?: string
  readonly data?: string
  readonly out: string
  readonly prompt?: string
  readonly steps?: number
  readonly precision: 'f32' | 'bf16'
  readonly resume?: boolean
}

const learningRate = 2e-3
const batchSize = 4
const method = { r: 16, lora_alpha: 32, target_modules: 'all-linear' } as const

export const quickstartCommand = (): Command =>
  command('quickstart')
    .description(
      'Fine-tune a small model that ships with Heddle on a small text; shows what it was like before and after.',
    )
    .option('-m, --model <source>', 'your own: Hugging Face folder, .gguf file, or hub id')
    .option('-d, --data <file>', 'your own: .jsonl (messages, prompt and completion, or text), .txt or .md')
    .option('-o, --out <folder>', 'gets the adapter and report.html', 'heddle-quickstart')
    .option('--prompt <text>', 'what to ask before and after (default: the beginning of the data)')
    .option('--steps <n>', 'optimizer steps (default: 3 epochs, but at most 200)', integerFrom(1))
    .option('--resume', 'go on from the newest checkpoint in the output folder')
    .addOption(precisionOption())
    .addHelpText(
      'after',
      `
Examples:
  $ heddle quickstart
  $ heddle quickstart --model HuggingFaceTB/SmolLM2-135M-Instruct --data support.jsonl --out adapters/support`,
    )
    .action((flags: Flags) => inSession(flags, stopAndResume, (session) => quickstart(session, flags)))

async function quickstart(session: Session, flags: Flags): Promise<void> {
  const { data: dataFile = packageFile(embeddedData), out } = flags
  const model = await session.loadModel({
    model: flags.model ?? packageFile(embeddedModel),
    precision: flags.precision,
  })
  const maxLength = defaultLength(model)
  const objective = causalLm() as Objective
  const data = await session.openData({ path: dataFile, model, objective, maxLength, evaluationFraction: 0.1 })
  const prompt = flags.prompt ?? (flags.data === undefined ? embeddedPrompt : await beginningOf(dataFile))
  const adapter = await model.attach(lora(method))
  const steps = flags.steps ?? Math.min(200, 3 * data.batchCount(batchSize))
  session.report(
    'start',
    { model: model.source, data: dataFile, steps, adapterParameters: adapter.parameterCount },
    `Teaching ${shortPath(model.source)} the text of ${shortPath(dataFile)} with LoRA: ${steps} steps\n`,
  )
  // A demonstration starts anew; only --resume goes on.
  if (!flags.resume) await removeCheckpoints(out)

  // B starts at zero: a fresh adapter answers as the base model does, without one more program to compile.
  const before = await answer(session, { model, adapter, prompt })
  const run: TrainingRunOptions = {
    model,
    objective,
    adapter,
    data,
    dataName: shortPath(dataFile),
    outputFolder: out,
    options: {
      maxSteps: steps,
      batchSize,
      optimizer: adamw({ lr: learningRate }),
      checkpointEvery: 25,
      resume: flags.resume ?? false,
    },
    config: {
      rank: method.r,
      alpha: method.lora_alpha,
      'target modules': method.target_modules,
      'batch size': batchSize,
      'max length': maxLength,
      'learning rate': learningRate,
      precision: flags.precision,
    },
  }
  const record = await runTraining(session, run)
  const after = await answer(session, { model, adapter, prompt })
  const shown = typeof prompt === 'string' ? prompt : prompt.map(({ content }) => content).join('\n')
  const report = await writeReport(run, record, [{ prompt: shown, before, after }])
  const speed = Math.round(record.tokensPerSecond).toLocaleString('en-US')
  session.report(
    'done',
    { output: out, report, prompt: shown, before, after, seconds: record.seconds },
    `
Prompt   ${shown}
Before   ${before.trim()}
After    ${after.trim()}

Trained in ${record.seconds.toFixed(0)} s at ${speed} tokens/s.
Adapter  ${out} (a PEFT folder)
Report   ${report}`,
  )
}

interface Question {
  readonly model: Model
  readonly adapter: Adapter
  readonly prompt: string | readonly ChatMessage[]
}

async function answer(session: Session, { model, adapter, prompt }: Question): Promise<string> {
  let text = ''
  const options = { adapter, maxTokens: 60, temperature: 0.7, topP: 0.9, seed: 1, signal: session.signal }
  const chat = typeof prompt === 'string' ? { chat: false } : {}
  for await (const piece of model.generate(prompt, { ...options, ...chat })) text += piece
  return text
}

const promptWords = 8

/** The first question of the data, or the first words of a text. */
async function beginningOf(path: string): Promise<string | readonly ChatMessage[]> {
  for await (const { examples } of readExamples('language', path)) {
    const [first] = examples
    if (!first) continue
    const { example } = first
    if ('prompt' in example) return example.prompt
    if ('text' in example) return example.text.trim().split(/\s+/).slice(0, promptWords).join(' ')
    if ('question' in example) return [{ role: 'user', content: example.question }]
    return example.messages.slice(
      0,
      example.messages.findIndex(({ role }) => role === 'assistant'),
    )
  }
  return ''
}

/** A path as short as it can be said from here. */
function shortPath(path: string): string {
  const short = relative(process.cwd(), path)
  return isAbsolute(path) && !short.startsWith('..') ? short : path
}
