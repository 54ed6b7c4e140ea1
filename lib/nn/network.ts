/** What adapters and training need of a network, whatever it computes. */
import type { Device } from '../native.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Site } from './site.js'

/** The config.json that a network was made from. */
export interface ConfigSource {
  readonly config: Readonly<Record<string, unknown>>
  /** How it writes its numbers, see `jsonText`. */
  readonly numbers: unknown
  /** What the architecture made of it: with defaults for what it leaves out. */
  readonly completed: Readonly<Record<string, unknown>>
}

/** A network: its sites, its weights and how it was configured. */
export interface Network {
  /** `config.json` of the checkpoint, completed with defaults. */
  readonly config: Readonly<Record<string, unknown>>
  /** Where there was a file. */
  configSource?: ConfigSource
  readonly architecture: string
  /** Sites by path, in the checkpoint's order. */
  readonly sites: ReadonlyMap<string, Site>
  /** Most tokens of one sequence. */
  readonly maxPositions: number
  /** The output projection, where it is no site of its own because it shares the embedding's weight. */
  readonly outputSite?: Site
  /** True when the output projection shares the embedding's weight. */
  readonly embeddingTied?: boolean
  /** Where programs of the network run; where it does not say, wherever programs do (see {@link setDevice}). */
  device?: Device | undefined
  /** All weights under their checkpoint names, for export. */
  weights(): { readonly name: string; readonly tensor: Tensor }[]
}
