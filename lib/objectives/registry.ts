/** The objectives that config files can name, and which of them rows are for. A new one is one file and one entry here. */
import { z } from 'zod'
import { parseConfig, unknownName } from '../config.js'
import type { RecognisedRows } from '../data/examples.js'
import type { DataTask, TaskExamples } from '../data/shapes.js'
import { causalLm } from './causal_lm.js'
import { cosineSimilarity } from './cosine_similarity.js'
import { dpo } from './dpo.js'
import { multipleNegatives } from './multiple_negatives.js'
import type { Objective } from './objective.js'
import { orpo } from './orpo.js'
import { sequenceClassification } from './sequence_classification.js'

/** Options of an objective, before they are checked. */
export type ObjectiveOptions = Readonly<Record<string, unknown>>

/** What a checkpoint is, whatever is put on it. */
export type BaseNetwork = 'decoder' | 'encoder'

/** One objective by name. */
export interface ObjectiveType {
  readonly name: string
  /** What its rows are examples of. */
  readonly task: DataTask
  /** Checkpoints that it trains. */
  readonly bases: readonly BaseNetwork[]
  /** What loads its model. */
  readonly loader: 'loadModel' | 'loadSequenceClassifier' | 'loadEncoder'
  /** @throws ERR_HEDDLE_ARGUMENT for an option that is unknown, with the nearest one, or out of range */
  create(options: ObjectiveOptions): Objective
  /** Whether it learns from this example of its task. */
  reads(example: TaskExamples[DataTask]): boolean
}

const causalLmSchema = z.strictObject({
  accuracy: z.boolean().exactOptional(),
  packing: z.boolean().exactOptional(),
  columns: z.record(z.string(), z.string()).exactOptional(),
})

/** Registered objectives; of those that a file's rows are for, the first counts where it is for running text. */
export const objectiveTypes: readonly ObjectiveType[] = [
  {
    name: 'causal-lm',
    task: 'language',
    bases: ['decoder'],
    loader: 'loadModel',
    create: (options) => causalLm(parseConfig('causalLm', causalLmSchema, options)),
    reads: () => true,
  },
  { name: 'dpo', task: 'preference', bases: ['decoder'], loader: 'loadModel', create: dpo, reads: () => true },
  { name: 'orpo', task: 'preference', bases: ['decoder'], loader: 'loadModel', create: orpo, reads: () => true },
  {
    name: 'sequence-classification',
    task: 'classification',
    bases: ['encoder', 'decoder'],
    loader: 'loadSequenceClassifier',
    create: sequenceClassification,
    reads: (example) => !('textPair' in example),
  },
  {
    name: 'multiple-negatives',
    task: 'pairs',
    bases: ['encoder'],
    loader: 'loadEncoder',
    create: multipleNegatives,
    reads: (example) => !('score' in example),
  },
  {
    name: 'cosine-similarity',
    task: 'pairs',
    bases: ['encoder'],
    loader: 'loadEncoder',
    create: cosineSimilarity,
    reads: (example) => 'score' in example,
  },
]

/** Names of the registered objectives. */
export const objectiveNames: readonly string[] = objectiveTypes.map(({ name }) => name)

/** @throws ERR_HEDDLE_ARGUMENT for a name that is not known, with the nearest one */
export function objectiveType(name: string): ObjectiveType {
  const type = objectiveTypes.find((each) => each.name === name)
  if (type) return type
  throw unknownName('objective.name', name, objectiveNames)
}

/** The objectives that can learn from rows. */
export const objectivesFor = ({ examples }: RecognisedRows): ObjectiveType[] =>
  objectiveTypes.filter(({ task, reads }) => {
    const example = examples[task]
    return example !== undefined && reads(example)
  })
