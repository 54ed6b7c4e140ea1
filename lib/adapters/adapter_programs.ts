/** One compiled forward pass of a network for each adapter. */
import { type Program, program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'
import type { ActiveAdapter } from './active.js'

/** Adapters whose programs are kept; the one that was used longest ago goes first. */
const maxKept = 16

/** Programs by adapter; made anew once the network's weights are others than those they hold. */
export class AdapterPrograms {
  readonly #programs = new Map<ActiveAdapter | undefined, Program<Sym>>()
  #weights: readonly Tensor[] = []

  constructor(
    readonly network: Network,
    readonly forward: Pick<Forward, 'precision'>,
    /** What is traced. */
    readonly pass: (inputs: readonly Sym[], forward: Forward) => Promise<Sym>,
  ) {}

  /** The program for an adapter, or for the network alone. */
  for(adapter: ActiveAdapter | undefined): Program<Sym> {
    const weights = this.network.weights().map(({ tensor }) => tensor)
    // Merging and training replace weights; a compiled program holds packed copies of the old ones.
    if (!weights.every((weight, index) => weight === this.#weights[index])) this.dispose()
    this.#weights = weights
    const found = this.#programs.get(adapter) ?? this.#make(adapter)
    this.#programs.delete(adapter)
    this.#programs.set(adapter, found)
    if (this.#programs.size > maxKept) this.#drop(this.#programs.keys().next().value)
    return found
  }

  #make(adapter: ActiveAdapter | undefined): Program<Sym> {
    const forward = { ...this.forward, training: false, hook: adapter?.hook }
    return program((...inputs: readonly (Sym | undefined)[]) => this.pass(inputs as readonly Sym[], forward), {
      device: this.network.device,
    })
  }

  #drop(adapter: ActiveAdapter | undefined): void {
    this.#programs.get(adapter)?.dispose()
    this.#programs.delete(adapter)
  }

  /** Lets all programs go. */
  dispose(): void {
    for (const each of this.#programs.values()) each.dispose()
    this.#programs.clear()
  }
}
