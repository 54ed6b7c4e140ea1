/**
 * A model and two adapters behind OpenAI's HTTP API, asked with OpenAI's own client; then the same routes as a plugin of an
 * app that has pages of its own.
 *
 *   node dist/examples/serve/main.js [model] [--ci]     a folder, .gguf or hub id; default: the small model that ships with Heddle
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import fastify from 'fastify'
import OpenAI from 'openai'
import { adamw, createEngine, loadModel, lora, train } from '../../lib/index.js'
import { heddle, startServer } from '../../lib/serve/index.js'

const isCheck = process.argv.includes('--ci')
const given = process.argv.slice(2).find((argument) => !argument.startsWith('--'))
const source = given ?? fileURLToPath(new URL('../../../models/heddle-tiny', import.meta.url))
const folder = await mkdtemp(join(tmpdir(), 'heddle-serve-'))
const adapters = join(folder, 'adapters')
const model = await loadModel(source)

// Each adapter is taught a sentence. The name of its folder is the name that it is asked for by.
const sentences = {
  sea: 'It was the whale that rose beside the boat.\n',
  house: 'It was the speaker who called the house to order.\n',
}
for (const [name, sentence] of Object.entries(sentences)) {
  const data = join(folder, `${name}.txt`)
  await writeFile(data, sentence.repeat(24))
  const adapter = await model.attach(lora({ r: 4, target_modules: 'all-linear' }))
  const options = { data, adapter, epochs: isCheck ? 10 : 30, maxLength: 64, optimizer: adamw({ lr: 2e-2 }) }
  for await (const { index, total, loss } of train(model, options))
    if (index === total) console.log(`${name}: ${total} steps, last loss ${loss.toFixed(2)}`)
  await adapter.save(join(adapters, name))
}

// A server of its own. `model` stays ours; given a name or a path, the server loads it itself.
const server = await startServer({
  model,
  modelName: 'base',
  data: folder,
  adapters,
  port: isCheck ? 0 : 8000,
  logger: { level: 'warn' },
  limits: { newTokens: 200 },
})
console.log(`Listening on ${server.url}`)

const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none' })
const names: string[] = []
for await (const { id } of client.models.list()) names.push(id)
console.log('models:', names.join(', '))

// All at the same time, each with an adapter of its own: they share every pass over the weights.
const answers = await Promise.all(
  names.map((name) => client.completions.create({ model: name, prompt: 'It was the', max_tokens: 8, temperature: 0 })),
)
for (const { model: name, choices } of answers) console.log(`${name}:${choices[0]!.text}`)

const stream = await client.chat.completions.create({
  model: 'base',
  messages: [{ role: 'user', content: 'What shall we weave today?' }],
  max_tokens: 24,
  seed: 1,
  stream: true,
})
for await (const { choices } of stream) process.stdout.write(choices[0]?.delta.content ?? '')

// Whatever the temperature, the answer is of the form that the schema says.
const schema = {
  type: 'object',
  properties: { cloth: { enum: ['linen', 'wool'] }, metres: { type: 'integer', minimum: 1, maximum: 99 } },
  required: ['cloth', 'metres'],
  additionalProperties: false,
}
const { choices } = await client.chat.completions.create({
  model: 'base',
  messages: [{ role: 'user', content: 'Linen, three metres, please.' }],
  response_format: { type: 'json_schema', json_schema: { name: 'order', schema } },
})
const order = JSON.parse(choices[0]!.message.content!) as { readonly cloth: string; readonly metres: number }
console.log('\norder:', order)
await server.close()

// The same routes in an app that there is already, beside one that asks the engine itself.
const engine = await createEngine(model, { adapters })
const app = fastify({ forceCloseConnections: 'idle' })
app.get('/motto', async () => {
  let text = ''
  for await (const piece of engine.generate('Call me', { chat: false, maxTokens: 8, adapter: 'sea' })) text += piece
  return { text }
})
await app.register(heddle, { prefix: '/llm', engine, modelName: 'base', folders: { data: folder, adapters } })
const url = await app.listen({ port: 0 })
console.log('motto:', (await (await fetch(`${url}/motto`)).json()) as unknown)
const listed = (await (await fetch(`${url}/llm/v1/models`)).json()) as { readonly data: readonly unknown[] }
const texts = new Set(answers.map((answer) => answer.choices[0]!.text))
if (isCheck && (texts.size !== 3 || order.metres < 1 || listed.data.length !== 3)) process.exitCode = 1

await app.close()
await engine.close()
await model.dispose()
await rm(folder, { recursive: true })
