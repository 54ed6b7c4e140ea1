/** The main thread's end of a tokenizer's worker: requests become promises, and an idle worker keeps no process alive. */
import { Worker } from 'node:worker_threads'
import { HeddleError } from '../errors.js'
import { fromPlainError, type OperationName, type Operations, type Reply } from './protocol.js'

interface Pending {
  readonly part: (value: unknown) => void
  readonly resolve: (value: unknown) => void
  readonly reject: (error: unknown) => void
}

export class WorkerClient {
  readonly #worker = new Worker(new URL('./worker.js', import.meta.url))
  readonly #pending = new Map<number, Pending>()
  #nextId = 0
  #closed = false

  constructor() {
    this.#worker.unref()
    this.#worker.on('message', (reply: Reply) => this.#receive(reply))
    this.#worker.on('error', (cause: Error) => this.#fail(workerError(cause)))
    this.#worker.on('exit', () => this.#fail(closedError()))
  }

  /** @throws what the worker's work throws; ERR_HEDDLE_ARGUMENT after `close()`, ERR_HEDDLE_OOM when it runs out of memory */
  call<Name extends OperationName>(name: Name, ask: Operations[Name]['ask']): Promise<Operations[Name]['answer']> {
    return this.#send(name, ask, () => undefined).result as Promise<Operations[Name]['answer']>
  }

  /**
   * Asks for an answer in parts.
   * @throws ERR_HEDDLE_ABORTED when the signal stops it
   */
  async stream<Name extends OperationName>(
    name: Name,
    ask: Operations[Name]['ask'],
    { onPart, signal }: { onPart(part: Operations[Name]['answer']): void; readonly signal?: AbortSignal | undefined },
  ): Promise<void> {
    if (signal?.aborted) throw abortedError(name)
    const { id, result } = this.#send(name, ask, (part) => onPart(part as Operations[Name]['answer']))
    const cancel = () => this.#worker.postMessage({ cancel: id })
    signal?.addEventListener('abort', cancel, { once: true })
    try {
      await result
    } finally {
      signal?.removeEventListener('abort', cancel)
    }
    if (signal?.aborted) throw abortedError(name)
  }

  /** Ends the worker; pending requests reject. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#worker.terminate()
  }

  #send(name: OperationName, ask: unknown, part: Pending['part']): { id: number; result: Promise<unknown> } {
    const id = this.#nextId++
    if (this.#closed) return { id, result: Promise.reject(closedError()) }
    const result = new Promise<unknown>((resolve, reject) => {
      this.#pending.set(id, { part, resolve, reject })
    })
    this.#worker.ref()
    this.#worker.postMessage({ id, name, ask })
    return { id, result }
  }

  #receive(reply: Reply): void {
    const pending = this.#pending.get(reply.id)
    if (!pending) return
    if ('part' in reply) {
      this.#receivePart(reply.id, pending, reply.part)
      return
    }
    this.#settle(reply.id)
    if ('error' in reply) pending.reject(fromPlainError(reply.error))
    else pending.resolve(reply.done)
  }

  /** A caller's failure over a part ends its request, not the process. */
  #receivePart(id: number, pending: Pending, value: unknown): void {
    try {
      pending.part(value)
    } catch (error) {
      this.#worker.postMessage({ cancel: id })
      this.#settle(id)
      pending.reject(error)
    }
  }

  #settle(id: number): void {
    this.#pending.delete(id)
    if (this.#pending.size === 0) this.#worker.unref()
  }

  #fail(error: HeddleError): void {
    this.#closed = true
    for (const { reject } of this.#pending.values()) reject(error)
    this.#pending.clear()
  }
}

const abortedError = (name: string) =>
  new HeddleError('ERR_HEDDLE_ABORTED', { place: name, expected: 'to finish', got: 'an abort signal' })

const closedError = () =>
  new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'tokenizer', expected: 'an open tokenizer', got: 'a closed one' })

function workerError(cause: Error & { readonly code?: string }): HeddleError {
  const code = cause.code === 'ERR_WORKER_OUT_OF_MEMORY' ? 'ERR_HEDDLE_OOM' : 'ERR_HEDDLE_INTERNAL'
  return new HeddleError(code, { place: 'tokenizer', expected: 'a running worker', got: cause.message, cause })
}
