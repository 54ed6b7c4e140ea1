/** What curl sends to fine-tune heddle-tiny and to use the result, request by request, and what it gets. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { temporaryFolder } from './temporary_folder.js'
import { type Asked, exchange } from './transcripts.js'

const chats = ['floor', 'table', 'band', 'rigid heddle']
  .map((loom) => ({
    messages: [
      { role: 'user', content: `What is a ${loom} loom?` },
      { role: 'assistant', content: 'A loom.' },
    ],
  }))
  .map((row) => JSON.stringify(row))
  .join('\n')

const jobs = '/v1/fine_tuning/jobs'

/** Each with the name of its transcript, in the order in which they must be asked. */
export async function* jobTranscripts(url: string): AsyncGenerator<readonly [string, string], void, void> {
  let body = ''
  const ask = async (name: string, asked: Asked): Promise<readonly [string, string]> => {
    const { text, ...answer } = await exchange(url, asked)
    body = answer.body
    return [name, text]
  }
  const idOf = (): string => (JSON.parse(body) as { readonly id: string }).id
  const [good, bad] = [await fileOf(chats), await fileOf(`${chats}\n{"messages": [`)]

  yield ask('file-create', { path: '/v1/files', form: { purpose: 'fine-tune', file: `@${good};filename=looms.jsonl` } })
  const file = idOf()
  yield ask('file-purpose', { path: '/v1/files', form: { purpose: 'vision', file: `@${good};filename=looms.jsonl` } })
  yield ask('file-name', {
    path: '/v1/files',
    form: { purpose: 'fine-tune', file: `@${good};filename=../../etc/passwd` },
  })
  yield ask('file-not-a-form', { path: '/v1/files', body: { purpose: 'fine-tune' } })
  yield ask('files', { path: '/v1/files?limit=1' })
  yield ask('file', { path: `/v1/files/${file}` })
  yield ask('file-content', { path: `/v1/files/${file}/content` })

  const hyperparameters = { n_epochs: 2, batch_size: 2 }
  const job = { model: 'heddle-tiny', training_file: file, seed: 1, suffix: 'looms' }
  yield ask('job-create', {
    path: jobs,
    body: { ...job, validation_file: file, method: { type: 'supervised', supervised: { hyperparameters } } },
  })
  const id = idOf()
  yield ask('job-events-stream', { path: `${jobs}/${id}/events?stream=true` })
  yield ask('job-events', { path: `${jobs}/${id}/events?limit=2` })
  yield ask('job', { path: `${jobs}/${id}` })
  const { fine_tuned_model: model } = JSON.parse(body) as { readonly fine_tuned_model: string }
  yield ask('job-checkpoints', { path: `${jobs}/${id}/checkpoints` })
  yield ask('jobs', { path: `${jobs}?limit=1` })
  yield ask('job-cancel-too-late', { path: `${jobs}/${id}/cancel`, method: 'POST' })
  yield ask('model-delete', { path: `/v1/models/${model}`, method: 'DELETE' })

  yield ask('job-hyperparameters', { path: jobs, body: { ...job, hyperparameters: { n_epochs: 0 } } })
  yield ask('job-unknown-model', { path: jobs, body: { ...job, model: 'gpt-4o-mini' } })
  yield ask('job-unknown-file', { path: jobs, body: { ...job, training_file: '../../etc/passwd' } })
  yield ask('job-unknown', { path: `${jobs}/ftjob-1` })

  const pairs = { type: 'dpo', dpo: { hyperparameters: { beta: 0.2, n_epochs: 100 } } }
  yield ask('job-create-dpo', { path: jobs, body: { ...job, method: pairs, metadata: { loom: 'floor' } } })
  const other = idOf()
  yield ask('file-delete-in-use', { path: `/v1/files/${file}`, method: 'DELETE' })
  yield ask('job-cancel', { path: `${jobs}/${other}/cancel`, method: 'POST' })
  yield ask('file-delete', { path: `/v1/files/${file}`, method: 'DELETE' })

  await ask('', { path: '/v1/files', form: { purpose: 'fine-tune', file: `@${bad};filename=bad.jsonl` } })
  await ask('', { path: jobs, body: { ...job, training_file: idOf() } })
  const failing = idOf()
  yield ask('job-failed-events-stream', { path: `${jobs}/${failing}/events?stream=true` })
  yield ask('job-failed', { path: `${jobs}/${failing}` })
}

async function fileOf(text: string): Promise<string> {
  const path = join(temporaryFolder(), 'upload')
  await writeFile(path, text)
  return path
}
