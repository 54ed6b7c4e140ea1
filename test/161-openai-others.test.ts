// Completions, embeddings and models with OpenAI's client; clients that go away; the plugin in an app of someone else's.
import { connect } from 'node:net'
import { join } from 'node:path'
import test from 'ava'
import fastify from 'fastify'
import type OpenAI from 'openai'
import { APIError, BadRequestError, NotFoundError, RateLimitError } from 'openai'
import { z } from 'zod'
import { createEngine, type Engine, HeddleError, loadEncoder } from '../lib/index.js'
import { heddle } from '../lib/serve/index.js'
import { readItems } from '../lib/serve/openai/request.js'
import { clientOf, type Served, serveTiny } from './support/serve.js'
import { temporaryFolder } from './support/temporary_folder.js'
import { tinyEncoderFolder } from './tiny_model.js'

let served: Served
let engine: Engine

test.before(async () => {
  served = await serveTiny({ adapters: ['shout'] })
  engine = await createEngine(served.model)
})

test.after.always(async () => {
  await engine.close()
  await served.close()
})

type Completion = OpenAI.CompletionCreateParamsNonStreaming
const base = { model: 'heddle-tiny', prompt: 'The government', temperature: 0, max_tokens: 8 } as const
const complete = (more: Partial<Completion> = {}) => served.client.completions.create({ ...base, ...more })

/** What the model itself goes on with. */
async function own(prompt: string | Int32Array, maxTokens = 8): Promise<string> {
  let text = ''
  for await (const piece of served.model.generate(prompt, { chat: false, maxTokens })) text += piece
  return text
}

test('a completion goes on from the prompt as it is, without a template', async (t) => {
  const answer = await complete()
  t.is(answer.choices[0]!.text, await own(base.prompt))
  const prompt_tokens = (await served.model.tokenizer.encode(base.prompt)).length
  t.deepEqual(answer.usage, { prompt_tokens, completion_tokens: 8, total_tokens: prompt_tokens + 8 })
  t.like(answer, { object: 'text_completion', model: 'heddle-tiny' })
})

test('tokens are as good as text', async (t) => {
  const tokens = [...(await served.model.tokenizer.encode(base.prompt))]
  const expected = (await complete()).choices[0]!.text
  t.is((await complete({ prompt: tokens })).choices[0]!.text, expected)
  const several = await complete({ prompt: [tokens, tokens.slice(1)] })
  t.deepEqual(
    several.choices.map(({ text }) => text),
    [expected, await own(Int32Array.from(tokens.slice(1)))],
  )
})

test('several prompts give their texts one after the other, each n times', async (t) => {
  const prompt = ['Mr. Speaker', 'In the year']
  const { choices, usage } = await complete({ prompt, n: 2 })
  const [first, second] = await Promise.all(prompt.map((text) => own(text)))
  t.deepEqual(
    choices.map(({ index, text }) => [index, text]),
    [first, first, second, second].map((text, index) => [index, text]),
  )
  t.is(usage!.completion_tokens, 32)
})

test('16 tokens come unless more are asked for', async (t) => {
  const { choices, usage } = await complete({ max_tokens: null })
  t.is(usage!.completion_tokens, 16)
  t.is(choices[0]!.finish_reason, 'length')
})

test('echo says the prompt first, also where nothing more is asked for', async (t) => {
  t.is((await complete({ echo: true })).choices[0]!.text, base.prompt + (await own(base.prompt)))
  const nothing = await complete({ echo: true, max_tokens: 0 })
  t.is(nothing.choices[0]!.text, base.prompt)
  t.is(nothing.usage!.completion_tokens, 0)
  const chunks: string[] = []
  for await (const { choices } of await served.client.completions.create({ ...base, echo: true, stream: true }))
    chunks.push(choices[0]!.text)
  t.is(chunks[0], base.prompt)
  t.is(chunks.slice(1).join(''), await own(base.prompt))
})

test('log-probabilities name tokens, their offsets in the text, and the likeliest', async (t) => {
  const { text, logprobs } = (await complete({ logprobs: 2 })).choices[0]!
  const { tokens, text_offset, token_logprobs, top_logprobs } = logprobs!
  t.is(tokens!.join(''), text)
  for (const [index, token] of tokens!.entries()) {
    t.is(text.slice(text_offset![index]).indexOf(token), 0)
    t.is(top_logprobs![index]![token], token_logprobs![index])
    t.is(Object.keys(top_logprobs![index]!).length, 2)
  }
})

test('offsets of a stream are those of the whole', async (t) => {
  const whole = (await complete({ logprobs: 0 })).choices[0]!.logprobs!
  const offsets: number[] = []
  for await (const { choices } of await served.client.completions.create({ ...base, logprobs: 0, stream: true }))
    offsets.push(...(choices[0]!.logprobs?.text_offset ?? []))
  t.deepEqual(offsets, whole.text_offset)
})

test('a token that is no whole character is named by its bytes', async (t) => {
  const [byte] = await served.model.tokenizer.encode('🧵', { addSpecialTokens: false })
  const { logprobs } = (await complete({ logprobs: 1, logit_bias: { [byte!]: 100 }, max_tokens: 1 })).choices[0]!
  t.regex(logprobs!.tokens![0]!, /^bytes:(\\x[0-9a-f]{2})+$/)
})

for (const [what, fields, param] of [
  ['suffix', { suffix: ' end' }, 'suffix'],
  ['best_of', { best_of: 3 }, 'best_of'],
  ['log-probabilities of the prompt', { echo: true, logprobs: 1 }, 'logprobs'],
  ['an empty prompt', { prompt: '' }, 'prompt'],
  ['no prompts', { prompt: [] as string[] }, 'prompt'],
  ['a token that is none', { prompt: [4096] }, 'prompt'],
  ['too many log-probabilities', { logprobs: 6 }, 'logprobs'],
  ['messages', { messages: [] } as object, 'messages'],
] as const)
  test(`completions refuse ${what}`, async (t) => {
    t.like(await t.throwsAsync(complete(fields as Partial<Completion>), { instanceOf: BadRequestError }), { param })
  })

test('vectors are those of the model, in both spellings', async (t) => {
  const input = ['A stitch in time', 'Haste']
  const expected = (await served.model.embed(input)).map((vector) => [...vector])
  // The client asks for base64 and reads it.
  const base64 = await served.client.embeddings.create({ model: 'heddle-tiny', input })
  t.deepEqual(
    base64.data.map(({ embedding }) => embedding),
    expected,
  )
  const floats = await served.client.embeddings.create({ model: 'heddle-tiny', input, encoding_format: 'float' })
  t.deepEqual(
    floats.data.map(({ embedding }) => embedding),
    expected,
  )
  const tokens = await Promise.all(input.map((text) => served.model.tokenizer.encode(text)))
  const count = tokens.reduce((sum, { length }) => sum + length, 0)
  t.deepEqual(base64.usage, { prompt_tokens: count, total_tokens: count })
  const ofTokens = await served.client.embeddings.create({ model: 'heddle-tiny', input: tokens.map((ids) => [...ids]) })
  t.deepEqual(ofTokens.data, base64.data)
})

test('vectors of an adapter are its own', async (t) => {
  const request = { model: 'shout', input: 'A stitch in time' } as const
  const vectorOf = async () => (await served.client.embeddings.create(request)).data[0]!.embedding
  const adapter = await served.model.loadAdapter(join(served.adapters, 'shout'))
  const [expected] = await served.model.embed([request.input], { adapter })
  const [plain] = await served.model.embed([request.input])
  t.deepEqual(await vectorOf(), [...expected!])
  t.notDeepEqual(await vectorOf(), [...plain!])
})

test('a text for a vector may be as long as a prompt', async (t) => {
  const { client, close } = await serveTiny({ limits: { promptTokens: 4 } })
  const vectorOf = (input: number[]) => client.embeddings.create({ model: 'heddle-tiny', input })
  t.is((await vectorOf([1, 2, 3, 4])).usage.prompt_tokens, 4)
  await t.throwsAsync(vectorOf([1, 2, 3, 4, 5]), { instanceOf: BadRequestError, message: /at most 4 are possible/ })
  await close()
})

test('an encoder of its own makes the vectors of requests with its name', async (t) => {
  const model = await loadEncoder(await tinyEncoderFolder())
  const { client, close } = await serveTiny({ encoder: { name: 'finder', model } })
  const [expected] = await model.embed(['warp'])
  const answer = await client.embeddings.create({ model: 'finder', input: 'warp' })
  t.deepEqual(answer.data[0]!.embedding, [...expected!])
  t.is(answer.usage.prompt_tokens, (await model.tokenizer.encode('warp')).length)
  const names: string[] = []
  for await (const { id } of client.models.list()) names.push(id)
  t.deepEqual(names, ['heddle-tiny', 'finder'])
  await t.throwsAsync(client.completions.create({ ...base, model: 'finder' }), { instanceOf: NotFoundError })
  await close()
  await model.dispose()
})

for (const [what, fields, param] of [
  ['an empty text', { input: ['a', ''] }, 'input'],
  ['other dimensions', { input: 'a', dimensions: 3 }, 'dimensions'],
  ['a text that is too long', { input: 'warp '.repeat(1000) }, 'input'],
  ['a token that is none', { input: [4096] }, 'input'],
  ['another spelling', { input: 'a', encoding_format: 'hex' as never }, 'encoding_format'],
] as const)
  test(`embeddings refuse ${what}`, async (t) => {
    const request = { model: 'heddle-tiny', ...fields } as OpenAI.EmbeddingCreateParams
    t.like(await t.throwsAsync(served.client.embeddings.create(request), { instanceOf: BadRequestError }), { param })
  })

test('models are the base and the adapters', async (t) => {
  const found: OpenAI.Model[] = []
  for await (const each of served.client.models.list()) found.push(each)
  t.deepEqual(
    found.map(({ id }) => id),
    ['heddle-tiny', 'shout'],
  )
  t.deepEqual(await served.client.models.retrieve('shout'), found[1])
  t.like(await t.throwsAsync(served.client.models.retrieve('../x'), { instanceOf: NotFoundError }), {
    code: 'model_not_found',
  })
})

/** The engine, with a promise of how its next text ends. */
function ends(engine: Engine): Promise<string> {
  return new Promise((resolve) => {
    const stop = engine.watch({
      onEnd: ({ reason }) => {
        stop()
        resolve(reason)
      },
    })
  })
}

/** An app of someone else's. */
async function hosted(engine: Engine, prefix = '') {
  // A client may hold a connection on which it has asked nothing yet.
  const app = fastify({ forceCloseConnections: true })
  const folder = temporaryFolder()
  await app.register(heddle, { engine, prefix, modelName: 'heddle-tiny', folders: { data: folder, adapters: folder } })
  app.get('/own', async () => {
    throw new Error('its own')
  })
  const url = await app.listen()
  return { app, url, client: clientOf({ url: url + prefix }) }
}

test('a client that hangs up ends its text, streamed or not', async (t) => {
  const watched = await createEngine(served.model)
  const { app, url, client } = await hosted(watched)
  const endless = { ...base, max_tokens: 500, logit_bias: { 0: -100 } }
  const ended = ends(watched)
  for await (const _ of await client.completions.create({ ...endless, stream: true })) break
  t.is(await ended, 'aborted')
  const started = new Promise<void>((resolve) => void watched.watch({ onFirstToken: () => resolve() }))
  const cut = ends(watched)
  const body = JSON.stringify(endless)
  const socket = connect(Number(new URL(url).port), 'localhost')
  socket.write(
    `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  )
  await started
  socket.destroy()
  t.is(await cut, 'aborted')
  t.is(watched.state().running, 0)
  await app.close()
  await watched.close()
})

test('a busy engine is 429 with a time to wait', async (t) => {
  const busy = new HeddleError('ERR_HEDDLE_BUSY', { place: 'generate', expected: 'few', got: 'many' })
  const { app, client } = await hosted(failing(engine, busy))
  for (const stream of [false, true]) {
    const error = await t.throwsAsync(client.completions.create({ ...base, stream }) as Promise<unknown>, {
      instanceOf: RateLimitError,
    })
    t.like(error, { status: 429, code: 'server_busy', type: 'rate_limit_error' })
    t.is((error as APIError).headers!.get('retry-after'), '1')
  }
  await app.close()
})

test('a model that is taken away while its request is read is one that is not there', async (t) => {
  const gone = new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'generate.adapter', expected: 'one of a, b', got: 'c' })
  const { app, client } = await hosted(failing(engine, gone))
  const error = await t.throwsAsync(client.completions.create(base), {
    instanceOf: NotFoundError,
    message: /The model 'c' does not/,
  })
  t.like(error, { code: 'model_not_found' })
  await app.close()
})

test('a server whose engine has closed says that it ends', async (t) => {
  const closing = await createEngine(served.model)
  const { app, client } = await hosted(closing)
  await closing.close()
  const error = await t.throwsAsync(client.completions.create(base), { instanceOf: APIError })
  t.like(error, { status: 503, code: 'server_closing', type: 'server_error' })
  await app.close()
})

test('what a client sent is not sent back at any length', async (t) => {
  const long = 'x'.repeat(100_000)
  for (const request of [{ model: long }, { [long]: 1 }, { logit_bias: { [long]: 1 } }, { prompt: { [long]: 1 } }]) {
    const error = await t.throwsAsync<APIError>(complete(request as never), { instanceOf: APIError })
    t.true(JSON.stringify(error!.error).length < 3000)
  }
})

test('of a list, the first element that is wrong is named', async (t) => {
  const refusal = async (fields: object): Promise<unknown> =>
    (await t.throwsAsync(complete(fields as never), { instanceOf: BadRequestError }))!.message
  t.regex(String(await refusal({ prompt: [1, 2, -1, 'a'] })), /Invalid 'prompt\[2\]': expected a token id/)
  t.regex(
    String(await refusal({ prompt: ['a', [1], [], 'b'] })),
    /Invalid 'prompt\[2\]': expected a string or token ids/,
  )
  t.regex(String(await refusal({ prompt: [] })), /empty array/)
  t.regex(String(await refusal({ prompt: 7 })), /Invalid 'prompt': expected a string/)
  t.regex(String(await refusal({ prompt: undefined })), /Missing required parameter: 'prompt'/)
  t.regex(String(await refusal({ prompt: Array.from({ length: 3000 }, () => 'a') })), /maximum length 2048/)
})

test('a long list is read with turns of the event loop in between, up to the first element that is wrong', async (t) => {
  const slow = z.string().refine(() => {
    for (const until = performance.now() + 1; performance.now() < until; );
    return true
  })
  let turns = 0
  const counting = setInterval(() => {
    turns += 1
  })
  const texts = Array.from({ length: 20 }, () => 'a')
  t.deepEqual(await readItems(slow, texts, 'texts'), texts)
  clearInterval(counting)
  t.true(turns >= 3, `${turns}`)
  await t.throwsAsync(readItems(slow, ['a', 1, {}], 'texts'), {
    message: /Invalid type for 'texts\[1\]': expected a string/,
  })
})

test('an answer that takes too long ends with a status of its own, or an event where the stream has begun', async (t) => {
  const { client, close } = await serveTiny({ limits: { answerSeconds: 0.05 } })
  const endless = { ...base, n: 8, temperature: 1, max_tokens: 500, logit_bias: { 0: -100 } }
  const error = await t.throwsAsync(client.completions.create(endless), { instanceOf: APIError })
  t.like(error, { status: 504, code: 'answer_timeout', type: 'server_error' })
  const read = async (): Promise<void> => {
    for await (const _ of await client.completions.create({ ...endless, stream: true }));
  }
  t.like(await t.throwsAsync(read(), { instanceOf: APIError }), { code: 'answer_timeout' })
  await close()
})

test('what fails on the server says nothing of its insides', async (t) => {
  const secret = new HeddleError('ERR_HEDDLE_IO', { place: '/srv/secret/adapter', expected: 'a file', got: 'none' })
  const { app, client } = await hosted(failing(engine, secret))
  const error = await t.throwsAsync(client.completions.create(base), { instanceOf: APIError })
  t.like(error, { status: 500, type: 'server_error' })
  t.notRegex(error!.message, /secret/)
  await app.close()
})

test('a failure within a stream is an event of its own, and the client throws it', async (t) => {
  const failure = new HeddleError('ERR_HEDDLE_OOM', { place: 'step', expected: 'memory', got: 'none' })
  const { app, client } = await hosted(failing(engine, failure, 2))
  const texts: string[] = []
  const error = await t.throwsAsync(
    async () => {
      for await (const { choices } of await client.completions.create({ ...base, stream: true }))
        texts.push(choices[0]!.text)
    },
    { instanceOf: APIError },
  )
  t.regex(error!.message, /not enough memory/)
  t.is(texts.length, 2)
  await app.close()
})

/** The engine; but its texts fail after some tokens. */
const failing = (engine: Engine, error: HeddleError, after = 0): Engine =>
  new Proxy(engine, {
    get(target, name) {
      if (name === 'generateTokens')
        return async function* (...request: Parameters<Engine['generateTokens']>) {
          let left = after
          for await (const token of target.generateTokens(...request)) {
            if (left-- === 0) throw error
            yield token
          }
        }
      const value: unknown = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })

test('in an app of its own kind, the routes stand under a prefix and leave the others alone', async (t) => {
  const { app, url, client } = await hosted(engine, '/llm')
  t.is((await client.completions.create(base)).choices[0]!.text, await own(base.prompt))
  const answer = await fetch(`${url}/own`)
  t.is(answer.status, 500)
  t.deepEqual(await answer.json(), { statusCode: 500, error: 'Internal Server Error', message: 'its own' })
  t.is((await fetch(`${url}/v1/models`)).status, 404)
  // Below the prefix, what is not there is told in the form of all other errors.
  const missing = (await (await fetch(`${url}/llm/v1/none`)).json()) as { readonly error: object }
  t.like(missing, { error: { type: 'invalid_request_error', code: 'unknown_url' } })
  await app.close()
})
