/** The main thread's side of constrained generation: one text whose tokens must follow a grammar. */
import type { WorkerClient } from './worker_client.js'

export class Constraint {
  readonly #client: WorkerClient
  readonly #id: number
  #complete = false

  /** Made by {@link Tokenizer.constrain}. */
  constructor(client: WorkerClient, id: number) {
    this.#client = client
    this.#id = id
  }

  /** True when the text has its form and nothing can follow. */
  get isComplete(): boolean {
    return this.#complete
  }

  /** One bit per token that may come next, so that the text can end within `remaining` tokens. */
  mask(remaining: number): Promise<Uint32Array> {
    return this.#client.call('constraintMask', { id: this.#id, remaining })
  }

  /** Appends a token that the mask allowed. */
  async advance(token: number): Promise<void> {
    this.#complete = await this.#client.call('constraintAdvance', { id: this.#id, token })
  }

  /** Forgets the text. */
  async close(): Promise<void> {
    await this.#client.call('constraintClose', { id: this.#id })
  }
}
