/** What the failure of a job is to its client: files have the client's names, other paths are none of its business. */
import { basename } from 'node:path'
import { uploadPath } from './settings.js'
import type { Job, JobError, JobStore } from './store.js'
import type { Outcome } from './training_process.js'

type Failed = Extract<Outcome, { readonly kind: 'failed' }>

/** The field `error` of a job. */
export function errorOf(
  job: Job,
  { code, message }: Failed,
  { store, uploads }: { readonly store: JobStore; readonly uploads: string },
): JobError {
  const { trainingFile, validationFile, source } = job.settings
  const files = { training_file: trainingFile, validation_file: validationFile }
  const named = Object.entries(files).flatMap(([param, id]) =>
    id !== null && message.includes(id) ? [{ param, id }] : [],
  )
  const said = named.reduce(
    (text, { id }) => {
      const path = uploadPath(uploads, id)
      const name = store.upload(id)?.filename ?? id
      return text.replaceAll(path, name).replaceAll(basename(path), name)
    },
    message.replaceAll(source, job.model),
  )
  const [file] = named
  if (file) return { code: `invalid_${file.param}`, message: said, param: file.param }
  if (code === 'ERR_HEDDLE_ARGUMENT') return { code: 'invalid_hyperparameters', message: said, param: null }
  if (code === 'ERR_HEDDLE_OOM') return { code: 'out_of_memory', message: said, param: null }
  return crash
}

/** Of a process that ended without a word, or for a reason that only the server's log has. */
export const crash: JobError = {
  code: 'server_error',
  message: 'The training process ended unexpectedly.',
  param: null,
}
