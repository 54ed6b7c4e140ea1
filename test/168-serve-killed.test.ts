// Killed with SIGKILL under load: the server starts again, its jobs go on, and no adapter is half written.
import { watch } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import type OpenAI from 'openai'
import { toFile } from 'openai'
import { tinyChatFolder } from './support/chat_model.js'
import { clientOf } from './support/serve.js'
import { type ServeProcess, serveProcess } from './support/serve_process.js'
import { temporaryFolder } from './support/temporary_folder.js'

const chats = Array.from({ length: 8 }, (_, index) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: `Colour ${index}?` },
      { role: 'assistant', content: ['blue', 'green'][index % 2] },
    ],
  }),
).join('\n')

const serve = async (model: string, data: string): Promise<ServeProcess> =>
  serveProcess('--model', model, '--name', 'tiny', '--data', data, '--log-level', 'fatal')

async function train(client: OpenAI): Promise<string> {
  const file = await client.files.create({ file: await toFile(Buffer.from(chats), 'c.jsonl'), purpose: 'fine-tune' })
  const heddle = { r: 4, training: { max_steps: 12, max_length: 64, checkpoint_every: 3 } }
  return (await client.fineTuning.jobs.create({ model: 'tiny', training_file: file.id, heddle } as never)).id
}

/** Streams that go on until the server is gone. @returns once all have begun */
async function load(client: OpenAI): Promise<void> {
  const one = async (begun: () => void): Promise<void> => {
    const endless = { model: 'tiny', prompt: 'Once', max_tokens: 60, logit_bias: { 0: -100 }, stream: true } as const
    for (;;) for await (const _ of await client.completions.create(endless)) begun()
  }
  await Promise.all(Array.from({ length: 6 }, () => new Promise<void>((begun) => one(begun).catch(() => {}))))
}

/** The end of the job, whatever became of it. */
async function over(client: OpenAI, id: string): Promise<OpenAI.FineTuning.FineTuningJob> {
  const events = await client.get<AsyncIterable<unknown>>(`/fine_tuning/jobs/${id}/events`, {
    query: { stream: true },
    stream: true,
  } as never)
  for await (const _ of events);
  return client.fineTuning.jobs.retrieve(id)
}

/** Waits for a name in a folder. */
const appears = (folder: string, pattern: RegExp): Promise<void> =>
  new Promise((resolve) => {
    const watcher = watch(folder, (_, name) => {
      if (!pattern.test(name ?? '')) return
      watcher.close()
      resolve()
    })
  })

async function kill({ child, ended }: ServeProcess): Promise<void> {
  child.kill('SIGKILL')
  await ended
}

/** When the server is killed: changes in the folder of adapters. */
const moments: Readonly<Record<string, RegExp>> = {
  'while an adapter comes to its place': /^\.ft:.*\.tmp$/,
  'when an adapter has come to its place': /^ft:/,
}

for (const [moment, change] of Object.entries(moments))
  test.serial(`killed under load ${moment}, it serves and trains again`, async (t) => {
    const [model, data] = [await tinyChatFolder(), temporaryFolder()]
    const killed = await serve(model, data)
    const client = clientOf(killed)
    await load(client)
    const id = await train(client)
    await appears(join(data, 'adapters'), change)
    await kill(killed)

    const again = await serve(model, data)
    await load(clientOf(again))
    const { status, fine_tuned_model: name } = await over(clientOf(again), id)
    t.is(status, 'succeeded')
    t.deepEqual(await readdir(join(data, 'adapters')), [name!])
    const { choices } = await clientOf(again).completions.create({ model: name!, prompt: 'Once', max_tokens: 3 })
    t.is(choices.length, 1)
    again.child.kill('SIGTERM')
    t.is((await again.ended).code, 0)
    t.deepEqual(await readdir(join(data, 'jobs')), [])
  })
