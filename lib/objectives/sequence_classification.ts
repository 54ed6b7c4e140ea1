/** Classification of whole texts: cross-entropy over the labels of a {@link ClassifierNetwork}. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { readExamples } from '../data/examples.js'
import type { RowSource, SkippedRow } from '../data/rows.js'
import type { ColumnNames } from '../data/shapes.js'
import { HeddleError } from '../errors.js'
import { argmax, sum } from '../graph/ops/reduce.js'
import type { ClassifierNetwork } from '../models/sequence_classifier.js'
import { crossEntropy } from './causal_lm_loss.js'
import { type ExampleReading, noExample, openExamples } from './example_data.js'
import type { EvaluationResult, Objective, Scoreboard } from './objective.js'
import { encodedText, type TextBatch, textBatch } from './text_batches.js'

/** One text and its class, by index. */
export interface LabelledText {
  readonly ids: Int32Array
  readonly label: number
}

/** Texts with their labels; -100 for rows of padding. */
export interface ClassificationBatch extends TextBatch {
  readonly labels: Int32Array
}

/** How well one class is told from the others. */
export interface ClassScore {
  /** Share of the texts taken for the class that are of it. */
  readonly precision: number
  /** Share of the class's texts that were taken for it. */
  readonly recall: number
  /** Harmonic mean of both. */
  readonly f1: number
  /** Texts of the class. */
  readonly support: number
}

/** What scoring a classifier gives. */
export interface ClassificationEvaluation extends EvaluationResult {
  /** Mean −log p(label). */
  readonly loss: number
  readonly accuracy: number
  /** Mean of the classes' F1. */
  readonly f1: number
  /** Texts that were scored. */
  readonly examples: number
  readonly perClass: Readonly<Record<string, ClassScore>>
  /** `counts[true class][predicted class]` */
  readonly confusion: { readonly labels: readonly string[]; readonly counts: readonly (readonly number[])[] }
}

/** Options of {@link sequenceClassification}. */
export interface SequenceClassificationOptions {
  /** Column of the text; default: as docs/guides/data.md says, or `text` where `labelColumn` is given. */
  readonly textColumn?: string | undefined
  /** Column of the label, a label's name or its index; default: so, too, or `label` where `textColumn` is given. */
  readonly labelColumn?: string | undefined
}

const schema = z.strictObject({
  textColumn: z.string().min(1).optional(),
  labelColumn: z.string().min(1).optional(),
})

/**
 * Mean −log p(label) over texts, for a model of `loadSequenceClassifier`.
 * @throws ERR_HEDDLE_ARGUMENT on an option that is unknown
 */
export function sequenceClassification(
  options: SequenceClassificationOptions = {},
): Objective<ClassifierNetwork, ClassificationBatch, ClassificationEvaluation> {
  const columns = columnsOf(parseConfig('sequenceClassification', schema, options))
  return {
    name: 'sequence-classification',
    config: {},
    inputs: ['ids', 'mask', 'labels'],
    arrays({ rows, length, ids, mask, labels }) {
      const shape = [rows, length]
      return { ids: { data: ids, shape }, mask: { data: mask, shape }, labels: { data: labels, shape: [rows] } }
    },
    weight: ({ labels }) => labels.filter((label) => label >= 0).length,
    tokens: ({ tokens }) => tokens,
    async loss(network, { ids, mask, labels }, forward) {
      return sum(crossEntropy(await network.logits({ ids: ids!, mask: mask! }, forward), labels!))
    },
    async scores(network, { ids, mask, labels }, forward) {
      const logits = await network.logits({ ids: ids!, mask: mask! }, forward)
      return { loss: sum(crossEntropy(logits, labels!)), predicted: argmax(logits) }
    },
    scoreboard: ({ labels }) => confusionScoreboard(labels),
    open(path, { tokenizer, network, maxLength, ...rest }) {
      const reading: ExampleReading<'classification', LabelledText, ClassificationBatch> = {
        task: 'classification',
        columns,
        maxLength,
        tokens: ({ ids }: LabelledText) => ids.length,
        collate: (examples) => ({
          ...textBatch(
            examples.map((example) => example?.ids),
            maxLength,
          ),
          labels: Int32Array.from(examples, (example) => example?.label ?? -100),
        }),
        async encode({ text, textPair, label: name }) {
          if (textPair !== undefined) return { reason: 'expected one text with a label, got two' }
          const label = labelIndex(name, network.labels)
          if (label === undefined)
            return { reason: `expected one of the labels ${network.labels.join(', ')}, or its index, got "${name}"` }
          return { example: { ids: await encodedText(tokenizer, text, maxLength), label } }
        },
      }
      return openExamples(path, reading, rest)
    },
  }
}

/** Options of {@link labelsIn}. */
export interface LabelsInOptions extends SequenceClassificationOptions {
  readonly signal?: AbortSignal | undefined
}

/** More labels than this are taken for a mistake. */
const mostLabels = 1000

/**
 * The labels of a data file, for `loadSequenceClassifier`: in the order of their numbers if all are numbers, else of
 * their characters, so that the order of the rows does not matter.
 * @throws ERR_HEDDLE_FORMAT when no row has one or more than a thousand are different, and what reading the file throws
 */
export async function labelsIn(source: RowSource, options: LabelsInOptions = {}): Promise<string[]> {
  const { signal, ...rest } = options
  const columns = columnsOf(parseConfig('labelsIn', schema, rest))
  const labels = new Set<string>()
  const skipped: SkippedRow[] = []
  for await (const block of readExamples('classification', source, { columns, signal })) {
    for (const { line, example } of block.examples) {
      labels.add(example.label)
      if (labels.size > mostLabels)
        throw new HeddleError('ERR_HEDDLE_FORMAT', {
          place: `${block.file}:${line}`,
          expected: `at most ${mostLabels} different labels`,
          got: 'one more',
        })
    }
    skipped.push(...block.skipped)
  }
  if (labels.size === 0) throw noExample(source, skipped)
  const numbers = [...labels].every((label) => label.trim() !== '' && Number.isFinite(Number(label)))
  return numbers ? [...labels].sort((a, b) => Number(a) - Number(b)) : [...labels].sort()
}

const columnsOf = ({ textColumn, labelColumn }: SequenceClassificationOptions): ColumnNames | undefined =>
  textColumn === undefined && labelColumn === undefined
    ? undefined
    : { text: textColumn ?? 'text', label: labelColumn ?? 'label' }

/** A label's index, given its name or the index. */
function labelIndex(name: string, labels: readonly string[]): number | undefined {
  const named = labels.indexOf(name)
  const index = named >= 0 ? named : name.trim() === '' ? Number.NaN : Number(name)
  return Number.isInteger(index) && index >= 0 && index < labels.length ? index : undefined
}

function confusionScoreboard(labels: readonly string[]): Scoreboard<ClassificationBatch, ClassificationEvaluation> {
  const counts = labels.map(() => new Array<number>(labels.length).fill(0))
  let total = 0
  return {
    add(batch, outputs) {
      total += outputs.loss![0]!
      for (const [row, label] of batch.labels.entries()) if (label >= 0) counts[label]![outputs.predicted![row]!]! += 1
    },
    result() {
      const rowSums = counts.map((row) => row.reduce((a, b) => a + b, 0))
      const columnSums = labels.map((_, column) => counts.reduce((sum, row) => sum + row[column]!, 0))
      const examples = rowSums.reduce((a, b) => a + b, 0)
      const scores = labels.map((_, i): ClassScore => {
        const right = counts[i]![i]!
        return {
          precision: right / Math.max(1, columnSums[i]!),
          recall: right / Math.max(1, rowSums[i]!),
          f1: (2 * right) / Math.max(1, rowSums[i]! + columnSums[i]!),
          support: rowSums[i]!,
        }
      })
      return {
        loss: total / Math.max(1, examples),
        accuracy: counts.reduce((sum, row, i) => sum + row[i]!, 0) / Math.max(1, examples),
        f1: scores.reduce((sum, { f1 }) => sum + f1, 0) / labels.length,
        examples,
        perClass: Object.fromEntries(labels.map((label, i) => [label, scores[i]!])),
        confusion: { labels, counts: counts.map((row) => [...row]) },
      }
    },
  }
}
