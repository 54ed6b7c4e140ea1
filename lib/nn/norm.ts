/** A norm site's part in the forward pass. */
import { add } from '../graph/ops/elementwise.js'
import { layerNorm, rmsNorm } from '../graph/ops/norm.js'
import { read, type Sym } from '../graph/sym.js'
import { type Forward, type Site, through } from './site.js'

/** Which normalisation a network uses. */
export interface NormStyle {
  /** `layer` subtracts the mean (Ba et al. 2016, arXiv 1607.06450), `rms` does not (Zhang & Sennrich 2019). */
  readonly kind: 'layer' | 'rms'
  readonly eps: number
  /** Multiplies with 1 + weight, as Gemma does. */
  readonly unitOffset?: boolean
}

/** Normalises the last axis of x and multiplies with the site's weight, plus its bias. */
export const norm = (site: Site, x: Sym, { kind, eps, unitOffset = false }: NormStyle, forward: Forward): Sym =>
  through(site, x, forward, ({ weight, bias }, input) => {
    const factor = unitOffset ? add(read(weight), 1) : read(weight)
    return kind === 'rms' ? rmsNorm(input, factor, eps) : layerNorm(input, factor, bias && read(bias), eps)
  })
