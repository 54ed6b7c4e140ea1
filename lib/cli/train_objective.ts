/** What `heddle train` trains for: the objective that was named or that the rows are for, and the model it takes. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { type RecognisedRows, recogniseRows } from '../data/examples.js'
import { loadEncoder } from '../encoder_model.js'
import { HeddleError } from '../errors.js'
import { type Checkpoint, openCheckpoint } from '../formats/checkpoint.js'
import type { HubOptions } from '../formats/hub.js'
import { loadModel } from '../model.js'
import { encoders } from '../models/registry.js'
import type { Objective } from '../objectives/objective.js'
import {
  type BaseNetwork,
  type ObjectiveOptions,
  type ObjectiveType,
  objectivesFor,
  objectiveType,
  objectiveTypes,
} from '../objectives/registry.js'
import { labelsIn } from '../objectives/sequence_classification.js'
import { loadSequenceClassifier, storedLabels } from '../sequence_classifier.js'
import type { Trainable } from '../train/trainable.js'
import type { Session } from './session.js'
import type { TrainConfig } from './train_config.js'

/** A model that can be trained, written and let go. */
export interface TrainableModel extends Trainable {
  save(folder: string): Promise<void>
  dispose(): Promise<void>
}

/** The section `objective` of a config. */
export interface ObjectiveSection extends ObjectiveOptions {
  readonly name?: string | undefined
}

/** A model with what it is trained for. */
export interface TrainingTask {
  readonly model: TrainableModel
  readonly objective: Objective
  /** With everything that was found out, so that a resumed run need not look again. */
  readonly section: ObjectiveSection
}

const labels = z.array(z.string().min(1)).min(2, { error: 'at least two labels' }).exactOptional()
const labelsSchema = z.looseObject({ labels })
const columnsSchema = z.looseObject({ textColumn: z.string().optional(), labelColumn: z.string().optional() })

/**
 * Checks the section as far as that is possible without model and data.
 * @throws ERR_HEDDLE_ARGUMENT for a name or an option that is not known, with the nearest one
 */
export function checkObjective({ name, ...options }: ObjectiveSection): void {
  if (name !== undefined) objectiveOf(objectiveType(name), options)
}

/** Loads the model that the objective takes. @throws ERR_HEDDLE_ARGUMENT when no objective can be chosen */
export async function trainingTask(session: Session, config: TrainConfig): Promise<TrainingTask> {
  const { name, ...options } = config.objective
  const modelConfig = once(() => configOf(session, config.model))
  const type = name === undefined ? await chosenFor(session, config, modelConfig) : objectiveType(name)
  const isClassifier = type.loader === 'loadSequenceClassifier'
  const section = isClassifier ? await withLabels(session, config, options, modelConfig) : options
  const loaded = await session.fetched(config.model, (hub) => loaders[type.loader](config, section, hub))
  const { packing } = config.training
  const own = { ...loaded.defaults, ...section, ...(packing === undefined ? {} : { packing }) }
  return {
    model: session.keep(loaded.model),
    objective: objectiveOf(type, own),
    section: { name: type.name, ...section },
  }
}

interface Loaded {
  readonly model: TrainableModel
  /** Options of the objective that the model's own files say. */
  readonly defaults?: ObjectiveOptions
}

type Loader = (config: TrainConfig, section: ObjectiveOptions, hub: HubOptions) => Promise<Loaded>

const loaders: Readonly<Record<ObjectiveType['loader'], Loader>> = {
  loadModel: async ({ model, precision }, _, hub) => ({ model: await loadModel(model, { ...hub, precision }) }),
  async loadEncoder({ model, precision }, _, hub) {
    const encoder = await loadEncoder(model, { ...hub, precision })
    return { model: encoder, defaults: { pooling: encoder.settings.pooling } }
  },
  async loadSequenceClassifier({ model, precision, training }, { labels }, hub) {
    const options = { ...hub, precision, seed: training.seed ?? 0, labels: labels as readonly string[] }
    return { model: await loadSequenceClassifier(model, options) }
  },
}

/** @throws ERR_HEDDLE_ARGUMENT on an option that the objective does not have */
function objectiveOf(type: ObjectiveType, options: ObjectiveOptions): Objective {
  const { packing, ...others } = options
  if (packing !== undefined && type.name !== 'causal-lm')
    throw misuse('training.packing', 'next-token prediction (causal-lm)', `the objective ${type.name}`)
  if (type.loader !== 'loadSequenceClassifier') return type.create(options)
  const { labels: _, ...own } = parseConfig('objective', labelsSchema, others)
  return type.create(own)
}

/** The objective that rows and model leave no doubt about; next tokens where the rows are text to read, too. */
async function chosenFor(
  session: Session,
  { data }: TrainConfig,
  modelConfig: () => Promise<Checkpoint['config']>,
): Promise<ObjectiveType> {
  const rows = await recogniseRows(data, session.signal)
  const base = baseOf(await modelConfig())
  const able = objectiveTypes.filter(({ bases }) => bases.includes(base))
  const fitting = objectivesFor(rows)
  const [first, ...others] = fitting.filter((type) => able.includes(type))
  // Rows that are nothing are reported line by line by the objective that reads most kinds of them.
  if (fitting.length === 0) return able[0]!
  if (!first || (others.length > 0 && first.name !== 'causal-lm')) throw undecided(rows, fitting, able)
  const more = others.length > 0 ? `; --objective ${others.map(({ name }) => name).join(' or ')} is for them, too` : ''
  if (first.name !== 'causal-lm' || more) session.note(`Objective: ${first.name}, for ${described(rows, first)}${more}`)
  return first
}

const baseOf = ({ model_type: modelType }: Checkpoint['config']): BaseNetwork =>
  encoders.some((each) => each.modelType === modelType) ? 'encoder' : 'decoder'

/** The model's files are opened for it when it is first asked for. */
function once<T>(find: () => Promise<T>): () => Promise<T> {
  let found: Promise<T> | undefined
  return () => {
    found ??= find()
    return found
  }
}

const configOf = (session: Session, model: string): Promise<Checkpoint['config']> =>
  session.fetched(model, async (hub) => {
    const checkpoint = await openCheckpoint(model, hub)
    checkpoint.close()
    return checkpoint.config
  })

function undecided(
  rows: RecognisedRows,
  fitting: readonly ObjectiveType[],
  able: readonly ObjectiveType[],
): HeddleError {
  const possible = fitting.filter((type) => able.includes(type))
  const names = (types: readonly ObjectiveType[]): string => types.map(({ name }) => name).join(', ')
  if (possible.length > 0)
    return misuse(
      'objective',
      `one of ${names(possible)} for ${described(rows, possible[0]!)}`,
      'none',
      `Choose with --objective ${possible[0]!.name}, or in a config file with objective: { name: ${possible[0]!.name} }`,
    )
  return misuse(
    'data',
    `rows for ${names(able)}, which this model can be trained for`,
    `${described(rows, fitting[0]!)}, which are for ${names(fitting)}`,
  )
}

/** What the rows are to an objective, in words. */
const described = ({ descriptions }: RecognisedRows, { task }: ObjectiveType): string => descriptions[task]!

/** The classes: as named, else a classifier's own where they are those of the data, else the data's. */
async function withLabels(
  session: Session,
  config: TrainConfig,
  options: ObjectiveOptions,
  modelConfig: () => Promise<Checkpoint['config']>,
): Promise<ObjectiveOptions> {
  if (options.labels !== undefined) return options
  const { textColumn, labelColumn } = parseConfig('objective', columnsSchema, options)
  const found = await labelsIn(config.data, { textColumn, labelColumn, signal: session.signal })
  const stored = storedLabels(await modelConfig())
  const labels = stored && found.every((label) => stored.includes(label)) ? stored : found
  session.note(`Labels: ${labels.join(', ')}`)
  return { ...options, labels }
}

const misuse = (place: string, expected: string, got: string, hint?: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place, expected, got, ...(hint === undefined ? {} : { hint }) })
