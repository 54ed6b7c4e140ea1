import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { Dataset } from '../lib/data/dataset.js'
import { type ExampleOptions, readExamples } from '../lib/data/examples.js'
import type { DataTask, TaskExamples } from '../lib/data/shapes.js'
import type { HeddleError } from '../lib/errors.js'
import { ChatTemplate } from '../lib/tokenize/chat_template.js'
import { Tokenizer } from '../lib/tokenize/tokenizer.js'
import { goldenJson } from './golden.js'
import { fetchModel } from './models/fetch.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyModelFolder } from './tiny_model.js'

const file = (name: string, content: string): string => {
  const path = join(temporaryFolder(), name)
  writeFileSync(path, content)
  return path
}

type Rows = readonly Record<string, unknown>[]

async function read<Task extends DataTask>(task: Task, source: Rows | string, options: ExampleOptions = {}) {
  const examples: TaskExamples[Task][] = []
  const skipped: (readonly [number, string])[] = []
  let kind = ''
  for await (const block of readExamples(task, source, options)) {
    examples.push(...block.examples.map(({ example }) => example))
    skipped.push(...block.skipped.map(({ line, reason }) => [line, reason] as const))
    kind = block.description.replace(/^.*?: /, '')
  }
  return { examples, skipped, kind }
}

const asked = { role: 'user', content: 'Warp?' }
const answered = { role: 'assistant', content: 'Lengthwise.' }

test('OpenAI messages', async (t) => {
  const { examples, kind } = await read('language', [{ messages: [asked, answered] }])
  t.deepEqual(examples, [{ messages: [asked, answered] }])
  t.is(kind, 'OpenAI messages (messages)')
})

test('ShareGPT conversations become messages, with the system text first', async (t) => {
  const conversations = [
    { from: 'human', value: 'Warp?' },
    { from: 'gpt', value: 'Lengthwise.' },
  ]
  const { examples, kind } = await read('language', [{ conversations, system: 'Weave.' }])
  t.deepEqual(examples, [{ messages: [{ role: 'system', content: 'Weave.' }, asked, answered] }])
  t.is(kind, 'ShareGPT (conversations, system)')
})

test('Alpaca instructions take their input along', async (t) => {
  const { examples, kind } = await read('language', [
    { instruction: 'Translate.', input: 'Kette', output: 'warp' },
    { instruction: 'Weave.', input: '', output: 'ok' },
  ])
  t.deepEqual(examples, [
    { question: 'Translate.\n\nKette', answer: 'warp', system: undefined },
    { question: 'Weave.', answer: 'ok', system: undefined },
  ])
  t.is(kind, 'Alpaca (instruction, output, input)')
})

test('prompts with completions, questions with answers, inputs with outputs, and texts', async (t) => {
  const kinds: readonly (readonly [Record<string, unknown>, unknown, string])[] = [
    [{ prompt: 'a', completion: 'b' }, { prompt: 'a', completion: 'b' }, 'prompt and completion (prompt, completion)'],
    [{ prompt: 'a', response: 'b' }, { prompt: 'a', completion: 'b' }, 'prompt and completion (prompt, response)'],
    [
      { question: 'a', answer: 'b' },
      { question: 'a', answer: 'b', system: undefined },
      'question and answer (question, answer)',
    ],
    [{ input: 'a', output: 'b' }, { prompt: 'a', completion: 'b' }, 'input and output (input, output)'],
    [{ text: 'a', url: 'x' }, { text: 'a' }, 'plain text (text)'],
  ]
  for (const [row, example, expected] of kinds) {
    const { examples, kind } = await read('language', [row])
    t.deepEqual(examples, [example] as typeof examples)
    t.is(kind, expected)
  }
})

test('a prompt and a completion of messages learn the completion only', async (t) => {
  const { examples } = await read('language', [{ prompt: [asked, answered, asked], completion: [answered] }])
  const context = [asked, answered, asked].map((message) => ({ ...message, weight: 0 as const }))
  t.deepEqual(examples, [{ messages: [...context, answered] }])
})

test('tool calls keep their names and get their arguments as objects; tools go to the template', async (t) => {
  const call = { id: '1', type: 'function', function: { name: 'thread', arguments: '{"count": 3}' } }
  const tools = [{ type: 'function', function: { name: 'thread' } }]
  const messages = [
    asked,
    { role: 'assistant', content: null, tool_calls: [call] },
    { role: 'tool', tool_call_id: '1', content: '3', name: null },
    answered,
  ]
  const { examples } = await read('language', [{ messages, tools }])
  t.deepEqual(examples[0], {
    messages: [
      asked,
      {
        role: 'assistant',
        content: '',
        tool_calls: [{ ...call, function: { name: 'thread', arguments: { count: 3 } } }],
      },
      { tool_call_id: '1', role: 'tool', content: '3' },
      answered,
    ],
    tools,
  })
  const template = new ChatTemplate(
    '{{ tools[0].function.name }}:{{ messages[1].tool_calls[0].function.arguments.count }}',
    {
      place: 'test',
      variables: {},
      specialTokens: [],
    },
  )
  const [first] = examples
  if (!first || !('messages' in first)) return t.fail()
  t.is(template.render(first.messages, { tools: first.tools }), 'thread:3')
})

test('tables hold conversations as JSON text', async (t) => {
  const text = JSON.stringify([asked, answered]).replaceAll('"', '""')
  const { examples } = await read('language', file('a.csv', `messages\n"${text}"\n`))
  t.deepEqual(examples, [{ messages: [asked, answered] }])
})

test('text with a label, one or two texts; a label may be a number', async (t) => {
  const single = await read('classification', [
    { text: 'buy!', label: 'spam' },
    { text: 'hi', label: 0 },
  ])
  t.deepEqual(single.examples, [
    { text: 'buy!', label: 'spam' },
    { text: 'hi', label: '0' },
  ])
  const double = await read('classification', [{ premise: 'a', hypothesis: 'b', label: 'entailment' }])
  t.deepEqual(double.examples, [{ text: 'a', textPair: 'b', label: 'entailment' }])
  const missing = await read('classification', [
    { text: 'a', label: 'x' },
    { text: 'b', label: '' },
    { text: 'c', label: [1] },
  ])
  t.deepEqual(
    missing.skipped.map(([line]) => line),
    [2, 3],
  )
})

test('pairs with and without a negative, and sentences with a score', async (t) => {
  const triple = await read('pairs', [{ query: 'a', positive: 'b', negative: 'c' }])
  t.deepEqual(triple.examples, [{ anchor: 'a', positive: 'b', negative: 'c' }])
  const scored = await read('pairs', file('a.tsv', 'sentence1\tsentence2\tscore\na\tb\t0.8\nc\td\tlots\n'))
  t.deepEqual(scored.examples, [{ anchor: 'a', positive: 'b', score: 0.8 }])
  t.deepEqual(scored.skipped, [[3, '"score" is not a number, but "lots"']])
})

test('preferences as texts, as messages, and with the prompt inside both conversations', async (t) => {
  const other = { role: 'assistant', content: 'Crosswise.' }
  const texts = await read('preference', [{ prompt: 'a', chosen: 'b', rejected: 'c' }])
  t.deepEqual(texts.examples, [{ prompt: 'a', chosen: 'b', rejected: 'c' }])
  const messages = { prompt: [asked], chosen: [answered], rejected: [other] }
  t.deepEqual((await read('preference', [messages])).examples, [messages])
  const whole = { prompt: 'Warp?', chosen: [asked, answered], rejected: [asked, other] }
  t.deepEqual((await read('preference', [whole])).examples, [messages])
})

test("preferences in OpenAI's form; what is no list of messages is named", async (t) => {
  const preferred_output = [answered]
  const non_preferred_output = [{ role: 'assistant', content: 'Crosswise.' }]
  const row = { input: { messages: [asked], parallel_tool_calls: true }, preferred_output, non_preferred_output }
  const { examples, skipped, kind } = await read('preference', [
    row,
    { ...row, input: 'Warp?' },
    { ...row, preferred_output: [] },
    { ...row, non_preferred_output: 'Crosswise.' },
    { ...row, input: { messages: [asked], tools: [{ type: 'function' }] } },
  ])
  t.deepEqual(examples, [{ prompt: [asked], chosen: preferred_output, rejected: non_preferred_output }])
  t.is(kind, 'OpenAI preferences (input, preferred_output, non_preferred_output)')
  t.deepEqual(skipped, [
    [2, '"input.messages": not a list of messages'],
    [3, '"preferred_output": not a list of messages'],
    [4, '"non_preferred_output": not a list of messages'],
    [5, '"input.tools" is not known to preferences'],
  ])
})

test('a prompt that the answers do not repeat comes before what they share', async (t) => {
  const again = { role: 'user', content: 'And weft?' }
  const other = { role: 'assistant', content: 'Crosswise.' }
  const row = { prompt: [asked], chosen: [answered, again, other], rejected: [answered, again, answered] }
  const { examples } = await read('preference', [row])
  t.deepEqual(examples, [{ prompt: [asked, answered, again], chosen: [other], rejected: [answered] }])
})

test('answers that are JSON texts, but no messages, are texts', async (t) => {
  const row = { prompt: '[3, 1]', chosen: '[1, 3]', rejected: '[3, 1]' }
  t.deepEqual((await read('preference', [row])).examples, [row])
})

test('columns can be named', async (t) => {
  const rows = [{ q: 'a', a: 'b', text: 'not this' }, { q: 'c' }]
  const { examples, skipped, kind } = await read('language', rows, { columns: { prompt: 'q', completion: 'a' } })
  t.deepEqual(examples, [{ prompt: 'a', completion: 'b' }])
  t.is(kind, 'prompt and completion (q, a)')
  t.deepEqual(skipped, [[2, 'expected the columns q, a for language; got the keys q']])
  const error = await t.throwsAsync(read('language', rows, { columns: { prompt: 'q', answer: 'a' } }))
  t.is((error as HeddleError).code, 'ERR_HEDDLE_ARGUMENT')
  t.regex(error!.message, /columns: expected names for .*prompt \+ completion.*got prompt \+ answer/)
})

test('a row of another shape than those before it is skipped by line', async (t) => {
  const { examples, skipped } = await read('language', [
    { nothing: 1 },
    { text: 'a' },
    { prompt: 'p', completion: 'c' },
  ])
  t.deepEqual(examples, [{ text: 'a' }])
  t.regex(skipped[0]![1], /expected the columns of OpenAI messages \(messages\), .*; got the keys nothing/)
  t.deepEqual(skipped[1], [3, 'prompt and completion, while the rows of this file are plain text since line 2'])
})

test('what is wrong with a message is said with its number', async (t) => {
  const wrong: readonly (readonly [unknown, RegExp])[] = [
    ['x', /not a list of messages/],
    [[asked], /no message of the assistant/],
    [[asked, { role: 'assistant' }], /message 2 has no "content"/],
    [[{ from: 'nobody', value: 'x' }], /message 1 is from "nobody", which is none of/],
    [[asked, { role: 'assistant', content: [{ type: 'image_url' }] }], /message 2 has no "content"/],
    [[{ ...answered, weight: 0 }], /no message of the assistant/],
  ]
  const { skipped } = await read(
    'language',
    wrong.map(([messages]) => ({ messages })),
  )
  t.is(skipped.length, wrong.length)
  for (const [index, [, pattern]] of wrong.entries()) t.regex(skipped[index]![1], pattern)
})

/** The text of the only sequence, and the part of it that is learned. */
async function encoded(source: Parameters<typeof Tokenizer.load>[0], row: Record<string, unknown>) {
  const tokenizer = await Tokenizer.load(source)
  try {
    const data = await Dataset.open([row], tokenizer, { maxLength: 1024 })
    for await (const { inputIds, targets, segments } of data.batches({ batchSize: 1 })) {
      const text = await tokenizer.decode(inputIds.filter((_, i) => segments[i] === 0))
      const learned = await tokenizer.decode(targets.filter((id) => id >= 0))
      return { text, learned, description: data.description }
    }
    throw new Error('no batch')
  } finally {
    await tokenizer.close()
  }
}

test('a model with a chat template learns answers in it', async (t) => {
  const path = await fetchModel('smollm2')
  const row = { instruction: 'Warp?', output: 'Lengthwise.' }
  const { text, learned, description } = await encoded({ kind: 'gguf', path }, row)
  t.true(text.endsWith('<|im_start|>user\nWarp?<|im_end|>\n<|im_start|>assistant\nLengthwise.'), text)
  t.is(learned, 'Lengthwise.<|im_end|>')
  t.regex(description, /^rows: Alpaca \(instruction, output\); 1 sequence, \d+ tokens$/)
})

test('a model without a chat template learns answers after the prompt of Alpaca', async (t) => {
  const source = { kind: 'folder', path: await tinyModelFolder() } as const
  const { text, learned } = await encoded(source, { instruction: 'Warp?', output: 'Lengthwise.' })
  t.regex(text, /^Below is an instruction.*\n\n### Instruction:\nWarp\?\n\n### Response:\nLengthwise\.$/)
  t.is(learned, 'Lengthwise.<eos>')
})

interface EncodeBatchGolden {
  readonly texts: readonly string[]
  readonly secondTexts: readonly string[]
  readonly cases: readonly {
    readonly maxLength: number
    readonly pairs: boolean
    readonly ids: readonly (readonly number[])[]
    readonly tokenTypes: readonly (readonly number[])[]
  }[]
}

test('batches of texts and of pairs are those of transformers, cut ones too', async (t) => {
  const golden = goldenJson<EncodeBatchGolden>('encode-batch.json')
  const tokenizer = await Tokenizer.load({ kind: 'folder', path: await fetchModel('minilm') })
  try {
    for (const { maxLength, pairs, ids, tokenTypes } of golden.cases) {
      const batch = await tokenizer.encodeBatch(golden.texts, {
        maxLength,
        pairs: pairs ? golden.secondTexts : undefined,
      })
      const rowsOf = (values: Int32Array) =>
        golden.texts.map((_, row) =>
          [...values.subarray(row * batch.length, (row + 1) * batch.length)].filter(
            (_, column) => batch.mask[row * batch.length + column] === 1,
          ),
        )
      t.deepEqual(rowsOf(batch.ids), ids as number[][])
      t.deepEqual(rowsOf(batch.tokenTypes), tokenTypes as number[][])
      t.is(batch.length, Math.min(32, maxLength))
    }
    await t.throwsAsync(tokenizer.encodeBatch(['a'], { maxLength: 8, pairs: [] }), { message: /pairs: expected 1/ })
    await t.throwsAsync(tokenizer.encodeBatch(['a'], { maxLength: 2 }), {
      message: /more than 2, the number of special/,
    })
  } finally {
    await tokenizer.close()
  }
})
