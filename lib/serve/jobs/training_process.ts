/** The server's side of a process that trains (its own is worker.ts). */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import type { FastifyBaseLogger } from 'fastify'
import type { ProcessEnd, ServerMessage, StepReport, WorkerMessage, WorkerTask } from './worker_messages.js'

/** How a process ended. */
export type Outcome = Exclude<WorkerMessage, { readonly kind: 'step' }> | { readonly kind: 'crashed' }

/** See {@link TrainingProcess}. */
export interface TrainingProcessOptions {
  /** Gets every step; what it throws ends the process. */
  readonly onStep: (report: StepReport) => void
  readonly log: FastifyBaseLogger
}

/**
 * A process that trains one job: what it takes in memory goes with it, and a crash of it ends nothing else. A thread
 * starts it, see training_thread.ts.
 */
export class TrainingProcess {
  readonly #thread = new Worker(new URL('./training_thread.js', import.meta.url))
  readonly #options: TrainingProcessOptions
  #outcome: Outcome | undefined
  #failure: { readonly error: unknown } | undefined
  /** @throws what `onStep` threw */
  readonly ended: Promise<Outcome>

  constructor(task: WorkerTask, options: TrainingProcessOptions) {
    this.#options = options
    this.#thread.on('message', (message: WorkerMessage | ProcessEnd) => this.#hear(message))
    this.ended = this.#end()
    this.#tell(task)
  }

  /** Lets it end the step that it is in and write a checkpoint; after `milliseconds` it is ended without. */
  stop(milliseconds: number): void {
    this.#tell({ kind: 'stop' })
    const timer = setTimeout(() => this.kill(), milliseconds)
    const ended = (): void => clearTimeout(timer)
    this.ended.then(ended, ended)
  }

  /** Ends it at once. */
  kill(): void {
    this.#tell({ kind: 'kill' })
  }

  #hear(message: WorkerMessage | ProcessEnd): void {
    if (message.kind === 'ended') {
      const { code, signal, stderr } = message
      if (!this.#outcome) this.#options.log.info({ code, signal, stderr }, 'process of a job ended')
    } else if (message.kind === 'step') this.#report(message.report)
    else this.#outcome = message
  }

  #report(report: StepReport): void {
    try {
      this.#options.onStep(report)
    } catch (error) {
      this.#failure ??= { error }
      this.kill()
    }
  }

  async #end(): Promise<Outcome> {
    try {
      await once(this.#thread, 'exit')
    } catch (error) {
      this.#options.log.error({ err: error }, 'process of a job')
    }
    if (this.#failure) throw this.#failure.error
    return this.#outcome ?? { kind: 'crashed' }
  }

  #tell(message: ServerMessage | { readonly kind: 'kill' }): void {
    this.#thread.postMessage(message)
  }
}
