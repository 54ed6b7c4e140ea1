/**
 * Caches of earlier texts, kept for the next ones: a text that begins like an earlier one, as a conversation that goes
 * on does, starts where they part.
 */
import type { ActiveAdapter } from '../adapters/active.js'
import type { Precision } from '../graph/ops/matmul.js'
import type { CausalLm } from '../models/causal_lm.js'
import { Session } from './session.js'

/** What a caller needs a session for. */
export interface SessionRequest {
  /** The prompt of the only text; for a batch, nothing of earlier texts is used. */
  readonly prompt?: Int32Array
  readonly batch: number
  /** Most tokens of a text, prompt included. */
  readonly tokens: number
  readonly adapter: ActiveAdapter | undefined
}

/** A session in use, or idle. */
export interface Lease {
  readonly session: Session
  readonly adapter: ActiveAdapter | undefined
  /** Of the weights and the adapter's parameters that the cached keys and values were computed with. */
  version: number
}

/** Idle sessions, each with compiled programs; one per text that was made at the same time. */
const maxIdle = 4
/** Shorter beginnings are computed again rather than looked for. */
const smallestCapacity = 256

export class SessionPool {
  readonly #network: CausalLm
  readonly #precision: Precision
  readonly #maxBytes: number
  /** Least recently used first. */
  readonly #idle: Lease[] = []
  #closed = false

  constructor(network: CausalLm, precision: Precision, maxBytes: number) {
    this.#network = network
    this.#precision = precision
    this.#maxBytes = maxBytes
  }

  /** The idle session that knows most of the prompt, or a new one. */
  async take(request: SessionRequest): Promise<Lease> {
    this.drop(({ session }) => !session.isCurrent)
    const lease = this.#best(request) ?? (await this.#create(request))
    const version = versionOf(lease)
    if (version !== lease.version || request.batch > 1) lease.session.truncate(0)
    lease.version = version
    return lease
  }

  /** Takes a session back. */
  release(lease: Lease): void {
    if (this.#closed) lease.session.dispose()
    else this.#idle.push(lease)
    while (this.#idle.length > maxIdle || this.#bytes() > this.#maxBytes) this.#idle.shift()!.session.dispose()
  }

  /** Lets go of idle sessions. */
  drop(which: (lease: Lease) => boolean = () => true): void {
    const dropped = this.#idle.filter(which)
    for (const lease of dropped) {
      this.#idle.splice(this.#idle.indexOf(lease), 1)
      lease.session.dispose()
    }
  }

  /** Lets go of all sessions, those in use when they come back. */
  close(): void {
    this.#closed = true
    this.drop()
  }

  #bytes(): number {
    return this.#idle.reduce((sum, { session }) => sum + session.byteLength, 0)
  }

  #best({ prompt, batch, tokens, adapter }: SessionRequest): Lease | undefined {
    const fitting = this.#idle.filter(
      (lease) => lease.adapter === adapter && lease.session.batch === batch && lease.session.capacity >= tokens,
    )
    const known = (lease: Lease): number => (prompt ? lease.session.commonPrefix(prompt) : 0)
    const best = fitting.reduce<Lease | undefined>((a, b) => (a && known(a) >= known(b) ? a : b), undefined)
    if (best) this.#idle.splice(this.#idle.indexOf(best), 1)
    return best
  }

  async #create({ batch, tokens, adapter }: SessionRequest): Promise<Lease> {
    const wanted = 2 ** Math.ceil(Math.log2(Math.max(smallestCapacity, tokens)))
    const capacity = Math.min(this.#network.maxPositions, wanted)
    const forward = { precision: this.#precision, hook: adapter?.hook }
    const session = await Session.create(this.#network, forward, capacity, batch)
    return { session, adapter, version: versionOf({ session, adapter }) }
  }
}

function versionOf({ session, adapter }: Pick<Lease, 'session' | 'adapter'>): number {
  const parameters = adapter ? [...adapter.parameters().values()] : []
  return parameters.reduce((sum, { native }) => sum + native.version, session.weightVersions)
}
