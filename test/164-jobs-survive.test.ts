// Jobs outlive their server: killed or told to end, it is started again and the result is the same, byte for byte.
import { randomUUID } from 'node:crypto'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { getPriority, setPriority } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import type OpenAI from 'openai'
import { toFile } from 'openai'
import { loadDriver, openDatabase } from '../lib/serve/jobs/database.js'
import { startServer } from '../lib/serve/server.js'
import { tinyChatFolder } from './support/chat_model.js'
import { clientOf } from './support/serve.js'
import { type ServeProcess, serveProcess } from './support/serve_process.js'
import { temporaryFolder } from './support/temporary_folder.js'

const chats = Array.from({ length: 12 }, (_, i) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: `Colour ${i}?` },
      { role: 'assistant', content: ['blue', 'green', 'red'][i % 3] },
    ],
  }),
).join('\n')

const serve = (model: string, data: string): Promise<ServeProcess> =>
  serveProcess('--model', model, '--name', 'tiny', '--data', data, '--log-level', 'fatal')

async function create(client: OpenAI, { steps = 60, checkpointEvery = 2, method = 'lora' } = {}): Promise<string> {
  const file = await client.files.create({ file: await toFile(Buffer.from(chats), 'c.jsonl'), purpose: 'fine-tune' })
  const job = await client.fineTuning.jobs.create({
    model: 'tiny',
    training_file: file.id,
    seed: 7,
    hyperparameters: { learning_rate_multiplier: 50 },
    heddle: {
      method,
      r: 4,
      lora_dropout: 0.1,
      training: { max_steps: steps, max_length: 64, checkpoint_every: checkpointEvery },
    },
  } as never)
  return job.id
}

interface Metrics {
  readonly step: number
  readonly train_loss: number
}

/** The steps of a job as they come. */
async function* steps(client: OpenAI, id: string): AsyncGenerator<Metrics, void, void> {
  const events = await client.get<AsyncIterable<OpenAI.FineTuning.FineTuningJobEvent>>(
    `/fine_tuning/jobs/${id}/events`,
    { query: { stream: true }, stream: true } as never,
  )
  for await (const { type, data } of events) if (type === 'metrics') yield data as Metrics
}

async function lossesOf(client: OpenAI, id: string): Promise<Metrics[]> {
  const losses: Metrics[] = []
  for await (const { step, train_loss } of steps(client, id)) losses.push({ step, train_loss })
  return losses
}

const adapterBytes = async (data: string, client: OpenAI, id: string): Promise<Buffer> => {
  const { fine_tuned_model, error } = await client.fineTuning.jobs.retrieve(id)
  if (fine_tuned_model === null) throw new Error(JSON.stringify(error))
  return readFile(join(data, 'adapters', fine_tuned_model, 'adapter_model.safetensors'))
}

/** Texts that a server is busy with, whose clients do not mind how they end. */
const busyWith = (client: OpenAI): Promise<unknown> =>
  Promise.allSettled(
    Array.from({ length: 8 }, async () => {
      const messages = [{ role: 'user' as const, content: 'Colour?' }]
      for await (const _ of await client.chat.completions.create({ model: 'tiny', messages, stream: true }));
    }),
  )

/** Every adapter that the next server will find has its weights to the last byte. */
async function expectWhole(t: ExecutionContext, data: string, bytes: Buffer): Promise<void> {
  for (const name of await readdir(join(data, 'adapters')))
    if (!name.startsWith('.'))
      t.deepEqual(await readFile(join(data, 'adapters', name, 'adapter_model.safetensors')), bytes)
}

async function end({ child, ended }: ServeProcess, signal: NodeJS.Signals): Promise<void> {
  child.kill(signal)
  await ended
}

test('a server that is killed again and again under load ends with the adapter of one that was not', async (t) => {
  const model = await tinyChatFolder()
  const whole = temporaryFolder()
  const undisturbed = await startServer({ model, modelName: 'tiny', data: whole, port: 0, logger: false })
  // One that learns from the data how to begin must begin in the same way each time.
  const method = 'eva'
  const first = await create(clientOf(undisturbed), { method })
  const expected = await lossesOf(clientOf(undisturbed), first)
  const bytes = await adapterBytes(whole, clientOf(undisturbed), first)
  await undisturbed.close()
  t.is(expected.length, 60)

  const data = temporaryFolder()
  let server = await serve(model, data)
  const id = await create(clientOf(server), { method })
  const waiting = await create(clientOf(server), { steps: 2 })
  // After the last step the adapter is on its way to its place.
  for (const killAfter of [7, 23, 60]) {
    const busy = busyWith(clientOf(server))
    for await (const { step } of steps(clientOf(server), id)) if (step >= killAfter) break
    await end(server, 'SIGKILL')
    await busy
    await expectWhole(t, data, bytes)
    server = await serve(model, data)
  }
  const client = clientOf(server)
  t.deepEqual(
    (await lossesOf(client, id)).toSorted((a, b) => a.step - b.step),
    expected,
  )
  t.deepEqual(await adapterBytes(data, client, id), bytes)
  const events = await client.fineTuning.jobs.listEvents(id, { limit: 100 })
  t.true(events.data.filter(({ message }) => message.includes('goes on from its last checkpoint')).length >= 2)
  t.is((await lossesOf(client, waiting)).length, 2)
  await end(server, 'SIGTERM')
  t.deepEqual((await readdir(join(data, 'adapters'))).length, 2)
  t.deepEqual(await readdir(join(data, 'jobs')), [])
})

test('told to end, a server lets the job write a checkpoint and the next one goes on from there', async (t) => {
  const [model, data] = [await tinyChatFolder(), temporaryFolder()]
  const first = await serve(model, data)
  // No checkpoint is due while it runs.
  const id = await create(clientOf(first), { steps: 100_000, checkpointEvery: 100_000 })
  for await (const { step } of steps(clientOf(first), id)) if (step === 5) break
  await end(first, 'SIGTERM')
  const folder = join(data, 'jobs', id)
  const [checkpoint, ...others] = await readdir(join(folder, 'checkpoints'))
  t.deepEqual(others, [])
  const course = await readFile(join(folder, 'metrics.jsonl'), 'utf8')
  const done = course.trim().split('\n').length
  t.is(checkpoint, `step-${String(done).padStart(8, '0')}`)

  const second = await serve(model, data)
  for await (const { step } of steps(clientOf(second), id)) if (step > done) break
  await end(second, 'SIGKILL')
  // A step that is done again takes another time, which is part of its line.
  t.true((await readFile(join(folder, 'metrics.jsonl'), 'utf8')).startsWith(course))
})

test('killed between the adapter and the word that it is there, a job does not give it twice', async (t) => {
  const [model, data] = [await tinyChatFolder(), temporaryFolder()]
  const first = await startServer({ model, modelName: 'tiny', data, port: 0, logger: false })
  const id = await create(clientOf(first), { steps: 3 })
  await lossesOf(clientOf(first), id)
  const bytes = await adapterBytes(data, clientOf(first), id)
  await first.close()
  const database = openDatabase(await loadDriver(), join(data, 'jobs.sqlite'))
  database.exec("UPDATE jobs SET status = 'running', fine_tuned_model = NULL, finished_at = NULL")
  database.close()
  const second = await startServer({ model, modelName: 'tiny', data, port: 0, logger: false })
  t.is((await lossesOf(clientOf(second), id)).length, 3)
  t.deepEqual(await adapterBytes(data, clientOf(second), id), bytes)
  await second.close()
  t.is((await readdir(join(data, 'adapters'))).length, 1)
})

test('a job waits for a server with its model', async (t) => {
  const [model, other, data] = [await tinyChatFolder(), await tinyChatFolder(), temporaryFolder()]
  const serving = (source: string) => startServer({ model: source, modelName: 'tiny', data, port: 0, logger: false })
  const first = await serving(model)
  const id = await create(clientOf(first), { steps: 1000 })
  await first.close()
  const second = await serving(other)
  t.is((await clientOf(second).fineTuning.jobs.retrieve(id)).status, 'queued')
  const own = await create(clientOf(second), { steps: 2 })
  t.is((await lossesOf(clientOf(second), own)).length, 2)
  t.is((await clientOf(second).fineTuning.jobs.retrieve(id)).status, 'queued')
  await second.close()
  const third = await serving(model)
  for await (const _ of steps(clientOf(third), id)) break
  t.is((await clientOf(third).fineTuning.jobs.cancel(id)).status, 'cancelled')
  await third.close()
})

/** Processes that train, of a server that was started with this in its environment. */
async function workersOf(mark: string): Promise<number[]> {
  const read = (pid: string, name: string): Promise<string> =>
    readFile(join('/proc', pid, name), 'utf8').catch(() => '')
  const workers: number[] = []
  for (const pid of await readdir('/proc'))
    if ((await read(pid, 'cmdline')).includes('jobs/worker.js') && (await read(pid, 'environ')).includes(mark))
      workers.push(Number(pid))
  return workers
}

/** A server that can be told from others by its environment. */
async function marked(): Promise<{ readonly server: ServeProcess; readonly mark: string }> {
  const model = await tinyChatFolder()
  const mark = randomUUID()
  process.env.HEDDLE_TEST_MARK = mark
  const starting = serve(model, temporaryFolder())
  delete process.env.HEDDLE_TEST_MARK
  return { server: await starting, mark }
}

const onLinux = process.platform === 'linux' ? test : test.skip

onLinux('a process that trains ends by itself when its server is gone', async (t) => {
  const { server, mark } = await marked()
  // Nicer than the process that trains would be by itself.
  setPriority(server.child.pid!, 15)
  const id = await create(clientOf(server), { steps: 100_000 })
  for await (const _ of steps(clientOf(server), id)) break
  const [worker, ...others] = await workersOf(mark)
  t.deepEqual([getPriority(worker), others.length], [15, 0])
  await end(server, 'SIGKILL')
  while ((await workersOf(mark)).length > 0) await turn()
})

onLinux('a process that trains and is killed takes its job with it, and nothing else', async (t) => {
  const { server, mark } = await marked()
  const id = await create(clientOf(server), { steps: 100_000 })
  const next = await create(clientOf(server), { steps: 2 })
  for await (const _ of steps(clientOf(server), id)) break
  for (const pid of await workersOf(mark)) process.kill(pid, 'SIGKILL')
  t.is((await lossesOf(clientOf(server), next)).length, 2)
  const { status, error } = await clientOf(server).fineTuning.jobs.retrieve(id)
  t.is(status, 'failed')
  t.deepEqual(error, { code: 'server_error', message: 'The training process ended unexpectedly.', param: null })
  await end(server, 'SIGTERM')
})

async function failureOf(data: string): Promise<unknown> {
  const server = await startServer({ model: await tinyChatFolder(), data, port: 0, logger: false })
  await server.close()
  return undefined
}

const leftovers = [
  ['files', '.file-1.tmp'],
  ['files', 'file-1.jsonl'],
  ['adapters', '.ft:tiny::1.tmp/adapter_config.json'],
  ['jobs', 'ftjob-1/metrics.jsonl'],
] as const

test('what a killed server left half-written is swept', async (t) => {
  const data = temporaryFolder()
  for (const [folder, name] of leftovers) {
    await mkdir(join(data, folder, name, '..'), { recursive: true })
    await writeFile(join(data, folder, name), 'half')
  }
  await mkdir(join(data, 'adapters', 'kept'))
  await failureOf(data)
  t.deepEqual(await readdir(join(data, 'files')), [])
  t.deepEqual(await readdir(join(data, 'jobs')), [])
  t.deepEqual(await readdir(join(data, 'adapters')), ['kept'])
})

test('a broken database, one of another version and one that another server has are refused', async (t: ExecutionContext) => {
  const path = (data: string): string => join(data, 'jobs.sqlite')
  const broken = temporaryFolder()
  await writeFile(path(broken), 'no database at all, but long enough to be looked at. '.repeat(100))
  await t.throwsAsync(failureOf(broken), { code: 'ERR_HEDDLE_FORMAT', message: /jobs\.sqlite.*Move it away/ })

  const driver = await loadDriver()
  const later = temporaryFolder()
  const other = new driver(path(later))
  other.pragma('user_version = 2')
  other.close()
  await t.throwsAsync(failureOf(later), { code: 'ERR_HEDDLE_FORMAT', message: /got version 2/ })

  const taken = temporaryFolder()
  const connection = openDatabase(driver, path(taken))
  await t.throwsAsync(failureOf(taken), { code: 'ERR_HEDDLE_BUSY', message: /another server/ })
  connection.close()

  const torn = temporaryFolder()
  openDatabase(driver, path(torn)).close()
  const bytes = await readFile(path(torn))
  await writeFile(path(torn), bytes.fill(7, 4096, 8192))
  await t.throwsAsync(failureOf(torn), { code: 'ERR_HEDDLE_FORMAT' })
})
