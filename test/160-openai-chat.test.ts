// /v1/chat/completions, asked by OpenAI's own client: what the model says is what the client gets.
import { join } from 'node:path'
import { Ajv } from 'ajv'
import test from 'ava'
import type OpenAI from 'openai'
import { APIError, BadRequestError, NotFoundError } from 'openai'
import { type Served, serveTiny } from './support/serve.js'

type Request = OpenAI.Chat.ChatCompletionCreateParamsNonStreaming
type Message = OpenAI.Chat.ChatCompletionMessageParam

let served: Served

test.before(async () => {
  served = await serveTiny({ adapters: ['shout', 'whisper'] })
})

test.after.always(() => served.close())

const question: Message[] = [{ role: 'user', content: 'What shall we weave today?' }]
const base = { model: 'heddle-tiny', messages: question, temperature: 0, max_tokens: 12 } as const

const ask = (more: Partial<Request> = {}) => served.client.chat.completions.create({ ...base, ...more })
const textOf = async (more: Partial<Request> = {}): Promise<string> => (await ask(more)).choices[0]!.message.content!

/** What the model itself says. */
async function own(options: Parameters<typeof served.model.generate>[1] = {}): Promise<string> {
  let text = ''
  for await (const piece of served.model.generate(question as never, { maxTokens: 12, ...options })) text += piece
  return text
}

async function pieces(more: Partial<Request> & { stream_options?: { include_usage: boolean } } = {}) {
  const chunks: OpenAI.Chat.ChatCompletionChunk[] = []
  for await (const chunk of await served.client.chat.completions.create({ ...base, ...more, stream: true }))
    chunks.push(chunk)
  return chunks
}

test('an answer is what the model says to the same messages', async (t) => {
  const answer = await ask()
  t.is(answer.choices[0]!.message.content, await own())
  t.like(answer, { object: 'chat.completion', model: 'heddle-tiny' })
  t.like(answer.choices[0], { index: 0, finish_reason: 'length', logprobs: null })
  t.is(answer.choices[0]!.message.role, 'assistant')
})

test('a stream begins with the role, goes on with the same text, and ends with a reason', async (t) => {
  const chunks = await pieces()
  t.deepEqual(chunks[0]!.choices[0]!.delta, { role: 'assistant', content: '', refusal: null })
  t.is(chunks.map(({ choices }) => choices[0]!.delta.content ?? '').join(''), await own())
  t.true(chunks.length > 4)
  t.deepEqual(
    chunks.map(({ choices }) => choices[0]!.finish_reason),
    [...chunks.slice(1).map(() => null), 'length'],
  )
  t.is(new Set(chunks.map(({ id }) => id)).size, 1)
  t.true(chunks.every(({ usage }) => usage === undefined))
})

test('usage counts the tokens of the template and every token that was made', async (t) => {
  const { usage } = await ask({ n: 2 })
  const prompt = (await served.model.promptTokens(question as never)).length
  t.deepEqual(usage, { prompt_tokens: prompt, completion_tokens: 24, total_tokens: prompt + 24 })
})

test('a stream tells its usage only when asked, in a last chunk without choices', async (t) => {
  const chunks = await pieces({ stream_options: { include_usage: true } })
  t.true(chunks.slice(0, -1).every(({ usage }) => usage === null))
  t.deepEqual(chunks.at(-1)!.choices, [])
  t.deepEqual(chunks.at(-1)!.usage, (await ask()).usage)
})

test('an adapter is asked for by its name, and changes the answer', async (t) => {
  const adapters = Object.fromEntries(
    await Promise.all(
      ['shout', 'whisper'].map(async (name) => {
        const adapter = await served.model.loadAdapter(join(served.adapters, name))
        return [name, await own({ adapter })] as const
      }),
    ),
  )
  const [plain, shout, whisper] = await Promise.all([
    textOf(),
    textOf({ model: 'shout' }),
    textOf({ model: 'whisper' }),
  ])
  t.deepEqual({ shout, whisper }, adapters)
  t.is(new Set([plain, shout, whisper]).size, 3)
})

test('a model that is not there is 404, as with OpenAI', async (t) => {
  const error = await t.throwsAsync(ask({ model: '../../etc' }), { instanceOf: NotFoundError })
  t.like(error, { status: 404, code: 'model_not_found', param: 'model', type: 'invalid_request_error' })
})

test('the same seed gives the same text, another one or none another', async (t) => {
  const warm = { temperature: 1.5, max_tokens: 24 }
  const first = await textOf({ ...warm, seed: 7 })
  t.is(await textOf({ ...warm, seed: 7 }), first)
  t.not(await textOf({ ...warm, seed: -7 }), first)
  t.not(await textOf(warm), await textOf(warm))
})

test('n answers to one question differ, and come again with the seed', async (t) => {
  const request = { n: 3, temperature: 1.5, seed: 3 }
  const texts = (await ask(request)).choices.map(({ message }) => message.content)
  t.is(new Set(texts).size, 3)
  t.deepEqual(
    (await ask(request)).choices.map(({ message }) => message.content),
    texts,
  )
  const streamed = ['', '', '']
  for (const { choices } of await pieces(request)) streamed[choices[0]!.index] += choices[0]!.delta.content ?? ''
  t.deepEqual(streamed, texts)
})

test('an answer ends before a stop string, of which nothing is shown', async (t) => {
  const whole = await own()
  const stop = whole.slice(9, 12)
  for (const given of [stop, ['never said', stop]]) {
    const { choices } = await ask({ stop: given })
    t.is(choices[0]!.message.content, whole.slice(0, whole.indexOf(stop)))
    t.is(choices[0]!.finish_reason, 'stop')
  }
  const streamed = (await pieces({ stop })).map(({ choices }) => choices[0]!.delta.content ?? '').join('')
  t.is(streamed, whole.slice(0, whole.indexOf(stop)))
})

test('log-probabilities are the model’s own, with the bytes of every token', async (t) => {
  const { choices } = await ask({ logprobs: true, top_logprobs: 3 })
  const content = choices[0]!.logprobs!.content!
  const bytes = content.flatMap((each) => each.bytes!)
  t.is(Buffer.from(bytes).toString(), choices[0]!.message.content!)
  const expected: number[] = []
  const options = { maxTokens: 12, logProbabilities: 1 }
  for await (const token of served.model.generateTokens(question as never, options))
    expected.push(token.logProbability!)
  t.is(content.length, expected.length)
  for (const [index, each] of content.entries()) {
    t.true(Math.abs(each.logprob - expected[index]!) < 1e-4)
    t.is(each.top_logprobs.length, 3)
    // Greedy: what was chosen is the first.
    t.is(each.top_logprobs[0]!.token, each.token)
    t.true(each.top_logprobs[0]!.logprob >= each.top_logprobs[1]!.logprob)
  }
})

test('a stream has the log-probabilities of each piece with it', async (t) => {
  const whole = (await ask({ logprobs: true })).choices[0]!.logprobs!.content!
  const streamed = (await pieces({ logprobs: true })).flatMap(({ choices }) => choices[0]!.logprobs?.content ?? [])
  t.deepEqual(
    streamed.map(({ token }) => token),
    whole.map(({ token }) => token),
  )
  t.true(whole.every(({ top_logprobs }) => top_logprobs.length === 0))
})

test('tokens of a stop string have no log-probabilities in the answer', async (t) => {
  const whole = (await ask({ logprobs: true })).choices[0]!
  const tokens = whole.logprobs!.content!
  const { message, logprobs } = (await ask({ logprobs: true, stop: tokens[4]!.token })).choices[0]!
  t.is(logprobs!.content!.map(({ token }) => token).join(''), message.content!)
})

test('logit_bias forces and forbids tokens', async (t) => {
  const [first] = await served.model.tokenizer.encode(' loom', { addSpecialTokens: false })
  const forced = await textOf({ logit_bias: { [first!]: 100 }, max_tokens: 3 })
  const word = await served.model.tokenizer.decode([first!])
  t.is(forced, word.repeat(3))
  const [usual] = await served.model.tokenizer.encode(await own({ maxTokens: 1 }), { addSpecialTokens: false })
  t.not(await textOf({ logit_bias: { [usual!]: -100 }, max_tokens: 1 }), await own({ maxTokens: 1 }))
})

test('penalties reach the model', async (t) => {
  const penalties = { frequency_penalty: 2, presence_penalty: 2 }
  const expected = await own({ frequencyPenalty: 2, presencePenalty: 2, maxTokens: 40 })
  t.is(await textOf({ ...penalties, max_tokens: 40 }), expected)
  t.not(expected, await own({ maxTokens: 40 }))
})

test('top_p 0 is as good as temperature 0', async (t) => {
  t.is(await textOf({ temperature: 2, top_p: 0 }), await own())
})

const schema = {
  type: 'object',
  properties: {
    cloth: { enum: ['linen', 'wool'] },
    metres: { type: 'integer', minimum: 1, maximum: 99 },
    colours: { type: 'array', items: { type: 'string', maxLength: 8 }, maxItems: 2 },
  },
  required: ['cloth', 'metres', 'colours'],
  additionalProperties: false,
}
const order = { type: 'json_schema', json_schema: { name: 'order', schema, strict: true } } as const

test('a JSON schema holds, whatever the temperature, in one piece and streamed', async (t) => {
  const isOrder = new Ajv().compile(schema)
  const request = { response_format: order, temperature: 1.8, max_tokens: 150, seed: 5 }
  const { choices } = await ask(request)
  t.true(isOrder(JSON.parse(choices[0]!.message.content!)), choices[0]!.message.content!)
  t.is(choices[0]!.finish_reason, 'stop')
  const streamed = (await pieces(request)).map(({ choices: [choice] }) => choice!.delta.content ?? '').join('')
  t.is(streamed, choices[0]!.message.content!)
})

test('json_object is an object, always finished', async (t) => {
  const { choices } = await ask({ response_format: { type: 'json_object' }, temperature: 1.5, max_tokens: 40, seed: 1 })
  t.is(typeof JSON.parse(choices[0]!.message.content!), 'object')
})

test('a schema that cannot be held to is refused, with the keyword', async (t) => {
  const json_schema = { name: 'x', schema: { type: 'string', format: 'date' } }
  const error = await t.throwsAsync(ask({ response_format: { type: 'json_schema', json_schema } }))
  t.like(error, { status: 400, param: 'response_format' })
  t.regex(error!.message, /"format"/)
})

test('parts of text are joined, and developers speak as systems do', async (t) => {
  const parts = [
    { type: 'text', text: 'What shall' },
    { type: 'text', text: 'we do?' },
  ] as const
  const { usage } = await ask({
    messages: [
      { role: 'developer', content: 'Be brief.' },
      { role: 'user', content: [...parts] },
    ],
  })
  const same = await served.model.promptTokens([
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'What shall\nwe do?' },
  ])
  t.is(usage!.prompt_tokens, same.length)
})

const refusals: readonly (readonly [
  string,
  Record<string, unknown>,
  { message: RegExp; param: string; code?: string },
])[] = [
  ['an unknown field', { topp: 1 }, { message: /Unknown parameter: 'topp'/, param: 'topp', code: 'unknown_parameter' }],
  [
    'an unknown role',
    { messages: [{ role: 'weaver', content: 'x' }] },
    { message: /'weaver'.*'system', 'developer', 'user', 'assistant' and 'tool'/, param: 'messages[0].role' },
  ],
  ['no messages', { messages: [] }, { message: /empty array/, param: 'messages', code: 'empty_array' }],
  [
    'an unknown field of a message',
    { messages: [{ role: 'user', content: 'x', mood: 1 }] },
    { message: /'messages\[0\].mood'/, param: 'messages[0].mood' },
  ],
  [
    'a picture',
    { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
    { message: /'image_url'/, param: 'messages[0].content[0].type' },
  ],
  ['no model', { model: null }, { message: /'model'/, param: 'model' }],
  ['a hot temperature', { temperature: 2.5 }, { message: /<= 2.*2\.5/, param: 'temperature' }],
  ['a word for a number', { top_p: 'all' }, { message: /expected a number.*a string/, param: 'top_p' }],
  ['no choices', { n: 0 }, { message: />= 1/, param: 'n', code: 'integer_below_min_value' }],
  ['five stop strings', { stop: ['a', 'b', 'c', 'd', 'e'] }, { message: /maximum length 4/, param: 'stop' }],
  ['a bias for a word', { logit_bias: { loom: 1 } }, { message: /token id/, param: 'logit_bias.loom' }],
  ['a bias beyond the words', { logit_bias: { 5000: 1 } }, { message: /below 4096/, param: 'logit_bias' }],
  ['sound', { audio: { voice: 'x' } }, { message: /not supported/, param: 'audio', code: 'unsupported_parameter' }],
  ['top_logprobs alone', { top_logprobs: 2 }, { message: /logprobs/, param: 'top_logprobs' }],
  ['stream_options alone', { stream_options: {} }, { message: /'stream' is enabled/, param: 'stream_options' }],
  ['two maxima', { max_completion_tokens: 3 }, { message: /at the same time/, param: 'max_tokens' }],
  ['more tokens than the server gives', { max_tokens: 1e6 }, { message: /<= 4096/, param: 'max_tokens' }],
  [
    'more text than the model reads',
    { messages: [{ role: 'user', content: 'warp and weft '.repeat(500) }] },
    { message: /maximum context length is 513/, param: 'messages', code: 'context_length_exceeded' },
  ],
  [
    'an answer to no call',
    { messages: [{ role: 'tool', tool_call_id: 'a', content: '4' }] },
    { message: /preceding message with 'tool_calls'/, param: 'messages[0].role' },
  ],
]

for (const [what, fields, { message, ...expected }] of refusals)
  test(`refused with the field's name: ${what}`, async (t) => {
    const error = await t.throwsAsync(ask(fields as Partial<Request>), { instanceOf: BadRequestError, message })
    t.like(error, { status: 400, type: 'invalid_request_error', ...expected })
  })

test('a text gets the tokens that there is room for, however many are asked for', async (t) => {
  const { client, server, close } = await serveTiny({ engine: { memory: { cache: 4 * 2 ** 16 } } })
  const { maxTokens } = server.engine.state()
  const endless = { model: 'heddle-tiny', temperature: 0, logit_bias: { 0: -100 } }
  for (const most of [{}, { max_completion_tokens: 400 }, { max_tokens: 400 }]) {
    const { choices, usage } = await client.chat.completions.create({ ...endless, messages: question, ...most })
    t.is(choices[0]!.finish_reason, 'length')
    t.is(usage!.total_tokens, maxTokens)
  }
  const { usage } = await client.completions.create({ ...endless, prompt: 'We weave', max_tokens: 400 })
  t.is(usage!.total_tokens, maxTokens)
  const long = [{ role: 'user' as const, content: 'warp and weft '.repeat(40) }]
  const refused = client.chat.completions.create({ ...endless, messages: long })
  await t.throwsAsync(refused, { instanceOf: BadRequestError, message: new RegExp(`length is ${maxTokens} tokens`) })
  await close()
})

test('a model without a chat template says so', async (t) => {
  const { client, close } = await serveTiny({ template: null })
  const error = await t.throwsAsync(client.chat.completions.create(base), { instanceOf: APIError })
  t.like(error, { status: 400, param: 'model' })
  t.regex(error!.message, /no chat template/)
  await close()
})

test('a template that refuses the messages is a refusal, which names no file', async (t) => {
  const { client, close } = await serveTiny({ template: "{{ raise_exception('Warp first!') }}" })
  const error = await t.throwsAsync(client.chat.completions.create(base), { instanceOf: BadRequestError })
  t.regex(error!.message, /Warp first!/)
  t.notRegex(error!.message, /\/tmp/)
  await close()
})
