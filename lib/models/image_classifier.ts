/** What every image classifier offers, whatever its architecture. */
import type { Sym } from '../graph/sym.js'
import type { Network } from '../nn/network.js'
import type { Forward, Site } from '../nn/site.js'

/** A network from pixels to scores of classes. */
export interface ImageClassifier extends Network {
  /** Shape of one image: channels, height, width. */
  readonly imageShape: readonly [number, number, number]
  /** Names of the classes; empty where the checkpoint has no classifier. */
  readonly labels: readonly string[]
  readonly hiddenSize: number
  /** `[labels, hidden]`, where the checkpoint has it. */
  readonly outputSite?: Site
  /** Final hidden states `[b, patches + 1, hidden]` of `pixels f32 [b, c, h, w]`, the class token's first. */
  hidden(pixels: Sym, forward: Forward): Promise<Sym>
  /** Scores `[b, labels]` from those hidden states. @throws ERR_HEDDLE_ARGUMENT without a classifier */
  logits(hidden: Sym, forward: Forward): Sym
}
