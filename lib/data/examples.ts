/** The examples of a task, block by block, from rows of any kind. */
import { openRows, type RowOptions, type RowSource, type SkippedRow } from './rows.js'
import { type ColumnNames, type DataTask, dataTasks, ExampleReader, knownColumns, type TaskExamples } from './shapes.js'

/** Options of {@link readExamples}. */
export interface ExampleOptions extends Omit<RowOptions, 'columns'> {
  /** Parts of an example by the columns that hold them, such as `{ text: 'body', label: 'is_spam' }`. Default: by name. */
  readonly columns?: ColumnNames | undefined
}

/** Examples of one file. */
export interface ExampleBlock<Task extends DataTask> {
  readonly examples: readonly { readonly line: number; readonly example: TaskExamples[Task] }[]
  readonly file: string
  /** Rows that could not be read, or are no example. */
  readonly skipped: readonly SkippedRow[]
  /** Share of the source's bytes that has been read, 0 to 1. */
  readonly progress: number
  /** What the rows are so far, such as `mail.csv: text with a label (text, label)`. */
  readonly description: string
}

/**
 * Reads the examples of a task. Which columns hold them is told by their names; all rows of a file are of one shape,
 * and others are skipped.
 * @throws ERR_HEDDLE_ARGUMENT when the named columns make no example, and what {@link openRows} throws
 */
export async function* readExamples<Task extends DataTask>(
  task: Task,
  source: RowSource,
  { columns, ...options }: ExampleOptions = {},
): AsyncGenerator<ExampleBlock<Task>> {
  const reader = new ExampleReader(task, columns)
  for await (const block of openRows(source, { ...options, columns: knownColumns(task, columns) })) {
    const { file, progress } = block
    const skipped = [...block.skipped]
    const examples = block.rows.flatMap((row) => {
      const example = reader.read(file, row)
      if (typeof example !== 'string') return [{ line: row.line, example }]
      skipped.push({ file, line: row.line, reason: example })
      return []
    })
    yield { file, progress, examples, skipped, description: reader.description }
  }
}

/** What the rows of a source are, told by its first usable one. */
export interface RecognisedRows {
  /** That row as an example of each task that can read it. */
  readonly examples: { readonly [Task in DataTask]?: TaskExamples[Task] }
  /** The same in words, such as `pairs.jsonl: preferences (chosen, rejected, prompt)`, by task. */
  readonly descriptions: { readonly [Task in DataTask]?: string }
}

/** Rows among which one that is an example of something is looked for. */
const rowsTried = 100

/** Looks at the first rows of a source. Nothing is found where none of them is an example. @throws as {@link openRows} */
export async function recogniseRows(source: RowSource, signal?: AbortSignal): Promise<RecognisedRows> {
  for await (const { file, rows } of openRows(source, { maxRows: rowsTried, signal }))
    for (const row of rows) {
      const examples: Partial<Record<DataTask, unknown>> = {}
      const descriptions: Partial<Record<DataTask, string>> = {}
      for (const task of dataTasks) {
        const reader = new ExampleReader(task)
        const example = reader.read(file, row)
        if (typeof example === 'string') continue
        examples[task] = example
        descriptions[task] = reader.description
      }
      if (Object.keys(examples).length > 0) return { examples, descriptions } as RecognisedRows
    }
  return { examples: {}, descriptions: {} }
}
