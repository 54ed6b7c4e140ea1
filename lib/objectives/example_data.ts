/** Examples of any task in memory, made from the rows of data files, and their batches in an order set by the seed. */
import { readExamples } from '../data/examples.js'
import type { RowSource, SkippedRow } from '../data/rows.js'
import type { ColumnNames, DataTask, TaskExamples } from '../data/shapes.js'
import { permutation } from '../data/shuffle.js'
import { HeddleError } from '../errors.js'
import type { BatchOrder, OpenOptions, TrainingData } from './objective.js'

/** How examples of one kind are counted and become batches. */
export interface ExampleKind<T, B> {
  readonly maxLength: number
  /** Tokens of an example. */
  tokens(example: T): number
  /** A batch of these examples; an absent one fills the last batch of an epoch up and must weigh nothing. */
  collate(examples: readonly (T | undefined)[]): B
}

/** What an objective makes of an example that was read: tokens, or why they are none. */
export type Encoded<T> = { readonly example: T } | { readonly reason: string }

/** How rows become examples of one kind: which are looked for, and what an objective makes of them. */
export interface ExampleReading<Task extends DataTask, T, B> extends ExampleKind<T, B> {
  readonly task: Task
  /** Parts of an example by the columns that hold them; default: by name, as docs/guides/data.md says. */
  readonly columns?: ColumnNames | undefined
  /** What the objective makes of an example: tokens, or why they are none. */
  encode(example: TaskExamples[Task]): Promise<Encoded<T>>
}

/** What else is known of {@link ExampleData}. */
export interface ExampleParts<T, B> {
  readonly skipped?: readonly SkippedRow[]
  readonly evaluation?: ExampleData<T, B> | undefined
  /** What the rows are, as {@link readExamples} says. */
  readonly rows?: string | undefined
}

/** Examples to train or evaluate on. */
export class ExampleData<T, B> implements TrainingData<B> {
  readonly examples: readonly T[]
  /** Rows of the file that could not be used. */
  readonly skipped: readonly SkippedRow[]
  readonly evaluation: ExampleData<T, B> | undefined
  readonly maxLength: number
  readonly #kind: ExampleKind<T, B>
  readonly #rows: string | undefined

  constructor(examples: readonly T[], kind: ExampleKind<T, B>, parts: ExampleParts<T, B> = {}) {
    this.examples = examples
    this.#kind = kind
    this.maxLength = kind.maxLength
    this.skipped = parts.skipped ?? []
    this.evaluation = parts.evaluation
    this.#rows = parts.rows
  }

  /** What the rows are, such as `mails.csv: text with a label (text, label); 16 examples, 4 held out`. */
  get description(): string {
    const { evaluation, skipped } = this
    const parts = [plural(this.size + (evaluation?.size ?? 0), 'example')]
    if (evaluation) parts.push(`${evaluation.size.toLocaleString('en-US')} held out`)
    if (skipped.length > 0) parts.push(`${plural(skipped.length, 'row')} skipped`)
    return `${this.#rows === undefined ? '' : `${this.#rows}; `}${parts.join(', ')}`
  }

  get size(): number {
    return this.examples.length
  }

  get tokens(): number {
    return this.examples.reduce((total, example) => total + this.#kind.tokens(example), 0)
  }

  batchCount(batchSize: number): number {
    return Math.ceil(this.size / batchSize)
  }

  async *batches({ batchSize, shuffle = true, seed = 0, epoch = 0, start = 0 }: BatchOrder): AsyncGenerator<B> {
    const order = shuffle ? await permutation(this.size, seed, epoch) : undefined
    const at = (position: number): T | undefined => this.examples[order ? order[position]! : position]
    for (let index = start; index < this.batchCount(batchSize); index += 1)
      yield this.#kind.collate(Array.from({ length: batchSize }, (_, row) => at(index * batchSize + row)))
  }

  /** Some of the examples set aside as {@link evaluation}, chosen by the seed; at least one stays. */
  async split(fraction: number, seed: number): Promise<ExampleData<T, B>> {
    const count = fraction === 0 ? 0 : Math.min(this.size - 1, Math.ceil(this.size * fraction))
    if (count === 0) return this
    const chosen = new Set((await permutation(this.size, seed, splitStream)).subarray(0, count))
    const part = (aside: boolean): T[] => this.examples.filter((_, index) => chosen.has(index) === aside)
    const evaluation = new ExampleData(part(true), this.#kind)
    return new ExampleData(part(false), this.#kind, { skipped: this.skipped, evaluation, rows: this.#rows })
  }
}

/** An epoch number that no training reaches, for the order that decides what is set aside. */
const splitStream = 0xffffffff

/**
 * Reads a source's rows into examples; those that are none are listed in `skipped`.
 * @throws ERR_HEDDLE_FORMAT when no row is an example, with the first reason, and what {@link readExamples} throws
 */
export async function openExamples<Task extends DataTask, T, B>(
  source: RowSource,
  reading: ExampleReading<Task, T, B>,
  options: Pick<OpenOptions, 'evaluationFraction' | 'seed' | 'signal' | 'onProgress'>,
): Promise<ExampleData<T, B>> {
  const { task, columns } = reading
  const { signal } = options
  const examples: T[] = []
  const skipped: SkippedRow[] = []
  let rows = ''
  for await (const block of readExamples(task, source, { columns, signal })) {
    skipped.push(...block.skipped)
    // The rows of a block go to the tokenizer's worker together.
    const encoded = await Promise.all(block.examples.map(({ example }) => reading.encode(example)))
    for (const [index, each] of encoded.entries())
      if ('example' in each) examples.push(each.example)
      else skipped.push({ file: block.file, line: block.examples[index]!.line, reason: each.reason })
    rows = block.description
    options.onProgress?.(block.progress)
  }
  if (examples.length === 0) throw noExample(source, skipped)
  return new ExampleData(examples, reading, { skipped, rows }).split(options.evaluationFraction, options.seed)
}

const plural = (count: number, one: string): string =>
  `${count.toLocaleString('en-US')} ${one}${count === 1 ? '' : 's'}`

/** What a source without any example is refused with. */
export function noExample(source: RowSource, skipped: readonly SkippedRow[]): HeddleError {
  const [first] = skipped
  const name = typeof source === 'string' ? source : 'the rows'
  return new HeddleError('ERR_HEDDLE_FORMAT', {
    place: first ? `${first.file}:${first.line}` : name,
    expected: 'at least one example',
    got: first ? `${skipped.length} unusable rows, the first because: ${first.reason}` : 'no rows',
  })
}
