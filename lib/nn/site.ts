/** Sites: the stable, named places of a model that own weights. Adapters, observers and transforms reach a model here. */
import type { Precision } from '../graph/ops/matmul.js'
import { matmul } from '../graph/ops/matmul.js'
import { read, type Sym } from '../graph/sym.js'
import type { Tensor } from '../tensor/tensor.js'

/** What a site computes. */
export type SiteKind = 'linear' | 'embedding' | 'norm'

/** A named place of a model that owns weights. */
export interface Site {
  /** The checkpoint's own module path, e.g. `model.layers.3.self_attn.q_proj`. */
  readonly path: string
  readonly kind: SiteKind
  /** linear `[out, in]`, embedding `[rows, dim]`, norm `[dim]`. Replaced, never written, when an adapter is merged. */
  weight: Tensor
  /** Replaced like the weight. */
  bias?: Tensor | undefined
  /** The output embedding, which "all-linear" leaves out. */
  readonly isOutput?: boolean
}

/** What a traced forward pass carries to every site. */
export interface Forward {
  readonly precision: Precision
  /** Dropout is active. */
  readonly training: boolean
  /** `u32 [2]`, needed where dropout is active. */
  readonly seed?: Sym | undefined
  /** Wraps the site's own computation; an adapter's way in. */
  readonly hook?: SiteHook | undefined
}

/** How something outside of the model takes part in its forward pass. */
export interface SiteHook {
  /** Sites for which `apply` is called; the others compute as they are. */
  targets(site: Site): boolean
  /** The site's output for input x; `base()` is what the site computes by itself. */
  apply(site: Site, x: Sym, base: SiteComputation, forward: Forward): Sym
}

/**
 * What a site computes, or would compute with the tensors of another `part` or for another input: an adapter's way to
 * put tensors of its own in the place of the site's.
 */
export type SiteComputation = (part?: Site, input?: Sym) => Sym

/** x `[n, in]` times the site's weight `[out, in]`, plus its bias → `[n, out]`. */
export const linear = (site: Site, x: Sym, forward: Forward): Sym =>
  through(site, x, forward, ({ weight, bias }, input) =>
    matmul(input, read(weight), {
      transposeB: true,
      precision: forward.precision,
      ...(bias ? { addend: read(bias) } : {}),
    }),
  )

/** What the site computes, or what the forward pass's hook makes of it. */
export function through(site: Site, x: Sym, forward: Forward, compute: (part: Site, input: Sym) => Sym): Sym {
  const { hook } = forward
  const base: SiteComputation = (part = site, input = x) => compute(part, input)
  return x.node.trace.within(site.path, () => (hook?.targets(site) ? hook.apply(site, x, base, forward) : base()))
}
