/** What `heddle train` is told by a config file and by flags, which win; and the file that `heddle init` writes. */
import { readFile } from 'node:fs/promises'
import { parse } from 'yaml'
import { z } from 'zod'
import type { Parametrization } from '../adapters/parametrization.js'
import { methodOf } from '../adapters/registry.js'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import type { GradientTransform } from '../optim/gradient_transform.js'
import { optimizerNamed } from '../optim/registry.js'
import { parseTrainOptions, type TrainOptions } from '../train/options.js'
import { checkObjective, type ObjectiveSection } from './train_objective.js'

const schema = z.strictObject({
  model: z.string({ error: 'a model: folder, .gguf file or hub id' }).min(1),
  data: z.string({ error: 'a data file' }).min(1),
  output: z.string({ error: 'an output folder' }).min(1),
  evaluationData: z.string().min(1).optional(),
  precision: z.enum(['f32', 'bf16']).default('f32'),
  adapter: z.looseObject({ method: z.string().default('lora') }).prefault({}),
  objective: z.looseObject({ name: z.string().optional() }).prefault({}),
  optimizer: z.looseObject({ name: z.string().default('adamw') }).prefault({}),
  training: z.record(z.string(), z.unknown()).prefault({}),
})

/** A config file's content, or as much of it as flags say. */
export type PartialTrainConfig = { readonly [Key in keyof z.input<typeof schema>]?: unknown }

/** Everything a run needs, checked. */
export interface TrainConfig {
  readonly model: string
  readonly data: string
  readonly output: string
  readonly evaluationData?: string | undefined
  readonly precision: 'f32' | 'bf16'
  /** Checked; without a name, data and model are to decide. */
  readonly objective: ObjectiveSection
  readonly method: Parametrization
  readonly optimizer: GradientTransform
  readonly training: Omit<TrainOptions, 'data'>
  /** As given, for the report. */
  readonly shown: Readonly<Record<string, string | number | boolean>>
}

/** Options of `train()` that the other sections of the file, or the command itself, decide. */
const decidedElsewhere = [
  'objective',
  'data',
  'evaluationData',
  'adapter',
  'method',
  'optimizer',
  'precision',
  'outputFolder',
  'resume',
  'signal',
  'onDataProgress',
  'onAttachProgress',
  'onWarning',
  'onEvaluation',
]

/** Held out unless the file or a flag says otherwise. */
const defaultEvaluationFraction = 0.05

/**
 * A YAML or JSON file as an object; its fields are checked by {@link trainConfigOf}.
 * @throws ERR_HEDDLE_IO, ERR_HEDDLE_FORMAT with line and column
 */
export async function readTrainConfig(path: string): Promise<PartialTrainConfig> {
  const text = await readFile(path, 'utf8').catch((cause: Error) => {
    throw new HeddleError('ERR_HEDDLE_IO', { place: path, expected: 'a config file', got: cause.message, cause })
  })
  let content: unknown
  try {
    content = parse(text)
  } catch (cause) {
    const got = cause instanceof Error ? cause.message.split('\n')[0]! : String(cause)
    throw new HeddleError('ERR_HEDDLE_FORMAT', { place: path, expected: 'YAML or JSON', got, cause })
  }
  if (typeof content === 'object' && content !== null && !Array.isArray(content)) return content
  throw new HeddleError('ERR_HEDDLE_FORMAT', { place: path, expected: 'fields such as "model"', got: typeof content })
}

/** The fields of `over` in place of those of `base`, section by section. */
export function overlaid(base: PartialTrainConfig, over: PartialTrainConfig): PartialTrainConfig {
  const sections = ['adapter', 'objective', 'optimizer', 'training'] as const
  const merged = Object.fromEntries(
    sections.flatMap((section) => {
      const parts = [base[section], over[section]].filter((part) => part !== undefined)
      return parts.length === 0 ? [] : [[section, parts.every(isObject) ? Object.assign({}, ...parts) : parts.at(-1)]]
    }),
  )
  return { ...base, ...over, ...merged }
}

const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null && !Array.isArray(value)

/**
 * Checks a whole configuration and makes its parts.
 * @param place the file, for messages
 * @throws ERR_HEDDLE_ARGUMENT naming the field, with the nearest known name for an unknown one
 */
export function trainConfigOf(given: PartialTrainConfig, place: string): TrainConfig {
  const { adapter, optimizer, training, ...rest } = parseConfig(place, schema, given)
  const { name, ...optimizerOptions } = optimizer
  checkObjective(rest.objective)
  return {
    ...rest,
    method: methodOf(adapter),
    optimizer: optimizerNamed(name, optimizerOptions),
    training: trainingOf(training, rest.evaluationData !== undefined, place),
    shown: shownFields({
      precision: rest.precision,
      ...adapter,
      ...namedObjective(rest.objective),
      ...optimizer,
      ...training,
    }),
  }
}

function trainingOf(
  training: Readonly<Record<string, unknown>>,
  hasEvaluationData: boolean,
  place: string,
): TrainConfig['training'] {
  const misplaced = Object.keys(training).find((name) => decidedElsewhere.includes(name))
  if (misplaced !== undefined)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: `${place}: training`,
      expected: 'options of the training loop',
      got: `"${misplaced}"`,
      hint: 'Model, data, objective, adapter and optimizer are fields of their own',
    })
  const held = hasEvaluationData ? {} : { evaluationFraction: defaultEvaluationFraction }
  const options = { ...held, ...training } as TrainConfig['training']
  parseTrainOptions({ ...options, data: 'data' })
  return options
}

/** The name that the report shows; the optimizer's is `name`. */
const namedObjective = ({ name, ...options }: ObjectiveSection): Readonly<Record<string, unknown>> =>
  name === undefined ? options : { objective: name, ...options }

/** Plain values, for the table of the report. */
const shownFields = (fields: Readonly<Record<string, unknown>>): TrainConfig['shown'] =>
  Object.fromEntries(
    Object.entries(fields).map(([name, value]) => {
      const isPlain = ['string', 'number', 'boolean'].includes(typeof value)
      return [name, isPlain ? (value as string | number | boolean) : JSON.stringify(value)]
    }),
  )

/** A config file with every common option, at its default. */
export const configTemplate = `# A training run of Heddle: heddle train --config this-file
# Flags of the command win over what stands here.

model: HuggingFaceTB/SmolLM2-135M-Instruct   # folder, .gguf file or hub id
data: data.jsonl                             # .jsonl, .csv, .parquet or .txt
output: adapters/my-adapter                  # gets the PEFT folder, checkpoints, metrics.jsonl and report.html
# evaluationData: held-out.jsonl             # else training.evaluationFraction of the data is held out
precision: f32                               # bf16 halves the memory of the weights and is faster where it is in hardware

# objective:             # what for; by default what the rows of the data are for, where there is no doubt
#   name: causal-lm      # next tokens: of conversations, of prompts with completions, or of texts
#
#   name: dpo            # rows with prompt, chosen and rejected
#   beta: 0.1            # how far from the base model: higher stays closer
#   lossType: sigmoid    # sigmoid, hinge, ipo
#   labelSmoothing: 0
#   precomputeReference: false
#
#   name: orpo           # the same rows, without a reference
#   beta: 0.1
#
#   name: sequence-classification   # rows with text and label; encoders and decoders
#   labels: [ham, spam]  # default: those of the data
#   textColumn: text
#   labelColumn: label
#
#   name: multiple-negatives        # rows with anchor and positive, perhaps negative; encoders
#   temperature: 0.05
#
#   name: cosine-similarity         # rows with sentence1, sentence2 and score; encoders
#   pooling: mean        # mean, cls, max; default: as the encoder's own files say

adapter:                 # fields as in PEFT's LoraConfig
  method: lora
  r: 16                  # rank
  lora_alpha: 32         # scale is lora_alpha / r
  lora_dropout: 0
  use_rslora: false      # scale lora_alpha / √r
  use_dora: false        # learns direction and length of each row apart
  target_modules: all-linear

optimizer:
  name: adamw            # adamw, sgd, lion, adafactor
  lr: 2e-4
  weightDecay: 0.01

training:
  epochs: 1              # or maxSteps
  batchSize: 4
  accumulation: 1        # batches per optimizer step
  maxLength: 256         # most tokens per sequence
  schedule: cosine       # cosine, linear, constant, cosine_with_restarts, polynomial, inverse_sqrt, warmup_stable_decay
  warmupRatio: 0.03
  clip: 1                # largest norm of the gradients
  seed: 0
  evaluationFraction: 0.05
  # evaluateEvery: 50    # steps; default: once per epoch
  # earlyStoppingPatience: 3
  loadBestModelAtEnd: false
  checkpointEvery: 100
  saveTotalLimit: 2
`
