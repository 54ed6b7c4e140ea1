/**
 * Caches of earlier texts, kept for the next ones: a text that begins like an earlier one, as a conversation that goes
 * on does, starts where they part. Sessions keep the texts that they made last, the prefix store what they forget.
 */
import type { ActiveAdapter } from '../adapters/active.js'
import type { Precision } from '../graph/ops/matmul.js'
import type { CausalLm } from '../models/causal_lm.js'
import type { Tensor } from '../tensor/tensor.js'
import { blockTokens, PrefixStore } from './prefix_store.js'
import { Session, weightsOf } from './session.js'

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
const smallestCapacity = 256

export class SessionPool {
  readonly #network: CausalLm
  readonly #precision: Precision
  readonly #maxBytes: number
  readonly #prefixes: PrefixStore
  /** Adapters by number, for the prefixes that were made with them. */
  readonly #adapterNumbers = new WeakMap<ActiveAdapter, number>()
  #adapters = 0
  #begun: Promise<void> = Promise.resolve()
  #weights: readonly Tensor[] = []
  /** Least recently used first. */
  readonly #idle: Lease[] = []
  #closed = false

  constructor(network: CausalLm, precision: Precision, maxBytes: number) {
    this.#network = network
    this.#precision = precision
    this.#maxBytes = maxBytes / 2
    this.#prefixes = new PrefixStore(maxBytes / 2)
  }

  /** The idle session that knows most of the prompt, or a new one. */
  async take(request: SessionRequest): Promise<Lease> {
    this.#expectSameWeights()
    const lease = this.#best(request) ?? (await this.#create(request))
    const version = versionOf(lease)
    if (version !== lease.version || request.batch > 1) lease.session.truncate(0)
    lease.version = version
    if (!request.prompt) return lease
    // One at a time: a block that is being copied must not go.
    const begun = this.#begun.then(() => this.#begin(lease, request.prompt!))
    this.#begun = begun.catch(() => {})
    try {
      await begun
    } catch (error) {
      lease.session.dispose()
      throw error
    }
    return lease
  }

  /** Takes a session back. */
  release(lease: Lease): void {
    if (this.#closed || !lease.session.isCurrent) lease.session.dispose()
    else this.#idle.push(lease)
    while (this.#idle.length > maxIdle || this.#bytes() > this.#maxBytes) this.#idle.shift()!.session.dispose()
  }

  /** Sets what the session forgets aside, and brings back what is known of the prompt. */
  async #begin(lease: Lease, prompt: Int32Array): Promise<void> {
    const { session } = lease
    const regime = this.#network.lengthDependence?.regime(prompt.length) ?? 0
    // The last token of the prompt is always fed.
    const most = prompt.length - 1
    const common = session.regime === regime ? Math.min(session.commonPrefix(prompt), most) : 0
    if (session.regime !== undefined && session.tokens.length - common >= blockTokens)
      await this.#prefixes.add(this.#rootOf(lease, session.regime), [...session.tokens], (position) =>
        session.readCache(position, blockTokens),
      )
    const blocks = this.#prefixes.find(this.#rootOf(lease, regime), prompt, most)
    if (blocks.length * blockTokens <= common) return session.truncate(common)
    const known = Math.floor(common / blockTokens)
    session.truncate(known * blockTokens)
    for (const [index, block] of blocks.entries()) {
      if (index < known) continue
      await session.writeCache(prompt.subarray(index * blockTokens, (index + 1) * blockTokens), block, regime)
    }
  }

  /** Forgets everything when a weight was replaced, as merging and training do. */
  #expectSameWeights(): void {
    const weights = weightsOf(this.#network)
    if (weights.some((weight, index) => weight !== this.#weights[index])) this.forget()
    this.#weights = weights
  }

  /** Stands for the weights that keys and values were computed with, and for the lengths that they are for. */
  #rootOf({ adapter, version }: Lease, regime: number): string {
    if (!adapter) return `0/${version}/${regime}`
    const number = this.#adapterNumbers.get(adapter) ?? this.#adapters + 1
    this.#adapters = Math.max(this.#adapters, number)
    this.#adapterNumbers.set(adapter, number)
    return `${number}/${version}/${regime}`
  }

  /** Lets go of idle sessions and prefixes: the weights have changed. */
  forget(): void {
    this.drop()
    this.#prefixes.clear()
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
    this.forget()
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
