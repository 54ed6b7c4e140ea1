// Fine-tuning over HTTP as the official client does it: upload, job, events, and a chat with the result.
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import test, { type ExecutionContext } from 'ava'
import type OpenAI from 'openai'
import { APIError, toFile } from 'openai'
import type { FineTuningJob, JobCreateParams } from 'openai/resources/fine-tuning/jobs/jobs'
import { loadDriver } from '../lib/serve/jobs/database.js'
import { type ServerOptions, startServer } from '../lib/serve/server.js'
import { tinyChatFolder } from './support/chat_model.js'
import { jobTranscripts } from './support/job_transcripts.js'
import { RawClient } from './support/raw_client.js'
import { clientOf, serveTiny } from './support/serve.js'
import { serveProcess } from './support/serve_process.js'
import { temporaryFolder } from './support/temporary_folder.js'

interface Client {
  readonly client: OpenAI
  readonly data: string
  readonly close: () => Promise<void>
}

async function serve(t: ExecutionContext, options: Partial<ServerOptions> = {}): Promise<Client> {
  const data = temporaryFolder()
  const server = await startServer({
    model: await tinyChatFolder(),
    modelName: 'tiny',
    data,
    port: 0,
    logger: false,
    ...options,
  })
  let closed: Promise<void> | undefined
  const close = (): Promise<void> => (closed ??= server.close(AbortSignal.timeout(1)))
  t.teardown(close)
  return { client: clientOf(server), data, close }
}

/** Conversations that all end with the same word. */
const chats = (count = 8, word = 'blue'): string =>
  Array.from({ length: count }, (_, i) =>
    JSON.stringify({
      messages: [
        { role: 'user', content: `Colour ${i}?` },
        { role: 'assistant', content: word },
      ],
    }),
  ).join('\n')

const upload = async (client: OpenAI, text = chats(), name = 'colours.jsonl'): Promise<string> =>
  (await client.files.create({ file: await toFile(Buffer.from(text), name), purpose: 'fine-tune' })).id

/** A job with fields that only this server has. */
type Job = JobCreateParams & { readonly heddle?: object }

const create = (client: OpenAI, job: Partial<Job> & Pick<Job, 'training_file'>): Promise<FineTuningJob> =>
  client.fineTuning.jobs.create({ model: 'tiny', seed: 7, ...job } as Job)

/** Its events as they come, until it is over. */
async function* live(
  client: OpenAI,
  id: string,
  query = {},
): AsyncGenerator<OpenAI.FineTuning.FineTuningJobEvent, void, void> {
  yield* await client.get<AsyncIterable<OpenAI.FineTuning.FineTuningJobEvent>>(`/fine_tuning/jobs/${id}/events`, {
    query: { stream: true, ...query },
    stream: true,
  } as never)
}

async function ended(client: OpenAI, id: string): Promise<FineTuningJob> {
  for await (const _ of live(client, id));
  return client.fineTuning.jobs.retrieve(id)
}

/** With a status and a message, in OpenAI's form. */
async function refused(t: ExecutionContext, work: Promise<unknown>, status: number, message: RegExp): Promise<void> {
  const refusal = await t.throwsAsync<APIError>(work, { instanceOf: APIError, message })
  t.is(refusal?.status, status)
  t.deepEqual(Object.keys(refusal!.error as object).toSorted(), ['code', 'message', 'param', 'type'])
  t.is(refusal!.type, 'invalid_request_error')
}

test('a file comes back as it was sent, under an id of the server', async (t) => {
  const { client, data } = await serve(t)
  const text = chats()
  const file = await client.files.create({
    file: await toFile(Buffer.from(text), '../../etc/pass\u0007wd.jsonl'),
    purpose: 'fine-tune',
  })
  t.like(file, { object: 'file', bytes: Buffer.byteLength(text), filename: 'passwd.jsonl', purpose: 'fine-tune' })
  t.deepEqual(await client.files.retrieve(file.id), file)
  t.is(await (await client.files.content(file.id)).text(), text)
  t.deepEqual(await readdir(join(data, 'files')), [`${file.id}.jsonl`])
  t.true((await client.files.delete(file.id)).deleted)
  t.deepEqual(await readdir(join(data, 'files')), [])
  await refused(t, client.files.retrieve(file.id), 404, /No such File object/)
})

test('files that are too large, empty, of another kind or for another purpose leave nothing', async (t) => {
  const { client, data } = await serve(t, { uploads: { fileBytes: 1000, totalBytes: 1500 } })
  await refused(t, upload(client, 'x'.repeat(1001)), 413, /larger than 1000 bytes/)
  await refused(t, upload(client, ''), 400, /empty/)
  await refused(t, upload(client, chats(2), 'a.csv'), 400, /\.jsonl/)
  const file = await toFile(Buffer.from(chats(2)), 'a.jsonl')
  await refused(t, client.files.create({ file, purpose: 'vision' }), 400, /Supported values are: 'fine-tune'/)
  const expires_after = { anchor: 'created_at', seconds: 3600 } as const
  await refused(t, client.files.create({ file, purpose: 'fine-tune', expires_after }), 400, /Unknown parameter/)
  await upload(client, 'x'.repeat(1000))
  await refused(t, upload(client, 'x'.repeat(501)), 413, /All files together/)
  t.is((await readdir(join(data, 'files'))).length, 1)
})

test('forms that cannot be read are refused as such', async (t) => {
  const { client } = await serve(t)
  const head = '--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
  const text = '--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n'
  for (const [type, body, message] of [
    ['multipart/form-data', 'abc', /Boundary not found/],
    ['multipart/form-data; boundary=x', 'abc', /Unexpected end of multipart data/],
    ['multipart/form-data; boundary=x', `${head}abc`, /unexpected end of multipart data/],
    ['multipart/form-data; boundary=x', text, /Invalid type for 'file': expected a file/],
    ['application/json', '{}', /Expected a multipart/],
  ] as const)
    await refused(
      t,
      client.post('/files', { headers: { 'content-type': type }, body: Buffer.from(body) }),
      400,
      message,
    )
})

test('files that come at the same time do not get more room than there is', async (t) => {
  const { client, data } = await serve(t, { uploads: { totalBytes: 10_000 } })
  const several = Array.from({ length: 6 }, () => upload(client, 'x'.repeat(4000)))
  const outcomes = await Promise.allSettled(several)
  const kept = outcomes.filter(({ status }) => status === 'fulfilled').length
  t.true(kept <= 2, `${kept}`)
  t.is((await readdir(join(data, 'files'))).length, kept)
  await upload(client, 'x'.repeat(10_000 - 4000 * kept))
})

test('a client that hangs up in the middle of a file leaves nothing of it', async (t) => {
  const { client, data } = await serve(t)
  const raw = await RawClient.connect(client.baseURL)
  const head = '--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
  await raw.send(`POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n`)
  await raw.send(`content-type: multipart/form-data; boundary=b\r\n\r\n${head}${'x'.repeat(1000)}`)
  const names = (): Promise<string[]> => readdir(join(data, 'files'))
  while ((await names()).length === 0) await turn()
  raw.socket.destroy()
  while ((await names()).length > 0) await turn()
  t.deepEqual((await client.files.list()).data, [])
})

test('an id is looked up, never followed', async (t) => {
  const { client } = await serve(t)
  for (const id of ['../../etc/passwd', '..', '.', 'file-%2e%2e', '\u0000'].map(encodeURIComponent))
    await t.throwsAsync(client.get(`/files/${id}/content`), { instanceOf: APIError, message: /404|400/ })
})

test('files and jobs are listed in pages', async (t) => {
  const { client } = await serve(t)
  const files = [await upload(client), await upload(client), await upload(client)]
  const listed = async (query: object): Promise<string[]> => {
    const ids: string[] = []
    for await (const { id } of client.files.list(query)) ids.push(id)
    return ids
  }
  t.deepEqual(await listed({ limit: 2 }), files.toReversed())
  t.deepEqual(await listed({ limit: 1, order: 'asc' }), files)
  t.deepEqual(await listed({ purpose: 'batch' }), [])
  await refused(t, client.files.list({ after: 'file-none', order: 'asc' }), 400, /Invalid 'after'/)
  const jobs: string[] = []
  for (let i = 0; i < 3; i += 1) jobs.push((await create(client, { training_file: files[0]! })).id)
  const first = await client.fineTuning.jobs.list({ limit: 2 })
  t.true(first.has_more)
  t.deepEqual(
    first.data.map(({ id }) => id),
    [jobs[2], jobs[1]],
  )
  t.deepEqual(
    (await first.getNextPage()).data.map(({ id }) => id),
    [jobs[0]],
  )
  await refused(t, client.fineTuning.jobs.list({ limit: 0 }), 400, /limit/)
  for (const id of jobs.toReversed()) await client.fineTuning.jobs.cancel(id)
})

test('a job from its data to a chat with the result', async (t) => {
  const { client, data, close } = await serve(t)
  const job = await create(client, {
    training_file: await upload(client),
    validation_file: await upload(client, chats(2)),
    suffix: 'colours',
    method: {
      type: 'supervised',
      supervised: { hyperparameters: { n_epochs: 20, batch_size: 4, learning_rate_multiplier: 100 } },
    },
    metadata: { owner: 'me' },
    heddle: { r: 8, training: { max_length: 64 } },
  })
  t.like(job, {
    object: 'fine_tuning.job',
    model: 'tiny',
    status: 'queued',
    seed: 7,
    fine_tuned_model: null,
    hyperparameters: { n_epochs: 20, batch_size: 4, learning_rate_multiplier: 100 },
    metadata: { owner: 'me' },
    heddle: { method: 'lora', r: 8 },
  })
  const messages: string[] = []
  const losses: number[] = []
  for await (const { message, type, data: step } of live(client, job.id)) {
    if (type === 'metrics') losses.push((step as { readonly train_loss: number }).train_loss)
    else messages.push(message)
  }
  const done = await client.fineTuning.jobs.retrieve(job.id)
  const name = `ft:tiny:colours:${job.id.slice(-10)}`
  t.like(done, { status: 'succeeded', fine_tuned_model: name, error: null })
  t.true(done.trained_tokens! > 0)
  t.deepEqual(messages, [
    `Created fine-tuning job: ${job.id}`,
    'Fine-tuning job started',
    `New fine-tuned model created: ${name}`,
    'The job has successfully completed',
  ])
  t.is(losses.length, 40)
  t.true(losses.at(-1)! < losses[0]! / 10, `${losses[0]} to ${losses.at(-1)}`)

  t.true((await client.models.list()).data.some(({ id }) => id === name))
  const ask = async (model: string): Promise<string | null> => {
    const { choices } = await client.chat.completions.create({
      model,
      messages: [{ role: 'user', content: 'Colour 3?' }],
      temperature: 0,
      max_completion_tokens: 8,
    })
    return choices[0]!.message.content
  }
  t.is(await ask(name), 'blue')
  t.not(await ask('tiny'), 'blue')

  const { data: checkpoints } = await client.fineTuning.jobs.checkpoints.list(job.id)
  t.is(checkpoints.length, 1)
  t.like(checkpoints[0], { step_number: 40, fine_tuned_model_checkpoint: name, fine_tuning_job_id: job.id })
  t.is(typeof checkpoints[0]!.metrics.valid_loss, 'number')
  await refused(t, client.fineTuning.jobs.cancel(job.id), 400, /already succeeded/)
  await refused(t, create(client, { model: name, training_file: job.training_file }), 400, /is an adapter/)
  t.deepEqual(await readdir(join(data, 'adapters')), [name])
  await refused(t, client.models.delete('tiny'), 404, /does not exist/)
  t.true((await client.models.delete(name)).deleted)
  await refused(t, ask(name), 404, /does not exist/)
  await close()
  t.deepEqual(await readdir(join(data, 'jobs')), [])
  t.deepEqual(await readdir(join(data, 'adapters')), [])
})

test('preferences: a job of method dpo raises what is preferred, from what the model alone would say', async (t) => {
  const { client } = await serve(t)
  const messages = (role: string, content: string) => [{ role, content }]
  const pairs = Array.from({ length: 8 }, (_, i) =>
    JSON.stringify({
      input: { messages: messages('user', `Colour ${i}?`) },
      preferred_output: messages('assistant', 'blue'),
      non_preferred_output: messages('assistant', 'red'),
    }),
  ).join('\n')
  const job = await create(client, {
    training_file: await upload(client, pairs, 'pairs.jsonl'),
    validation_file: await upload(client, pairs, 'held-out.jsonl'),
    method: { type: 'dpo', dpo: { hyperparameters: { beta: 0.5, n_epochs: 5, learning_rate_multiplier: 100 } } },
    heddle: { training: { max_length: 64 } },
  })
  const hyperparameters = { beta: 0.5, n_epochs: 5, batch_size: 4, learning_rate_multiplier: 100 }
  t.deepEqual(job.method, { type: 'dpo', dpo: { hyperparameters } })
  const steps: { readonly train_loss: number; readonly valid_loss?: number }[] = []
  for await (const { type, data } of live(client, job.id)) if (type === 'metrics') steps.push(data as (typeof steps)[0])
  t.is((await client.fineTuning.jobs.retrieve(job.id)).status, 'succeeded')
  t.is(steps.length, 10)
  // Before the first step, no answer is more likely than under the reference: −log σ(0).
  t.true(Math.abs(steps[0]!.train_loss - Math.log(2)) < 1e-6)
  t.true(steps.at(-1)!.valid_loss! < 0.05, `${steps.at(-1)!.valid_loss}`)
})

test('the list of events has pages, newest first', async (t) => {
  const { client } = await serve(t)
  const { id } = await create(client, {
    training_file: await upload(client),
    heddle: { training: { max_steps: 3, max_length: 64 } },
  })
  const streamed: string[] = []
  for await (const event of live(client, id)) streamed.push(event.id)
  const listed: string[] = []
  for await (const event of client.fineTuning.jobs.listEvents(id, { limit: 2 })) listed.push(event.id)
  t.deepEqual(listed, streamed.toReversed())
  t.is(listed.length, 7)
  const rest: string[] = []
  for await (const event of live(client, id, { after: streamed[4] })) rest.push(event.id)
  t.deepEqual(rest, streamed.slice(5))
  await refused(t, client.fineTuning.jobs.listEvents(id, { after: 'ftevent-none' }), 400, /Invalid 'after'/)
})

test('jobs run one at a time in their order; a cancelled one ends at once and leaves nothing', async (t) => {
  const { client, data, close } = await serve(t)
  const training_file = await upload(client)
  const long = { training_file, heddle: { training: { max_steps: 100_000, max_length: 64 } } }
  const first = await create(client, long)
  const second = await create(client, { training_file, heddle: { training: { max_steps: 1, max_length: 64 } } })
  const third = await create(client, long)
  for await (const { type } of live(client, first.id)) if (type === 'metrics') break
  t.is((await client.fineTuning.jobs.retrieve(first.id)).status, 'running')
  t.is((await client.fineTuning.jobs.retrieve(second.id)).status, 'queued')
  t.is((await client.fineTuning.jobs.cancel(third.id)).status, 'cancelled')
  await refused(t, client.files.delete(training_file), 409, /is needed by the fine-tuning job/)
  t.is((await client.fineTuning.jobs.cancel(first.id)).status, 'cancelled')
  t.is((await ended(client, second.id)).status, 'succeeded')
  t.is((await client.fineTuning.jobs.retrieve(first.id)).fine_tuned_model, null)
  t.true((await client.files.delete(training_file)).deleted)
  await close()
  t.deepEqual(await readdir(join(data, 'jobs')), [])
  t.is((await readdir(join(data, 'adapters'))).length, 1)
})

test('a hundred jobs may wait; one more is told to come back', async (t) => {
  const { client } = await serve(t)
  const training_file = await upload(client)
  const job = { training_file, heddle: { training: { max_steps: 100_000, max_length: 64 } } }
  for (let i = 0; i < 101; i += 1) await create(client, job)
  const refusal = await t.throwsAsync<APIError>(create(client, job), { instanceOf: APIError, message: /wait already/ })
  t.is(refusal!.status, 429)
  t.is(refusal!.headers!.get('retry-after'), '60')
})

test('data that cannot be trained on fails the job, with the name that the client gave it', async (t) => {
  const { client, data } = await serve(t)
  for (const [text, message] of [
    [`${chats(2)}\n{"messages": [`, /wrong\.jsonl:3: .*JSON/],
    [`${chats(1)}\n\n{"other": 1}\n${chats(1)}`, /wrong\.jsonl:3: .*got the keys other/],
    ['{"messages": [{"role": "user", "content": "Hi"}]}', /wrong\.jsonl.*no message of the assistant/],
  ] as const) {
    const job = await create(client, { training_file: await upload(client, text, 'wrong.jsonl') })
    const { status, error } = await ended(client, job.id)
    t.is(status, 'failed')
    t.like(error, { code: 'invalid_training_file', param: 'training_file' })
    t.regex(error!.message, message)
    t.false(error!.message.includes(data))
  }
  const validation_file = await upload(client, '{"other": 1}', 'held-out.jsonl')
  const job = await create(client, { training_file: await upload(client), validation_file })
  t.like((await ended(client, job.id)).error, { code: 'invalid_validation_file', param: 'validation_file' })
})

test('an adapter that could not be served is refused before it is trained', async (t) => {
  const { client } = await serve(t, { engine: { memory: { adapters: 50_000 } } })
  const training_file = await upload(client)
  for (const [heddle, message] of [
    [{ method: 'ia3' }, /heddle\.method: expected a method with low-rank factors/],
    [{ target_modules: ['lm_head'] }, /heddle\.target_modules: expected the layers' linear modules.*lm_head/],
    [{ r: 64 }, /heddle\.r: expected a rank of at most \d+, for which there is memory to serve it, got 64/],
  ] as const) {
    const { error } = await ended(client, (await create(client, { training_file, heddle })).id)
    t.is(error!.code, 'invalid_hyperparameters')
    t.regex(error!.message, message)
  }
})

test('a method that begins with what the data says is shown the training file', async (t) => {
  const { client } = await serve(t)
  const training_file = await upload(client)
  for (const method of [
    { method: 's2ft', selection: 'gradient', o_ratio: 0.25, d_ratio: 0.1 },
    { method: 'lora_sb', r: 4 },
  ]) {
    const heddle = { ...method, training: { max_steps: 2, max_length: 64 } }
    const { error, fine_tuned_model } = await ended(client, (await create(client, { training_file, heddle })).id)
    t.is(error, null)
    const { choices } = await client.completions.create({ model: fine_tuned_model!, prompt: 'Colour', max_tokens: 1 })
    t.is(choices.length, 1)
  }
})

test('fields that are unknown, missing or out of range are refused with their names', async (t) => {
  const { client } = await serve(t)
  const training_file = await upload(client)
  const cases: readonly (readonly [Record<string, unknown>, RegExp])[] = [
    [{ training_file: undefined }, /Missing required parameter: 'training_file'/],
    [{ training_file: 'file-none' }, /Invalid 'training_file': no such file/],
    [{ training_file: '../../etc/passwd' }, /Invalid 'training_file': no such file/],
    [{ colour: 'blue' }, /Unknown parameter: 'colour'/],
    [{ suffix: '../x' }, /Invalid 'suffix'/],
    [{ hyperparameters: { n_epochs: 0 } }, /n_epochs/],
    [{ hyperparameters: { n_epochs: 'many' } }, /Invalid value: 'many'/],
    [{ method: { type: 'reinforcement' } }, /Supported values are: 'supervised' and 'dpo'/],
    [{ method: { type: 'supervised', supervised: { hyperparameters: { beta: 0.1 } } } }, /Unknown parameter: '.*beta'/],
    [{ heddle: { training: { max_length: 100_000 } } }, /max_length': integer above maximum value/],
    [{ metadata: Object.fromEntries(Array.from({ length: 17 }, (_, i) => [i, ''])) }, /'metadata': more than 16 pairs/],
    [{ integrations: [{ type: 'wandb' }] }, /Unsupported parameter: 'integrations'/],
    [{ heddle: { method: 'lore' } }, /Did you mean "lora"/],
    [{ heddle: { r: 0 } }, /Invalid 'heddle'/],
    [{ heddle: { rank: 8 } }, /Invalid 'heddle'/],
    [{ heddle: { training: { steps: 8 } } }, /Unknown parameter: 'heddle.training.steps'/],
  ]
  for (const [fields, message] of cases)
    await refused(t, create(client, { training_file, ...fields } as never), 400, message)
  await refused(t, create(client, { training_file, model: 'other' }), 404, /'other' does not exist/)
  await refused(t, client.fineTuning.jobs.retrieve('ftjob-none'), 404, /ftjob-none/)
  t.is((await client.fineTuning.jobs.list()).data.length, 0)
})

test('without better-sqlite3 there is an error that says what to install', async (t) => {
  await t.throwsAsync(
    loadDriver(() => Promise.reject(new Error("Cannot find package 'better-sqlite3'"))),
    { code: 'ERR_HEDDLE_IO', message: /npm install better-sqlite3/ },
  )
})

/** For the environment of a process in which a package is missing. */
function withoutPackage(name: string): string {
  const hook = `export const resolve = (name, context, next) => {
    if (name === '${name}') throw new Error('Cannot find package')
    return next(name, context)
  }`
  const script = `import { register } from 'node:module'; register(${JSON.stringify(moduleOf(hook))})`
  return `--import=${moduleOf(script)}`
}

const moduleOf = (script: string): string => `data:text/javascript,${encodeURIComponent(script)}`

test('without better-sqlite3 a server does everything but fine-tune, and says so', async (t) => {
  const model = await tinyChatFolder()
  process.env.NODE_OPTIONS = withoutPackage('better-sqlite3')
  const starting = serveProcess('--model', model, '--name', 'tiny', '--data', temporaryFolder())
  delete process.env.NODE_OPTIONS
  const { url, child, ended } = await starting
  const client = clientOf({ url })
  const messages = [{ role: 'user' as const, content: 'Colour?' }]
  t.is((await client.chat.completions.create({ model: 'tiny', messages, max_tokens: 1 })).usage!.completion_tokens, 1)
  const message = /501.*npm install better-sqlite3/
  await t.throwsAsync(client.files.list(), { message })
  await t.throwsAsync(client.files.delete('file-1'), { message })
  await t.throwsAsync(client.fineTuning.jobs.create({ model: 'tiny', training_file: 'file-1' }), { message })
  child.kill('SIGTERM')
  t.regex((await ended).stdout, /no fine-tuning/)
})

test('the wire format is byte for byte that of the transcripts (made by make_serve.ts)', async (t) => {
  const { server, close } = await serveTiny()
  t.teardown(close)
  const folder = fileURLToPath(new URL('../../test/golden/serve_jobs/', import.meta.url))
  const names: string[] = []
  for await (const [name, text] of jobTranscripts(server.url)) {
    t.is(text, await readFile(`${folder}${name}.txt`, 'utf8'), name)
    names.push(`${name}.txt`)
  }
  t.deepEqual((await readdir(folder)).toSorted(), names.toSorted())
})
