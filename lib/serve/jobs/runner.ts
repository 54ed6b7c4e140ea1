/** Trains the jobs that wait, one after the other, each in a process of its own. */
import { type ChildProcess, fork } from 'node:child_process'
import { mkdir, readdir, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { FastifyBaseLogger } from 'fastify'
import type { ServerContext } from '../context.js'
import { publishAdapter, sweepUnpublished } from './publish.js'
import { taskOf, uploadPath } from './settings.js'
import type { Job, JobError, JobStore } from './store.js'
import type { ServerMessage, WorkerMessage } from './worker_messages.js'

const script = fileURLToPath(new URL('./worker.js', import.meta.url))
/** How long a process may take to end the step that it is in, when the server is told to end. */
const stopTimeout = 20_000

/** Folders of {@link JobRunner}. */
export interface JobFolders {
  readonly jobs: string
  readonly uploads: string
  readonly adapters: string
}

/** What {@link JobRunner} is made of. */
export interface RunnerParts {
  readonly store: JobStore
  readonly context: ServerContext
  readonly folders: JobFolders
  readonly log: FastifyBaseLogger
}

type Outcome = Exclude<WorkerMessage, { readonly kind: 'step' }>

export class JobRunner {
  readonly #parts: RunnerParts
  /** The process that trains now. */
  #worker: { readonly id: string; readonly child: ChildProcess } | undefined
  #working: Promise<void> | undefined
  #isClosed = false

  private constructor(parts: RunnerParts) {
    this.#parts = parts
  }

  /** Goes on where the last server ended, however it ended. */
  static async start(parts: RunnerParts): Promise<JobRunner> {
    const { store, folders } = parts
    await mkdir(folders.jobs, { recursive: true })
    await sweepUnpublished(folders.adapters)
    const unfinished = new Set(store.unfinishedIds)
    for (const name of await readdir(folders.jobs))
      if (!unfinished.has(name)) await rm(join(folders.jobs, name), { recursive: true, force: true })
    store.requeueRunning()
    const runner = new JobRunner(parts)
    runner.wake()
    return runner
  }

  /** To be called when there is a new job. */
  wake(): void {
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined
    })
  }

  /** Ends a job's process at once: nothing of it is needed. @returns whether the job was not over before */
  cancel(id: string): boolean {
    if (!this.#parts.store.cancel(id)) return false
    if (this.#worker?.id === id) this.#worker.child.kill('SIGKILL')
    return true
  }

  /** Lets the process that trains write a checkpoint, from which the next server goes on. */
  async close(): Promise<void> {
    this.#isClosed = true
    const { child } = this.#worker ?? {}
    if (child?.connected) send(child, { kind: 'stop' })
    const timer = setTimeout(() => child?.kill('SIGKILL'), stopTimeout)
    await this.#working
    clearTimeout(timer)
  }

  async #work(): Promise<void> {
    const { store, context, log } = this.#parts
    while (!this.#isClosed) {
      const job = store.nextQueued(context.modelName)
      if (!job) return
      store.begin(job.id)
      log.info({ job: job.id }, 'job started')
      try {
        await this.#settle(job, await this.#train(job))
      } catch (error) {
        log.error({ err: error, job: job.id }, 'job failed')
        store.fail(job.id, { code: 'server_error', message: 'The server could not keep the result.', param: null })
      }
      await this.#tidy(job)
    }
  }

  #train(job: Job): Promise<Outcome> {
    const { store, folders, log } = this.#parts
    const child = fork(script, [], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] })
    this.#worker = { id: job.id, child }
    const stderr = text(child.stderr!).catch(() => '')
    return new Promise((resolve) => {
      let outcome: Outcome | undefined
      child.on('message', (message: WorkerMessage) => {
        if (message.kind === 'step') store.addStep(job.id, message.report)
        else outcome = message
      })
      child.once('error', (error) => log.error({ err: error, job: job.id }, 'process of a job'))
      child.once('close', async (code, signal) => {
        this.#worker = undefined
        if (!outcome && !this.#isClosed) log.warn({ job: job.id, code, signal, stderr: (await stderr).slice(-2000) })
        resolve(outcome ?? crashed(code, signal))
      })
      send(child, taskOf(job.settings, { folder: join(folders.jobs, job.id), uploads: folders.uploads }))
    })
  }

  async #settle(job: Job, outcome: Outcome): Promise<void> {
    const { store, log } = this.#parts
    if (store.job(job.id)?.status !== 'running') log.info({ job: job.id }, 'job cancelled')
    else if (outcome.kind === 'done') await this.#publish(job)
    else if (this.#isClosed || outcome.kind === 'stopped') log.info({ job: job.id }, 'job stopped')
    else {
      log.warn({ job: job.id, failure: outcome.message }, 'job failed')
      store.fail(job.id, this.#errorOf(job, outcome))
    }
  }

  async #publish(job: Job): Promise<void> {
    const { store, context, folders, log } = this.#parts
    const name = nameOf(job)
    const folder = await publishAdapter(join(folders.jobs, job.id, 'adapter'), folders.adapters, name)
    // Cancelled meanwhile.
    if (store.job(job.id)?.status !== 'running') return rm(folder, { recursive: true, force: true })
    await context.engine.addAdapter(name, folder)
    if (store.succeed(job.id, name)) log.info({ job: job.id, model: name }, 'job succeeded')
    else {
      context.engine.removeAdapter(name)
      await rm(folder, { recursive: true, force: true })
    }
  }

  /** What a failure is to the client: files have the client's names, and other paths are none of its business. */
  #errorOf(job: Job, { code, place, message }: Extract<Outcome, { readonly kind: 'failed' }>): JobError {
    const { store, folders } = this.#parts
    const { trainingFile, validationFile, source } = job.settings
    let said = message.replaceAll(source, job.model)
    let found: JobError['param'] = null
    for (const [param, id] of [
      ['training_file', trainingFile],
      ['validation_file', validationFile],
    ] as const) {
      if (id === null) continue
      const path = uploadPath(folders.uploads, id)
      if (place.includes(path) || message.includes(path)) found ??= param
      said = said.replaceAll(path, store.upload(id)?.filename ?? id).replaceAll(basename(path), id)
    }
    if (found !== null) return { code: `invalid_${found}`, message: said, param: found }
    if (code === 'ERR_HEDDLE_ARGUMENT') return { code: 'invalid_hyperparameters', message: said, param: null }
    if (code === 'ERR_HEDDLE_OOM') return { code: 'out_of_memory', message: said, param: null }
    return { code: 'server_error', message: 'The training process ended unexpectedly.', param: null }
  }

  async #tidy(job: Job): Promise<void> {
    const { store, folders } = this.#parts
    if (store.job(job.id)?.status === 'running') return
    await rm(join(folders.jobs, job.id), { recursive: true, force: true })
  }
}

const crashed = (code: number | null, signal: string | null): Outcome => ({
  kind: 'failed',
  code: 'ERR_HEDDLE_INTERNAL',
  place: '',
  message: `The process ended with ${signal ?? code}`,
})

/** A process that has just ended cannot be told anything; that it ended is heard elsewhere. */
const send = (child: ChildProcess, message: ServerMessage): void => void child.send(message, () => {})

/** ft:base:suffix:id, a plain file name. */
const nameOf = ({ id, model, settings: { suffix } }: Job): string =>
  `ft:${model.replaceAll(/[^\w.-]/g, '-').slice(0, 40)}:${suffix}:${id.slice(-10)}`
