// Tools: a call has the name and the arguments that its schema allows, whether the model begins it or is told to.
import { Ajv } from 'ajv'
import test from 'ava'
import fastify, { type FastifyInstance } from 'fastify'
import type OpenAI from 'openai'
import { BadRequestError } from 'openai'
import { createEngine, type Engine, type GeneratedToken, loadModel, type Model } from '../lib/index.js'
import { heddle } from '../lib/serve/index.js'
import { CallFilter } from '../lib/serve/openai/tools.js'
import { clientOf, serveTiny, tinyFolder, toolTemplate } from './support/serve.js'
import { temporaryFolder } from './support/temporary_folder.js'

type Tool = OpenAI.Chat.ChatCompletionFunctionTool
type Request = OpenAI.Chat.ChatCompletionCreateParamsNonStreaming

const loom = {
  type: 'object',
  properties: { width: { type: 'integer', minimum: 1, maximum: 300 }, kind: { $ref: '#/$defs/kind' } },
  required: ['width', 'kind'],
  additionalProperties: false,
  $defs: { kind: { enum: ['floor', 'table'] } },
}
const tools: Tool[] = [
  { type: 'function', function: { name: 'set_loom', description: 'Sets up a loom', parameters: loom, strict: true } },
  { type: 'function', function: { name: 'stop' } },
]
const isLoom = new Ajv().compile(loom)
const base = {
  model: 'heddle-tiny',
  messages: [{ role: 'user', content: 'Set up the loom.' }],
  tools,
  max_tokens: 200,
  seed: 4,
} satisfies Request

/** Serves an engine at a free port. */
async function serve(engine: Engine): Promise<{ app: FastifyInstance; client: OpenAI }> {
  const app = fastify()
  const folder = temporaryFolder()
  await app.register(heddle, { engine, modelName: 'heddle-tiny', folders: { data: folder, adapters: folder } })
  return { app, client: clientOf({ url: await app.listen() }) }
}

/** The engine; but where it may write as it likes, it writes what it is told to. */
function scripted(engine: Engine, texts: readonly string[]): Engine & { readonly prompts: string[] } {
  const prompts: string[] = []
  let next = 0
  async function* script(text: string): AsyncGenerator<GeneratedToken, void, void> {
    const { tokenizer } = engine.model
    const stream = tokenizer.decodeStream()
    for (const token of await tokenizer.encode(text, { addSpecialTokens: false }))
      yield { index: 0, token, text: await stream.push(token) }
    yield { index: 0, token: tokenizer.eosTokenIds[0]!, text: await stream.flush(), finishReason: 'stop' }
  }
  return new Proxy(engine, {
    get(target, name) {
      if (name === 'prompts') return prompts
      if (name === 'generateTokens')
        return async function* (...[prompt, options]: Parameters<Engine['generateTokens']>) {
          prompts.push(await engine.model.tokenizer.decode(prompt as Int32Array))
          if (options?.responseFormat) yield* engine.generateTokens(prompt, options)
          else yield* script(texts[next++] ?? '')
        }
      const value: unknown = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  }) as Engine & { readonly prompts: string[] }
}

let model: Model
let engine: Engine

test.before(async () => {
  model = await loadModel(await tinyFolder())
  engine = await createEngine(model)
})

test.after.always(async () => {
  await engine.close()
  await model.dispose()
})

const calls = (answer: OpenAI.Chat.ChatCompletion) =>
  (answer.choices[0]!.message.tool_calls as OpenAI.Chat.ChatCompletionMessageFunctionToolCall[]).map(
    (each) => each.function,
  )

test('tool_choice with a name makes a call of that function, whose arguments its schema allows', async (t) => {
  const { app, client } = await serve(engine)
  for (const temperature of [0, 1.8]) {
    const tool_choice = { type: 'function', function: { name: 'set_loom' } } as const
    const answer = await client.chat.completions.create({ ...base, tool_choice, temperature })
    t.is(answer.choices[0]!.finish_reason, 'tool_calls')
    t.is(answer.choices[0]!.message.content, null)
    const [call, ...others] = calls(answer)
    t.is(others.length, 0)
    t.is(call!.name, 'set_loom')
    t.true(isLoom(JSON.parse(call!.arguments)), call!.arguments)
    t.true(answer.usage!.completion_tokens > 5)
  }
  await app.close()
})

test('tool_choice required makes a call of one of the functions', async (t) => {
  const { app, client } = await serve(engine)
  const names = new Set<string>()
  for (let seed = 0; seed < 4; seed += 1) {
    const request = { ...base, tool_choice: 'required', temperature: 2, seed } as const
    const [call] = calls(await client.chat.completions.create(request))
    names.add(call!.name)
    if (call!.name === 'stop') t.is(call!.arguments, '{}')
    else t.true(isLoom(JSON.parse(call!.arguments)))
  }
  t.true([...names].every((name) => name === 'set_loom' || name === 'stop'))
  await app.close()
})

test('where the model begins a call of its own, it is held to the form of one', async (t) => {
  const engineOfScript = scripted(engine, ['Let me see. <tool_call> nonsense'])
  const { app, client } = await serve(engineOfScript)
  const answer = await client.chat.completions.create({ ...base, parallel_tool_calls: false })
  const { message, finish_reason } = answer.choices[0]!
  t.is(message.content, 'Let me see. ')
  t.is(finish_reason, 'tool_calls')
  const [call] = calls(answer)
  t.true(call!.name === 'stop' || isLoom(JSON.parse(call!.arguments)))
  // The call is written behind what the model wrote itself.
  t.true(engineOfScript.prompts[1]!.endsWith('assistant: Let me see. <tool_call>\n'))
  await app.close()
})

test('several calls follow each other until the model ends its turn', async (t) => {
  const engineOfScript = scripted(engine, ['<tool_call>', '\n<tool_call>', ''])
  const { app, client } = await serve(engineOfScript)
  const answer = await client.chat.completions.create(base)
  t.is(calls(answer).length, 2)
  t.is(answer.choices[0]!.finish_reason, 'tool_calls')
  t.is(answer.choices[0]!.message.content, null)
  const [first] = calls(answer)
  t.true(engineOfScript.prompts.at(-1)!.includes(first!.name))
  await app.close()
})

test('a stream tells text as it comes and each call whole, and the client puts them together', async (t) => {
  const texts = ['Well: <tool_call>', '\n<tool_call>', '']
  const once = await serve(scripted(engine, texts))
  const whole = await once.client.chat.completions.create(base)
  const again = await serve(scripted(engine, texts))
  const runner = again.client.chat.completions.stream(base)
  const streamed = await runner.finalChatCompletion()
  const shape = (answer: OpenAI.Chat.ChatCompletion) => {
    const { message, finish_reason } = answer.choices[0]!
    return [message.content, calls(answer).map(({ name, arguments: json }) => [name, json]), finish_reason]
  }
  t.deepEqual(shape(streamed), shape(whole))
  t.is(whole.choices[0]!.message.content, 'Well: ')
  await once.app.close()
  await again.app.close()
})

test('text without a call is text, also where it could have become one', async (t) => {
  const { app, client } = await serve(scripted(engine, ['Warp <tool and weft']))
  const answer = await client.chat.completions.create(base)
  t.is(answer.choices[0]!.message.content, 'Warp <tool and weft')
  t.is(answer.choices[0]!.finish_reason, 'stop')
  await app.close()
})

test('a call for which there are too few tokens left ends the answer for want of them', async (t) => {
  const { app, client } = await serve(scripted(engine, ['Well: <tool_call>']))
  const answer = await client.chat.completions.create({ ...base, max_tokens: 20 })
  t.is(answer.choices[0]!.finish_reason, 'length')
  t.is(answer.choices[0]!.message.tool_calls, undefined)
  const forced = client.chat.completions.create({ ...base, max_tokens: 5, tool_choice: 'required' })
  await t.throwsAsync(forced, { instanceOf: BadRequestError, message: /no room for a call/ })
  await app.close()
})

test('tool_choice none only tells the model nothing of them', async (t) => {
  const { app, client } = await serve(engine)
  const { tools: _, ...plain } = base
  const [none, without] = await Promise.all(
    [{ ...base, tool_choice: 'none' } as const, plain].map((request) =>
      client.chat.completions.create({ ...request, temperature: 0, max_tokens: 8 }),
    ),
  )
  t.is(none!.choices[0]!.message.content, without!.choices[0]!.message.content)
  t.is(none!.usage!.prompt_tokens, without!.usage!.prompt_tokens)
  await app.close()
})

test('the template sees tools, earlier calls and their results', async (t) => {
  const engineOfScript = scripted(engine, ['Done.'])
  const { app, client } = await serve(engineOfScript)
  const call = { id: 'c1', type: 'function', function: { name: 'set_loom', arguments: '{"width":90}' } } as const
  await client.chat.completions.create({
    ...base,
    messages: [
      ...base.messages,
      { role: 'assistant', content: null, tool_calls: [call] },
      { role: 'tool', tool_call_id: 'c1', content: 'The loom is set.' },
    ],
  })
  const [prompt] = engineOfScript.prompts
  t.regex(prompt!, /^system: Call functions as <tool_call>/)
  t.regex(prompt!, /"name": "set_loom", "description": "Sets up a loom", "parameters": \{/)
  t.regex(prompt!, /assistant: <tool_call>\n\{"name": "set_loom", "arguments": \{"width": 90\}\}\n<\/tool_call>/)
  t.regex(prompt!, /tool: The loom is set\./)
  await app.close()
})

test('of a function that is not strict, a schema that no text can be held to lets any object be', async (t) => {
  const { app, client } = await serve(engine)
  const parameters = { type: 'object', properties: { day: { type: 'string', format: 'date' } } }
  const ask = (strict: boolean) =>
    client.chat.completions.create({
      ...base,
      tools: [{ type: 'function', function: { name: 'plan', parameters, strict } }],
      tool_choice: 'required',
      max_tokens: 80,
    })
  const [call] = calls(await ask(false))
  t.is(call!.name, 'plan')
  t.is(typeof JSON.parse(call!.arguments), 'object')
  const error = await t.throwsAsync(ask(true), { instanceOf: BadRequestError, message: /"format"/ })
  t.like(error, { param: 'tools[0].function.parameters', code: 'invalid_function_parameters' })
  await app.close()
})

const refusals: readonly (readonly [string, Partial<Request>, RegExp])[] = [
  ['a choice without tools', { tools: undefined as never, tool_choice: 'required' }, /only allowed when 'tools'/],
  ['a choice of no tool', { tool_choice: { type: 'function', function: { name: 'weave' } } }, /'weave'/],
  ['a name with a space', { tools: [{ type: 'function', function: { name: 'a b' } }] }, /does not match pattern/],
  ['a name twice', { tools: [tools[0]!, tools[0]!] }, /'set_loom' is given twice/],
  ['a format of the answer besides', { response_format: { type: 'json_object' } }, /together with 'tools'/],
  ['the functions of old', { functions: [{ name: 'x' }] }, /'functions' is not supported/],
]

for (const [what, fields, message] of refusals)
  test(`refused: ${what}`, async (t) => {
    const { app, client } = await serve(engine)
    await t.throwsAsync(client.chat.completions.create({ ...base, ...fields }), {
      instanceOf: BadRequestError,
      message,
    })
    await app.close()
  })

test('a model whose template knows no tools refuses them', async (t) => {
  const template = '{% for message in messages %}{{ message.content }}{% endfor %}'
  const { client, close } = await serveTiny({ template })
  const error = await t.throwsAsync(client.chat.completions.create(base), { instanceOf: BadRequestError })
  t.like(error, { param: 'tools', code: 'unsupported_parameter' })
  await close()
})

test('templates of Llama 3 and of Mistral get calls in their own form', async (t) => {
  for (const [template, opening, key] of [
    [toolTemplate.replaceAll(/<\/?tool_call>/g, '').replaceAll('arguments"', 'parameters"'), '', 'parameters'],
    [
      toolTemplate.replaceAll('<tool_call>', '[TOOL_CALLS]').replaceAll('</tool_call>', ''),
      '[TOOL_CALLS][',
      'arguments',
    ],
  ] as const) {
    const own = await loadModel(await tinyFolder(template))
    const ownEngine = await createEngine(own)
    const engineOfScript = scripted(ownEngine, [` {"name": "anything", "${key}": 3}`])
    const { app, client } = await serve(engineOfScript)
    const [call] = calls(await client.chat.completions.create(base))
    t.true(call!.name === 'stop' || isLoom(JSON.parse(call!.arguments)))
    t.true(engineOfScript.prompts[1]!.endsWith(`assistant: ${opening}`), engineOfScript.prompts[1])
    await app.close()
    await ownEngine.close()
    await own.dispose()
  }
})

test('a call without a sign is known by its first member, and other JSON is text', (t) => {
  const through = (...pieces: string[]): [string, boolean] => {
    const filter = new CallFilter()
    const text = pieces.map((piece) => filter.push(piece)).join('')
    return [filter.stopped ? text : text + filter.flush(), filter.stopped]
  }
  t.deepEqual(through('{"na', 'me"', ' : "x"'), ['', true])
  t.deepEqual(through('\n[', '{ "name":'), ['', true])
  t.deepEqual(through('{"na', 'il": 1}'), ['{"nail": 1}', false])
  t.deepEqual(through('So: ', '{"name": 1}'), ['So: {"name": 1}', false])
  t.deepEqual(through('{"na'), ['{"na', false])
})
