/** Sites: the stable, named places of a model that own weights. Adapters, observers and transforms reach a model here. */

import { HeddleError } from '../errors.js'
import { type Conv2dOptions, conv2d } from '../graph/ops/conv.js'
import { add } from '../graph/ops/elementwise.js'
import { gatherRows, transpose } from '../graph/ops/index.js'
import type { Precision } from '../graph/ops/matmul.js'
import { matmul } from '../graph/ops/matmul.js'
import { dropout } from '../graph/ops/random.js'
import { read, type Sym } from '../graph/sym.js'
import type { StructuredMatrix } from '../structured/structured_matrix.js'
import { shapeOnly, type Tensor } from '../tensor/tensor.js'

/** What a site computes. */
export type SiteKind = 'linear' | 'embedding' | 'norm' | 'conv2d'

/** A named place of a model that owns weights. */
export interface Site {
  /** The checkpoint's own module path, e.g. `model.layers.3.self_attn.q_proj`. */
  readonly path: string
  readonly kind: SiteKind
  /**
   * linear `[out, in]` (`[in, out]` where {@link transposed}), embedding `[rows, dim]`, norm `[dim]`, conv2d
   * `[out, in / groups, kh, kw]`. Replaced, never written, when an adapter is merged.
   */
  weight: Tensor
  /**
   * The weight `[out, in]` of a linear site in a structure, trained and saved in the place of {@link weight}, which
   * then says the shape only: reading it is an error that says so. Set by `replaceLinear`.
   */
  structure?: StructuredMatrix | undefined
  /** Replaced like the weight. */
  bias?: Tensor | undefined
  /** The weight is stored `[in, out]`, as GPT-2's Conv1D has it; PEFT's `fan_in_fan_out`. */
  readonly transposed?: boolean
  /** How a conv2d site's window moves; default: by one pixel, without padding, over all channels. */
  readonly window?: Omit<Conv2dOptions, 'bias'>
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
  /** The site's output for input x (an embedding's ids); `base()` is what the site computes by itself. */
  apply(site: Site, x: Sym, base: SiteComputation, forward: Forward): Sym
}

/**
 * What a site computes, or would compute with the tensors of another `part` or for another input: an adapter's way to
 * put tensors of its own in the place of the site's.
 */
export type SiteComputation = (part?: Site, input?: Sym) => Sym

/** x `[..., in]` times the site's weight `[out, in]`, dense or in a structure, plus its bias → `[..., out]`. */
export const linear = (site: Site, x: Sym, forward: Forward): Sym =>
  through(site, x, forward, (part, input) => {
    const { weight, structure, bias } = part
    if (!structure) return linearWith(part, read(weight), input, forward)
    const y = structure.matmul(input, forward)
    return bias ? add(y, read(bias)) : y
  })

/** x times this weight, stored as the site's is, plus the site's bias. */
export const linearWith = (
  { transposed, bias }: Pick<Site, 'transposed' | 'bias'>,
  weight: Sym,
  x: Sym,
  { precision }: Pick<Forward, 'precision'>,
): Sym => matmul(x, weight, { transposeB: !transposed, precision, ...(bias ? { addend: read(bias) } : {}) })

/** Rows of the site's table `[rows, dim]` for `ids i32 [...]` → `[..., dim]`. */
export const embedding = (site: Site, ids: Sym, forward: Forward): Sym =>
  through(site, ids, forward, ({ weight }, rows) => gatherRows(read(weight), rows))

/** Images `[n, in, h, w]` under the site's kernel `[out, in / groups, kh, kw]`, plus its bias → `[n, out, h', w']`. */
export const convolution = (site: Site, x: Sym, forward: Forward): Sym =>
  through(site, x, forward, (part, input) => convolutionWith(part, read(part.weight), input))

/** Images under this kernel, as the site's moves, plus the site's bias. */
export const convolutionWith = ({ window, bias }: Pick<Site, 'window' | 'bias'>, kernel: Sym, x: Sym): Sym =>
  conv2d(x, kernel, { ...window, bias: bias && read(bias) })

/** x with elements dropped at rate p while training, x itself otherwise. @param stream the site's */
export const dropped = (x: Sym, p: number, { training, seed }: Forward, stream: number): Sym =>
  training && p > 0 ? dropout(x, p, seed!, stream) : x

/** A matrix `[out, in]` as a linear site stores its weight, or a stored one as `[out, in]`. */
export const oriented = ({ transposed }: Pick<Site, 'transposed'>, matrix: Sym): Sym =>
  transposed ? transpose(matrix) : matrix

/** [out, in] of a linear site, however its weight is stored. */
export function linearShape({ weight, transposed }: Site): readonly [number, number] {
  const [rows, columns] = weight.shape as [number, number]
  return transposed ? [columns, rows] : [rows, columns]
}

/** Name of a site's weight in errors and files. */
export const weightName = ({ path }: Pick<Site, 'path'>): string => `${path}.weight`

/** The `weight` of a site whose weight is in a structure: a shape; whoever wants its numbers is told what there is. */
export const absentWeight = (site: Pick<Site, 'path'>, { kind }: StructuredMatrix, shape: readonly number[]): Tensor =>
  shapeOnly(
    shape,
    () =>
      new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: weightName(site),
        expected: 'a dense weight',
        got: `a ${kind} one`,
        hint: `Use a method that only adds to what the module computes, such as plain LoRA, or densifyLinear(model, ['${site.path}']) first.`,
      }),
  )

/** The tensors that make the site's weight, by the name that files give them below its path. */
export const weightTensors = ({ weight, structure }: Site): ReadonlyMap<string, Tensor> =>
  structure ? new Map([...structure.parameters(), ...structure.buffers()]) : new Map([['weight', weight]])

/** What the site computes, or what the forward pass's hook makes of it. */
export function through(site: Site, x: Sym, forward: Forward, compute: (part: Site, input: Sym) => Sym): Sym {
  const { hook } = forward
  const base: SiteComputation = (part = site, input = x) => compute(part, input)
  return x.node.trace.within(site.path, () => (hook?.targets(site) ? hook.apply(site, x, base, forward) : base()))
}
