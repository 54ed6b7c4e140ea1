/** Trains the jobs that wait, one after the other, each in a process of its own. */
import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { FastifyBaseLogger } from 'fastify'
import type { ServerContext } from '../context.js'
import { crash, errorOf } from './failure.js'
import { publishAdapter, sweepUnpublished, withdrawAdapter } from './publish.js'
import { taskOf } from './settings.js'
import type { Job, JobStore, ServedModel } from './store.js'
import { type Outcome, TrainingProcess } from './training_process.js'

/** How long a process may take to end the step that it is in, when the server is told to end. */
const stopMilliseconds = 20_000

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

/** Takes job after job from the store, as long as there are any. */
export class JobRunner {
  readonly #parts: RunnerParts
  /** What trains now. */
  #training: { readonly id: string; readonly process: TrainingProcess } | undefined
  #working: Promise<void> = Promise.resolve()
  #isWorking = false
  #isClosed = false

  private constructor(parts: RunnerParts) {
    this.#parts = parts
  }

  /** Goes on where the last server ended, however it ended. */
  static async start(parts: RunnerParts): Promise<JobRunner> {
    const { store, folders, context, log } = parts
    await mkdir(folders.jobs, { recursive: true })
    await sweepUnpublished(folders.adapters)
    const unfinished = new Set(store.unfinishedIds)
    for (const name of await readdir(folders.jobs))
      if (!unfinished.has(name)) await rm(join(folders.jobs, name), { recursive: true, force: true })
    store.requeueRunning()
    const others = store.queuedForOthers(servedBy(context))
    if (others.length > 0) log.warn({ jobs: others }, 'jobs wait for a server with another model')
    const runner = new JobRunner(parts)
    runner.wake()
    return runner
  }

  /** To be called when there is a new job. */
  wake(): void {
    if (this.#isWorking || this.#isClosed) return
    this.#isWorking = true
    this.#working = this.#work()
  }

  /** Ends a job's process at once: nothing of it is needed. @returns whether the job was not over before */
  cancel(id: string): boolean {
    if (!this.#parts.store.cancel(id)) return false
    if (this.#training?.id === id) this.#training.process.kill()
    return true
  }

  /** Forgets a model that a job made; requests that use it end with it. @returns whether there was one */
  async removeModel(name: string): Promise<boolean> {
    const { store, context, folders } = this.#parts
    if (!context.engine.adapterNames.includes(name) || !store.isFineTuned(name)) return false
    context.engine.removeAdapter(name)
    await withdrawAdapter(folders.adapters, name)
    return true
  }

  /** Lets the process that trains write a checkpoint, from which the next server goes on. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#training?.process.stop(stopMilliseconds)
    await this.#working
  }

  /** Without a database that can be written (a full disk), jobs stay as they are until the next one wakes it. */
  async #work(): Promise<void> {
    const { store, context, log } = this.#parts
    try {
      while (!this.#isClosed) {
        const job = store.nextQueued(servedBy(context))
        if (!job) break
        await this.#run(job)
      }
    } catch (error) {
      log.error({ err: error }, 'jobs wait')
    } finally {
      this.#isWorking = false
    }
  }

  async #run(job: Job): Promise<void> {
    const { store, folders, log } = this.#parts
    store.begin(job.id)
    log.info({ job: job.id }, 'job started')
    try {
      await this.#settle(job, await this.#train(job))
    } catch (error) {
      log.error({ err: error, job: job.id }, 'job failed')
      store.fail(job.id, { code: 'server_error', message: 'The server could not keep the result.', param: null })
    }
    if (store.job(job.id)?.status !== 'running') await rm(join(folders.jobs, job.id), { recursive: true, force: true })
  }

  async #train({ id, settings }: Job): Promise<Outcome> {
    const { store, folders, context, log } = this.#parts
    const { mostRank } = context.engine.state().adapters
    const task = taskOf(settings, { folder: join(folders.jobs, id), uploads: folders.uploads, mostRank })
    const process = new TrainingProcess(task, {
      log: log.child({ job: id }),
      onStep: (report) => store.addStep(id, report),
    })
    this.#training = { id, process }
    try {
      return await process.ended
    } finally {
      this.#training = undefined
    }
  }

  async #settle(job: Job, outcome: Outcome): Promise<void> {
    const { store, folders, log } = this.#parts
    if (store.job(job.id)?.status !== 'running') log.info({ job: job.id }, 'job cancelled')
    else if (outcome.kind === 'done') await this.#publish(job)
    else if (this.#isClosed || outcome.kind === 'stopped') log.info({ job: job.id }, 'job stopped')
    else {
      const error = outcome.kind === 'failed' ? errorOf(job, outcome, { store, uploads: folders.uploads }) : crash
      log.warn({ job: job.id, outcome }, 'job failed')
      store.fail(job.id, error)
    }
  }

  async #publish(job: Job): Promise<void> {
    const { store, context, folders, log } = this.#parts
    const name = nameOf(job)
    const folder = await publishAdapter(join(folders.jobs, job.id, 'adapter'), folders.adapters, name)
    let isKept = false
    try {
      await context.engine.addAdapter(name, folder)
      isKept = store.succeed(job.id, name)
      if (isKept) log.info({ job: job.id, model: name }, 'job succeeded')
    } finally {
      // Cancelled meanwhile, or not to be kept.
      if (!isKept) {
        context.engine.removeAdapter(name)
        await withdrawAdapter(folders.adapters, name)
      }
    }
  }
}

const servedBy = ({ modelName, engine }: ServerContext): ServedModel => ({
  name: modelName,
  source: engine.model.source,
})

/** ft:base:suffix:id, a plain file name. */
const nameOf = ({ id, model, settings: { suffix } }: Job): string =>
  `ft:${model.replaceAll(/[^\w.-]/g, '-').slice(0, 40)}:${suffix}:${id.slice(-10)}`
