/** What training and evaluation need of a model; `Model` is one, and so is a network with a head of its own. */
import type { Adapter, AttachOptions } from '../adapters/adapter.js'
import type { Parametrization } from '../adapters/parametrization.js'
import type { GenerateOptions } from '../generate/options.js'
import type { Precision } from '../graph/ops/matmul.js'
import type { Network } from '../nn/network.js'
import type { Tokenizer } from '../tokenize/tokenizer.js'

/** A network with its tokenizer and adapters. */
export interface Trainable<N extends Network = Network> {
  /** Folder, file or hub id that the weights came from. */
  readonly source: string
  readonly network: N
  readonly tokenizer: Tokenizer
  readonly precision: Precision
  readonly adapters: readonly Adapter[]
  /** Attaches a fresh adapter. */
  attach(method: Parametrization, options?: AttachOptions): Promise<Adapter>
  /** Goes on from a prompt, where the network can. */
  generate?(prompt: string, options?: GenerateOptions): AsyncGenerator<string, void, void>
}
