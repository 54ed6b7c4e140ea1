/** One compiled forward pass of a network for each adapter. */
import { type Program, program } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward } from '../nn/site.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Adapter } from './adapter.js'

/** Programs by adapter; made anew once the network's weights are others than those they hold. */
export class AdapterPrograms {
  readonly #programs = new Map<Adapter | undefined, Program<Sym>>()
  #weights: readonly Tensor[] = []

  constructor(
    readonly network: Network,
    readonly forward: Pick<Forward, 'precision'>,
    /** What is traced. */
    readonly pass: (inputs: readonly Sym[], forward: Forward) => Promise<Sym>,
  ) {}

  /** The program for an adapter, or for the network alone. */
  for(adapter: Adapter | undefined): Program<Sym> {
    const weights = this.network.weights().map(({ tensor }) => tensor)
    // Merging and training replace weights; a compiled program holds packed copies of the old ones.
    if (!weights.every((weight, index) => weight === this.#weights[index])) this.dispose()
    this.#weights = weights
    const known = this.#programs.get(adapter)
    if (known) return known
    const forward = { ...this.forward, training: false, hook: adapter?.hook }
    const made = program((...inputs: readonly (Sym | undefined)[]) => this.pass(inputs as readonly Sym[], forward))
    this.#programs.set(adapter, made)
    return made
  }

  /** Lets all programs go. */
  dispose(): void {
    for (const each of this.#programs.values()) each.dispose()
    this.#programs.clear()
  }
}
