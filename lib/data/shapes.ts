/** What the rows of a file are examples of, told by their columns, and the examples themselves. */
import { HeddleError } from '../errors.js'
import type { ChatMessage } from '../tokenize/chat_template.js'
import { conversationOf, messagesOf } from './conversations.js'
import type { Row } from './rows.js'

/** What is learned from rows. */
export type DataTask = 'language' | 'classification' | 'pairs' | 'preference'

/** One example of language: a conversation, a question to answer, a prompt with its completion, or running text. */
export type LanguageExample =
  | { readonly messages: readonly ChatMessage[]; readonly tools?: readonly unknown[] | undefined }
  | { readonly question: string; readonly answer: string; readonly system?: string | undefined }
  | { readonly prompt: string; readonly completion: string }
  | { readonly text: string }

/** A text, or two of them, with the name of their class. */
export interface ClassificationExample {
  readonly text: string
  readonly textPair?: string
  readonly label: string
}

/** Texts that belong together, with one that does not; or two texts with how close they are. */
export type PairExample =
  | { readonly anchor: string; readonly positive: string; readonly negative?: string }
  | { readonly anchor: string; readonly positive: string; readonly score: number }

/** Two continuations of a prompt, of which the first is preferred; all three texts, or all three messages. */
export type PreferenceExample =
  | { readonly prompt: string; readonly chosen: string; readonly rejected: string }
  | {
      readonly prompt: readonly ChatMessage[]
      readonly chosen: readonly ChatMessage[]
      readonly rejected: readonly ChatMessage[]
    }

/** The examples of each task. */
export interface TaskExamples {
  language: LanguageExample
  classification: ClassificationExample
  pairs: PairExample
  preference: PreferenceExample
}

/** Parts of an example by the columns that hold them, such as `{ text: 'body', label: 'is_spam' }`. */
export type ColumnNames = Readonly<Record<string, string>>

/** One way to write an example down. */
interface Shape<E> {
  readonly name: string
  /** Parts with the columns that they are found in. */
  readonly needs: Readonly<Record<string, readonly string[]>>
  readonly takes?: Readonly<Record<string, readonly string[]>>
  /** The example, or the reason why there is none. */
  read(parts: Readonly<Record<string, unknown>>): E | string
}

const instructionShape = (name: string, question: string, answers: readonly string[]): Shape<LanguageExample> => ({
  name,
  needs: { [question]: [question], [answers[0]!]: answers },
  takes: question === 'instruction' ? { input: ['input'], system: ['system'] } : { system: ['system'] },
  read(parts) {
    const texts = strings(parts, [question, answers[0]!])
    const more = optionalStrings(parts, ['input', 'system'])
    if (typeof texts === 'string') return texts
    if (typeof more === 'string') return more
    const [asked, answer] = texts as [string, string]
    return { question: [asked, more.input].filter(Boolean).join('\n\n'), answer, system: more.system }
  },
})

const completionShape = (prompt: string, completions: readonly string[]): Shape<LanguageExample> => ({
  name: `${prompt} and ${completions[0]}`,
  needs: { [prompt]: [prompt], [completions[0]!]: completions },
  read(parts) {
    const given = [prompt, completions[0]!]
    if (given.every((part) => Array.isArray(listOf(parts[part])))) {
      const [before, after] = given.map((part) => messagesOf(listOf(parts[part])))
      if (typeof before === 'string' || typeof after === 'string') return `${[before, after].find(isReason)}`
      return { messages: [...before!.map((message) => ({ ...message, weight: 0 as const })), ...after!] }
    }
    const texts = strings(parts, given)
    return typeof texts === 'string' ? texts : { prompt: texts[0]!, completion: texts[1]! }
  },
})

const chatShape = (name: string, columns: readonly string[]): Shape<LanguageExample> => ({
  name,
  needs: { [columns[0]!]: columns },
  takes: { system: ['system'], tools: ['tools'] },
  read: (parts) => conversationOf(listOf(parts[columns[0]!]), { system: parts.system, tools: listOf(parts.tools) }),
})

const languageShapes: readonly Shape<LanguageExample>[] = [
  chatShape('OpenAI messages', ['messages']),
  chatShape('ShareGPT', ['conversations', 'conversation']),
  instructionShape('Alpaca', 'instruction', ['output', 'response']),
  completionShape('prompt', ['completion', 'response']),
  instructionShape('question and answer', 'question', ['answer']),
  completionShape('input', ['output']),
  { name: 'plain text', needs: { text: ['text', 'content'] }, read: (parts) => textOf(parts) },
]

function textOf(parts: Readonly<Record<string, unknown>>): LanguageExample | string {
  const texts = strings(parts, ['text'])
  return typeof texts === 'string' ? texts : { text: texts[0]! }
}

const classificationShape = (text: readonly string[], pair?: readonly string[]): Shape<ClassificationExample> => ({
  name: pair ? 'pairs of texts with a label' : 'text with a label',
  needs: { text, ...(pair ? { text_pair: pair } : {}), label: ['label', 'class'] },
  read(parts) {
    const texts = strings(parts, pair ? ['text', 'text_pair'] : ['text'])
    if (typeof texts === 'string') return texts
    const { label } = parts
    if (!['string', 'number', 'boolean'].includes(typeof label) || label === '')
      return `"label" is not a text, a number or a boolean, but ${shown(label)}`
    return { text: texts[0]!, ...(pair ? { textPair: texts[1]! } : {}), label: String(label) }
  },
})

const classificationShapes: readonly Shape<ClassificationExample>[] = [
  classificationShape(['text'], ['text_pair']),
  classificationShape(['premise'], ['hypothesis']),
  classificationShape(['sentence1'], ['sentence2']),
  classificationShape(['text', 'sentence', 'content']),
]

const pairShapes: readonly Shape<PairExample>[] = [
  {
    name: 'anchor and positive',
    needs: { anchor: ['anchor', 'query', 'question'], positive: ['positive', 'answer'] },
    takes: { negative: ['negative'] },
    read(parts) {
      const names = parts.negative === undefined ? ['anchor', 'positive'] : ['anchor', 'positive', 'negative']
      const texts = strings(parts, names)
      if (typeof texts === 'string') return texts
      const [anchor, positive, negative] = texts as [string, string, string?]
      return { anchor, positive, ...(negative === undefined ? {} : { negative }) }
    },
  },
  {
    name: 'two sentences with a score',
    needs: { sentence1: ['sentence1'], sentence2: ['sentence2'], score: ['score', 'similarity', 'label'] },
    read(parts) {
      const texts = strings(parts, ['sentence1', 'sentence2'])
      if (typeof texts === 'string') return texts
      const score = typeof parts.score === 'string' && parts.score.trim() !== '' ? Number(parts.score) : parts.score
      if (typeof score !== 'number' || !Number.isFinite(score))
        return `"score" is not a number, but ${shown(parts.score)}`
      return { anchor: texts[0]!, positive: texts[1]!, score }
    },
  },
]

const preferenceShapes: readonly Shape<PreferenceExample>[] = [
  {
    name: 'preferences',
    needs: { chosen: ['chosen'], rejected: ['rejected'] },
    takes: { prompt: ['prompt', 'question'] },
    read: preferenceOf,
  },
  {
    name: 'OpenAI preferences',
    needs: { input: ['input'], chosen: ['preferred_output'], rejected: ['non_preferred_output'] },
    read: openAiPreferenceOf,
  },
]

function openAiPreferenceOf({ input, ...answers }: Readonly<Record<string, unknown>>): PreferenceExample | string {
  const { messages, tools } = input as { readonly messages?: unknown; readonly tools?: unknown }
  if (Array.isArray(tools) && tools.length > 0) return '"input.tools" is not known to preferences'
  const [prompt, chosen, rejected] = [messages, answers.chosen, answers.rejected].map(messagesOf)
  if (typeof prompt === 'string') return `"input.messages": ${prompt}`
  if (typeof chosen === 'string') return `"preferred_output": ${chosen}`
  if (typeof rejected === 'string') return `"non_preferred_output": ${rejected}`
  return { prompt: prompt!, chosen: chosen!, rejected: rejected! }
}

function preferenceOf(parts: Readonly<Record<string, unknown>>): PreferenceExample | string {
  const texts = strings(parts, ['prompt', 'chosen', 'rejected'])
  const [good, bad] = [messagesOf(listOf(parts.chosen)), messagesOf(listOf(parts.rejected))]
  if (typeof good === 'string' || typeof bad === 'string') {
    if (typeof texts === 'string')
      return `"chosen" and "rejected" are not two texts with a "prompt", nor two lists of messages`
    const [prompt, chosen, rejected] = texts as [string, string, string]
    return { prompt, chosen, rejected }
  }
  const before = promptMessages(listOf(parts.prompt))
  if (typeof before === 'string') return `"prompt" is neither a text nor a list of messages: ${before}`
  // Both lists may begin with the prompt, which then need not be given.
  const same = (index: number): boolean => JSON.stringify(good[index]) === JSON.stringify(bad[index])
  let shared = 0
  while (shared < Math.min(good.length, bad.length) - 1 && same(shared)) shared += 1
  const begin = good.slice(0, shared)
  const last = before.at(-1)
  const isWithin =
    last === undefined || begin.some(({ role, content }) => role === last.role && content === last.content)
  const prompt = isWithin ? begin : [...before, ...begin]
  if (prompt.length === 0) return 'no "prompt", and "chosen" and "rejected" do not begin with the same messages'
  return { prompt, chosen: good.slice(shared), rejected: bad.slice(shared) }
}

/** A prompt before answers that are messages: messages, the user's text, or nothing. */
function promptMessages(prompt: unknown): readonly ChatMessage[] | string {
  if (prompt === undefined) return []
  return typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : messagesOf(prompt)
}

const shapes: { readonly [Task in DataTask]: readonly Shape<TaskExamples[Task]>[] } = {
  language: languageShapes,
  classification: classificationShapes,
  pairs: pairShapes,
  preference: preferenceShapes,
}

/** All tasks. */
export const dataTasks = Object.keys(shapes) as readonly DataTask[]

/** Every column that a task looks for, to leave the others unread. */
export function knownColumns(task: DataTask, columns?: ColumnNames): string[] {
  if (columns) return Object.values(columns)
  const parts = shapes[task].flatMap(({ needs, takes = {} }) => [...Object.values(needs), ...Object.values(takes)])
  return [...new Set(parts.flat())]
}

/** Reads the examples of one file after another. The first row of a file decides on the shape of all of them. */
export class ExampleReader<Task extends DataTask> {
  readonly #task: Task
  readonly #shapes: readonly Shape<TaskExamples[Task]>[]
  readonly #columns: ColumnNames | undefined
  readonly #found: { readonly file: string; readonly what: string }[] = []
  #file: string | undefined
  #shape: { readonly shape: Shape<TaskExamples[Task]>; readonly line: number } | undefined

  /** @throws ERR_HEDDLE_ARGUMENT when the named columns make no example of this task */
  constructor(task: Task, columns?: ColumnNames) {
    this.#task = task
    this.#columns = columns
    this.#shapes = columns ? [namedShape(task, columns)] : shapes[task]
  }

  /** The example of a row, or the reason why it is none. */
  read(file: string, { line, value }: Row): TaskExamples[Task] | string {
    if (file !== this.#file) [this.#file, this.#shape] = [file, undefined]
    const match = this.#shapes.map((shape) => partsOf(shape, value)).find((found) => found !== undefined)
    if (!match) return this.#misfit(value)
    const { shape, parts } = match
    if (this.#shape && this.#shape.shape !== shape)
      return `${shape.name}, while the rows of this file are ${this.#shape.shape.name} since line ${this.#shape.line}`
    const example = shape.read(parts)
    if (typeof example !== 'string' && !this.#shape) {
      this.#shape = { shape, line }
      this.#found.push({ file, what: `${shape.name} (${match.columns.join(', ')})` })
    }
    return example
  }

  /** What the files' rows are, such as `support.jsonl: OpenAI messages (messages)`. */
  get description(): string {
    const kinds = [...new Set(this.#found.map(({ what }) => what))]
    const lines = kinds.map((kind) => {
      const [first, ...more] = this.#found.filter(({ what }) => what === kind)
      return `${first!.file}${more.length > 0 ? ` and ${more.length} more` : ''}: ${kind}`
    })
    return lines.join('; ')
  }

  #misfit(value: Row['value']): string {
    const keys = Object.keys(value).slice(0, 8).join(', ') || 'none'
    const wanted = this.#columns
      ? `the columns ${Object.values(this.#columns).join(', ')}`
      : `the columns of ${this.#shapes.map(columnText).join(', or of ')}`
    return `expected ${wanted} for ${this.#task}; got the keys ${keys}`
  }
}

const columnText = ({ name, needs }: Shape<unknown>): string =>
  `${name} (${Object.values(needs)
    .map(([first]) => first)
    .join(', ')})`

interface Match<E> {
  readonly shape: Shape<E>
  readonly parts: Readonly<Record<string, unknown>>
  /** The columns that were found. */
  readonly columns: readonly string[]
}

function partsOf<E>(shape: Shape<E>, value: Row['value']): Match<E> | undefined {
  const parts: Record<string, unknown> = {}
  const columns: string[] = []
  const find = (part: string, names: readonly string[]): boolean => {
    const name = names.find((each) => value[each] !== undefined && value[each] !== null)
    if (name === undefined) return false
    parts[part] = value[name]
    columns.push(name)
    return true
  }
  if (!Object.entries(shape.needs).every(([part, names]) => find(part, names))) return undefined
  for (const [part, names] of Object.entries(shape.takes ?? {})) find(part, names)
  return { shape, parts, columns }
}

/** The shape whose parts were named, looking into the named columns only. */
function namedShape<Task extends DataTask>(task: Task, columns: ColumnNames): Shape<TaskExamples[Task]> {
  const named = Object.keys(columns)
  const shape = shapes[task].find(({ needs, takes = {} }) => {
    const known = [...Object.keys(needs), ...Object.keys(takes)]
    return Object.keys(needs).every((part) => named.includes(part)) && named.every((part) => known.includes(part))
  })
  if (!shape)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'columns',
      expected: `names for ${shapes[task].map((each) => Object.keys(each.needs).join(' + ')).join(', or ')}`,
      got: named.join(' + ') || 'none',
    })
  const renamed = (parts: Shape<unknown>['needs'] = {}): Record<string, string[]> =>
    Object.fromEntries(Object.keys(parts).flatMap((part) => (columns[part] ? [[part, [columns[part]]]] : [])))
  return { ...shape, needs: renamed(shape.needs), takes: renamed(shape.takes) }
}

/** Tables hold lists as JSON text. */
function listOf(value: unknown): unknown {
  if (typeof value !== 'string' || !value.trimStart().startsWith('[')) return value
  try {
    const list: unknown = JSON.parse(value)
    return Array.isArray(list) ? list : value
  } catch {
    return value
  }
}

const isReason = (value: unknown): value is string => typeof value === 'string'

function strings(parts: Readonly<Record<string, unknown>>, names: readonly string[]): readonly string[] | string {
  const wrong = names.find((name) => typeof parts[name] !== 'string')
  return wrong === undefined ? names.map((name) => parts[name] as string) : notText(wrong, parts[wrong])
}

function optionalStrings(
  parts: Readonly<Record<string, unknown>>,
  names: readonly string[],
): Readonly<Record<string, string | undefined>> | string {
  const given = names.filter((name) => parts[name] !== undefined)
  const found = strings(parts, given)
  return typeof found === 'string' ? found : Object.fromEntries(given.map((name, index) => [name, found[index]]))
}

const notText = (name: string, value: unknown): string => `"${name}" is not a text, but ${shown(value)}`

const shown = (value: unknown): string =>
  Array.isArray(value) ? 'a list' : typeof value === 'object' ? 'an object' : `${JSON.stringify(value)}`
