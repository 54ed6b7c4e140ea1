/** The server's side of a process that trains (its own is worker.ts). */
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { FastifyBaseLogger } from 'fastify'
import type { ServerMessage, StepReport, WorkerMessage, WorkerTask } from './worker_messages.js'

const script = fileURLToPath(new URL('./worker.js', import.meta.url))

/** Characters of what it prints that are kept for the log: the last ones. */
const mostSaid = 2000

/** How a process ended. */
export type Outcome = Exclude<WorkerMessage, { readonly kind: 'step' }> | { readonly kind: 'crashed' }

/** See {@link TrainingProcess}. */
export interface TrainingProcessOptions {
  /** Gets every step; what it throws ends the process. */
  readonly onStep: (report: StepReport) => void
  readonly log: FastifyBaseLogger
}

/** A process that trains one job: what it takes in memory goes with it, and a crash of it ends nothing else. */
export class TrainingProcess {
  readonly #child: ChildProcess
  readonly #options: TrainingProcessOptions
  #outcome: Outcome | undefined
  #failure: { readonly error: unknown } | undefined
  /** @throws what `onStep` threw */
  readonly ended: Promise<Outcome>

  constructor(task: WorkerTask, options: TrainingProcessOptions) {
    this.#options = options
    this.#child = fork(script, [], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] })
    this.#child.on('message', (message: WorkerMessage) => this.#hear(message))
    this.#child.once('error', (error) => options.log.error({ err: error }, 'process of a job'))
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
    this.#child.kill('SIGKILL')
  }

  #hear(message: WorkerMessage): void {
    if (message.kind !== 'step') {
      this.#outcome = message
      return
    }
    try {
      this.#options.onStep(message.report)
    } catch (error) {
      this.#failure ??= { error }
      this.kill()
    }
  }

  async #end(): Promise<Outcome> {
    let said = ''
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-mostSaid)
    })
    const [code, signal] = await new Promise<readonly [number | null, NodeJS.Signals | null]>((resolve) =>
      this.#child.once('close', (...ended) => resolve(ended)),
    )
    if (this.#failure) throw this.#failure.error
    if (this.#outcome) return this.#outcome
    this.#options.log.info({ code, signal, stderr: said }, 'process of a job ended')
    return { kind: 'crashed' }
  }

  /** One that has just ended cannot be told anything; that it ended is heard elsewhere. */
  #tell(message: ServerMessage): void {
    if (this.#child.connected) this.#child.send(message, () => {})
  }
}
