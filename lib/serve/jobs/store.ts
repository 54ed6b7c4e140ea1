/** What is known about uploads and jobs; every change is told to those who watch. */
import { EventEmitter, once } from 'node:events'
import { HeddleError } from '../../errors.js'
import { newId, seconds } from '../openai/route.js'
import type { Connection } from './database.js'
import type { JobSettings } from './settings.js'
import type { StepReport } from './worker_messages.js'

/** An uploaded file, as OpenAI's API spells it. */
export interface UploadRow {
  readonly id: string
  /** As the client calls it; never a path. */
  readonly filename: string
  readonly purpose: string
  readonly bytes: number
  readonly created_at: number
}

/** Where a job stands. */
export type JobStatus = 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled'

/** Why a job failed. */
export interface JobError {
  readonly code: string
  readonly message: string
  readonly param: string | null
}

/** A job. */
export interface Job {
  readonly id: string
  readonly model: string
  readonly status: JobStatus
  readonly settings: JobSettings
  readonly created_at: number
  readonly finished_at: number | null
  readonly fine_tuned_model: string | null
  /** Tokens of the steps so far. */
  readonly trained_tokens: number
  readonly error: JobError | null
}

/** Something that happened to a job. */
export interface JobEvent {
  readonly id: string
  readonly created_at: number
  readonly level: 'info' | 'warn' | 'error'
  readonly message: string
  /** Of events that are steps. */
  readonly data: StepReport | null
}

/** A part of a list, newest first unless told otherwise. */
export interface PageOptions {
  /** The last one that is known already. */
  readonly after?: string | undefined
  readonly limit: number
}

/** A part of a list. */
export interface Page<T> {
  readonly data: readonly T[]
  readonly has_more: boolean
}

/** The model that jobs are for. */
export interface ServedModel {
  readonly name: string
  /** What `loadModel` takes. */
  readonly source: string
}

const isFor = "model = @name AND settings ->> '$.source' = @source"

type Row = Readonly<Record<string, string | number | null>>

/** Whether nothing more will happen to a job. */
export const isOver = ({ status }: Job): boolean => status !== 'queued' && status !== 'running'

/** The tables. What is written is there for the next server, however this one ends. */
export class JobStore {
  readonly #db: Connection
  readonly #changes = new EventEmitter().setMaxListeners(0)

  constructor(connection: Connection) {
    this.#db = connection
  }

  close(): void {
    this.#db.close()
  }

  /** Ends with the next change of a job or its events. @throws AbortError */
  async changed(id: string, signal: AbortSignal): Promise<void> {
    await once(this.#changes, id, { signal })
  }

  addUpload(upload: UploadRow): void {
    this.#db
      .prepare(
        'INSERT INTO files (id, filename, purpose, bytes, created_at) VALUES (@id, @filename, @purpose, @bytes, @created_at)',
      )
      .run(upload)
  }

  upload(id: string): UploadRow | undefined {
    return this.#db.prepare('SELECT * FROM files WHERE id = ?').get(id) as UploadRow | undefined
  }

  get uploadIds(): readonly string[] {
    return this.#db.prepare('SELECT id FROM files').pluck().all() as string[]
  }

  get uploadedBytes(): number {
    return this.#db.prepare('SELECT ifnull(sum(bytes), 0) FROM files').pluck().get() as number
  }

  removeUpload(id: string): void {
    this.#db.prepare('DELETE FROM files WHERE id = ?').run(id)
  }

  /** The job that still needs a file. */
  userOf(upload: string): string | undefined {
    return this.#db
      .prepare(
        `SELECT id FROM jobs WHERE status IN ('queued', 'running')
         AND ? IN (settings ->> '$.trainingFile', settings ->> '$.validationFile')`,
      )
      .pluck()
      .get(upload) as string | undefined
  }

  /** @throws ERR_HEDDLE_ARGUMENT for an `after` that is unknown */
  uploads({
    after,
    limit,
    order,
    purpose,
  }: PageOptions & { readonly order: 'asc' | 'desc'; readonly purpose?: string | undefined }): Page<UploadRow> {
    const [sign, first] = order === 'asc' ? ['>', 0] : ['<', Number.MAX_SAFE_INTEGER]
    const start = after === undefined ? first : this.#seqOf('files', after)
    const rows = this.#db
      .prepare(`SELECT * FROM files WHERE seq ${sign} ? AND ifnull(?, purpose) = purpose ORDER BY seq ${order} LIMIT ?`)
      .all(start, purpose ?? null, limit + 1) as UploadRow[]
    return pageOf(rows, limit)
  }

  addJob({ id, model, settings }: Pick<Job, 'id' | 'model' | 'settings'>): Job {
    this.#db.transaction(() => {
      this.#db
        .prepare("INSERT INTO jobs (id, model, status, settings, created_at) VALUES (?, ?, 'queued', ?, ?)")
        .run(id, model, JSON.stringify(settings), seconds())
      this.#tell(id, `Created fine-tuning job: ${id}`)
    })()
    return this.job(id)!
  }

  job(id: string): Job | undefined {
    const row = this.#db.prepare('SELECT * FROM jobs WHERE id = ?').get(id) as Row | undefined
    return row && jobOf(row)
  }

  /** @throws ERR_HEDDLE_ARGUMENT for an `after` that is unknown */
  jobs({ after, limit }: PageOptions): Page<Job> {
    const start = after === undefined ? Number.MAX_SAFE_INTEGER : this.#seqOf('jobs', after)
    const rows = this.#db.prepare('SELECT * FROM jobs WHERE seq < ? ORDER BY seq DESC LIMIT ?').all(start, limit + 1)
    return pageOf((rows as Row[]).map(jobOf), limit)
  }

  /** Whether a job made this model. */
  isFineTuned(model: string): boolean {
    return this.#db.prepare('SELECT 1 FROM jobs WHERE fine_tuned_model = ?').get(model) !== undefined
  }

  /** Jobs that a client still waits for. */
  get unfinishedIds(): readonly string[] {
    return this.#db.prepare("SELECT id FROM jobs WHERE status IN ('queued', 'running')").pluck().all() as string[]
  }

  /** The job that has waited longest for this model. */
  nextQueued(model: ServedModel): Job | undefined {
    const row = this.#db
      .prepare(`SELECT * FROM jobs WHERE status = 'queued' AND ${isFor} ORDER BY seq LIMIT 1`)
      .get(model) as Row | undefined
    return row && jobOf(row)
  }

  /** Jobs that wait for a server with another model. */
  queuedForOthers(model: ServedModel): readonly string[] {
    return this.#db
      .prepare(`SELECT id FROM jobs WHERE status = 'queued' AND NOT (${isFor})`)
      .pluck()
      .all(model) as string[]
  }

  /** A process that ended left jobs running; they keep their place before those that waited. */
  requeueRunning(): void {
    const ids = this.#db.prepare("SELECT id FROM jobs WHERE status = 'running'").pluck().all() as string[]
    this.#db.transaction(() => {
      for (const id of ids) {
        this.#db.prepare("UPDATE jobs SET status = 'queued' WHERE id = ?").run(id)
        this.#tell(id, 'The server was started again; the job goes on from its last checkpoint', 'warn')
      }
    })()
  }

  begin(id: string): void {
    this.#move(id, { status: 'running' }, 'Fine-tuning job started')
  }

  /** @returns whether the job was still running */
  succeed(id: string, model: string): boolean {
    return this.#move(
      id,
      { status: 'succeeded', fine_tuned_model: model, finished_at: seconds() },
      `New fine-tuned model created: ${model}`,
      'The job has successfully completed',
    )
  }

  fail(id: string, error: JobError): void {
    this.#move(
      id,
      { status: 'failed', error: JSON.stringify(error), finished_at: seconds() },
      { level: 'error', message: error.message },
    )
  }

  /** @returns whether there was something to cancel */
  cancel(id: string): boolean {
    return this.#move(id, { status: 'cancelled', finished_at: seconds() }, 'Fine-tuning job cancelled')
  }

  /** Adds a step; one that is known already, as a resumed run does it again, changes nothing. */
  addStep(job: string, step: StepReport): void {
    const losses = [
      `training loss=${step.train_loss.toFixed(4)}`,
      ...(step.valid_loss === undefined ? [] : [`validation loss=${step.valid_loss.toFixed(4)}`]),
    ]
    const event = {
      step: step.step,
      level: 'info',
      message: `Step ${step.step}/${step.total_steps}: ${losses.join(', ')}`,
      data: JSON.stringify(step),
    } as const
    this.#db.transaction(() => {
      if (this.#addEvent(job, event))
        this.#db.prepare('UPDATE jobs SET trained_tokens = trained_tokens + ? WHERE id = ?').run(step.tokens, job)
    })()
  }

  /** Newest first. @throws ERR_HEDDLE_ARGUMENT for an `after` that is unknown */
  events(job: string, { after, limit }: PageOptions): Page<JobEvent> {
    const start = after === undefined ? Number.MAX_SAFE_INTEGER : this.#seqOf('events', after)
    const rows = this.#db
      .prepare('SELECT * FROM events WHERE job = ? AND seq < ? ORDER BY seq DESC LIMIT ?')
      .all(job, start, limit + 1) as Row[]
    return pageOf(rows.map(eventOf), limit)
  }

  /** Oldest first. @throws ERR_HEDDLE_ARGUMENT for an `after` that is unknown */
  eventsAfter(job: string, after: string | undefined, limit: number): readonly JobEvent[] {
    const start = after === undefined ? 0 : this.#seqOf('events', after)
    const rows = this.#db
      .prepare('SELECT * FROM events WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?')
      .all(job, start, limit) as Row[]
    return rows.map(eventOf)
  }

  lastStep(job: string): JobEvent | undefined {
    const row = this.#db
      .prepare('SELECT * FROM events WHERE job = ? AND step IS NOT NULL ORDER BY step DESC LIMIT 1')
      .get(job) as Row | undefined
    return row && eventOf(row)
  }

  /** Changes a job that is not over, and says so. */
  #move(
    id: string,
    fields: Row,
    ...said: readonly (string | { readonly level: 'error'; readonly message: string })[]
  ): boolean {
    const set = Object.keys(fields).map((name) => `${name} = @${name}`)
    return this.#db.transaction(() => {
      const { changes } = this.#db
        .prepare(`UPDATE jobs SET ${set.join(', ')} WHERE id = @id AND status IN ('queued', 'running')`)
        .run({ ...fields, id })
      if (changes === 0) return false
      for (const each of said)
        typeof each === 'string' ? this.#tell(id, each) : this.#tell(id, each.message, each.level)
      return true
    })()
  }

  #tell(job: string, message: string, level: JobEvent['level'] = 'info'): void {
    this.#addEvent(job, { step: null, level, message, data: null })
  }

  /** @returns whether it is new */
  #addEvent(
    job: string,
    event: Pick<JobEvent, 'level' | 'message'> & { readonly step: number | null; readonly data: string | null },
  ): boolean {
    const { changes } = this.#db
      .prepare(
        `INSERT INTO events (id, job, step, created_at, level, message, data)
         VALUES (@id, @job, @step, @created_at, @level, @message, @data) ON CONFLICT (job, step) DO NOTHING`,
      )
      .run({ ...event, job, id: newId('ftevent'), created_at: seconds() })
    // Those who watch read the database: not within the transaction that is written now.
    queueMicrotask(() => this.#changes.emit(job))
    return changes > 0
  }

  /** Where a page begins. @throws ERR_HEDDLE_ARGUMENT */
  #seqOf(table: 'files' | 'jobs' | 'events', id: string): number {
    const seq = this.#db.prepare(`SELECT seq FROM ${table} WHERE id = ?`).pluck().get(id) as number | undefined
    if (seq !== undefined) return seq
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'after',
      expected: 'an id of the list',
      got: JSON.stringify(id.slice(0, 100)),
    })
  }
}

const pageOf = <T>(rows: readonly T[], limit: number): Page<T> => ({
  data: rows.slice(0, limit),
  has_more: rows.length > limit,
})

const jobOf = ({ settings, error, ...row }: Row): Job =>
  ({
    ...row,
    settings: JSON.parse(settings as string) as JobSettings,
    error: error === null ? null : (JSON.parse(error as string) as JobError),
  }) as Job

const eventOf = ({ step: _, job: __, data, ...row }: Row): JobEvent =>
  ({ ...row, data: data === null ? null : (JSON.parse(data as string) as StepReport) }) as JobEvent
