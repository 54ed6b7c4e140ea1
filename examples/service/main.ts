/**
 * An HTTP service over one model: answers are streamed, each request may name an adapter, and a client that hangs up
 * stops its answer.
 *
 *   node dist/examples/service/main.js [model] [name=adapter-folder …]
 *   curl -N localhost:8080/generate -d '{"prompt": "How do I reset my password?", "adapter": "support"}'
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text as readAll } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { type Adapter, HeddleError, loadModel } from '../../lib/index.js'

const file = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
const isCheck = process.argv.includes('--ci')
const [source = file('models/heddle-tiny'), ...adapterArguments] = process.argv
  .slice(2)
  .filter((argument) => !argument.startsWith('--'))

const model = await loadModel(source)
const adapters = new Map<string, Adapter>()
for (const argument of adapterArguments) {
  const [name, folder] = argument.split('=') as [string, string]
  adapters.set(name, await model.loadAdapter(folder))
}

interface Question {
  readonly prompt: string
  readonly adapter?: string
}

const server = createServer((request, response) => {
  if (request.method === 'GET' && request.url === '/healthz') response.end('ok\n')
  else if (request.method === 'POST' && request.url === '/generate') void generate(request, response)
  else response.writeHead(404).end('POST /generate or GET /healthz\n')
})

async function generate(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const gone = new AbortController()
  response.on('close', () => gone.abort())
  try {
    const { prompt, adapter: name } = JSON.parse(await readAll(request)) as Question
    const adapter = name === undefined ? undefined : adapters.get(name)
    if (name !== undefined && !adapter) return void response.writeHead(404).end(`There is no adapter "${name}".\n`)
    response.writeHead(200, { 'content-type': 'text/plain; charset=utf-8' })
    for await (const piece of model.generate(prompt, { adapter, maxTokens: 60, signal: gone.signal }))
      response.write(piece)
    response.end('\n')
  } catch (error) {
    if (gone.signal.aborted) return
    const status = error instanceof SyntaxError || isWrongUse(error) ? 400 : 500
    if (!response.headersSent) response.writeHead(status)
    response.end(`${error instanceof Error ? error.message : String(error)}\n`)
  }
}

const isWrongUse = (error: unknown): boolean => error instanceof HeddleError && error.code === 'ERR_HEDDLE_ARGUMENT'

async function shutDown(): Promise<void> {
  server.close()
  server.closeAllConnections()
  await model.dispose()
}

process.once('SIGTERM', () => void shutDown())
process.once('SIGINT', () => void shutDown())

await new Promise<void>((resolve) => server.listen(isCheck ? 0 : 8080, '127.0.0.1', resolve))
const { port } = server.address() as AddressInfo
console.log(`Listening on http://127.0.0.1:${port}`)

if (isCheck) {
  const ask = (body: Question) =>
    fetch(`http://127.0.0.1:${port}/generate`, { method: 'POST', body: JSON.stringify(body) })
  const answers = await Promise.all([ask({ prompt: 'Call me' }), ask({ prompt: 'The whale' })])
  for (const answer of answers) console.log(answer.status, await answer.text())
  const refused = await ask({ prompt: 'Call me', adapter: 'nobody' })
  if (answers.some(({ status }) => status !== 200) || refused.status !== 404) process.exitCode = 1
  await shutDown()
}
