/** ΔW = s · L C R at a linear or convolution site: the form that many methods share, whatever of it they train. */
import { HeddleError } from '../errors.js'
import { conv2d } from '../graph/ops/conv.js'
import { add, cast, mul } from '../graph/ops/elementwise.js'
import { transpose } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { reshape } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import {
  convolutionWith,
  dropped,
  type Forward,
  linearShape,
  linearWith,
  type Site,
  type SiteKind,
} from '../nn/site.js'
import { elementCount } from '../tensor/dtype.js'
import type { Factors, SiteContext } from './parametrization.js'
import { unsuited } from './targeting.js'

/** The weight of a site as one matrix `[out, inner]`. */
export interface MatrixShape {
  readonly out: number
  /** Inputs; of a convolution times its window. */
  readonly inner: number
  readonly isConvolution: boolean
  /** The weight is stored `[inner, out]`. */
  readonly isTransposed: boolean
}

/** @throws ERR_HEDDLE_ARGUMENT naming the site, where it is of another kind */
export function matrixShape(method: string, site: Site, kinds: readonly SiteKind[] = ['linear']): MatrixShape {
  if (!kinds.includes(site.kind))
    throw unsuited(method, site, `a ${kinds.map(nameOf).join(' or ')} module`, `a ${nameOf(site.kind)} module`)
  if (site.kind === 'linear') {
    const [out, inner] = linearShape(site)
    return { out, inner, isConvolution: false, isTransposed: site.transposed === true }
  }
  const [out, ...window] = site.weight.shape as [number, ...number[]]
  return { out, inner: elementCount(window), isConvolution: true, isTransposed: false }
}

const nameOf = (kind: SiteKind): string => (kind === 'conv2d' ? 'convolution' : kind)

/** The weight as `[out, inner]`, f32. */
export function asMatrix(weight: Sym, { out, inner, isTransposed }: MatrixShape): Sym {
  const matrix = isTransposed ? transpose(weight) : reshape(weight, [out, inner])
  return cast(matrix, 'f32')
}

/** Says of which site a weight is that cannot be decomposed. */
export async function ofSite<T>({ path }: Pick<Site, 'path'>, decompose: () => Promise<T>): Promise<T> {
  try {
    return await decompose()
  } catch (cause) {
    if (!(cause instanceof HeddleError)) throw cause
    const { code, expected, got } = cause
    throw new HeddleError(code, { place: `weight of ${path}`, expected, got, cause })
  }
}

/** ΔW = scale · left core right. */
export interface LowRankChange {
  /** `[out, r]` */
  readonly left: Sym
  /** `[r]`, a diagonal, or `[r, r]`; default: nothing stands between. */
  readonly core?: Sym
  /** `[r, inner]` */
  readonly right: Sym
  /** Default 1. */
  readonly scale?: number
}

/** ΔW as b a. */
export function factorsOf({ left, core, right, scale = 1 }: LowRankChange): Factors {
  if (!core) return { a: right, b: scale === 1 ? left : mul(left, scale) }
  return { a: right, b: core.rank === 1 ? mul(left, scaled(core, scale)) : matmul(left, core, { alpha: scale }) }
}

const scaled = (x: Sym, factor: number): Sym => (factor === 1 ? x : mul(x, factor))

/** W + Σ ΔW, as W is stored. */
export const changedWeight = (weight: Sym, changes: readonly LowRankChange[], shape: MatrixShape): Sym =>
  changes.reduce((sum, change) => changed(sum, factorsOf(change), shape), weight)

function changed(weight: Sym, { a, b }: Factors, { isTransposed, isConvolution }: MatrixShape): Sym {
  if (isConvolution) return add(weight, reshape(matmul(b, a), weight.shape))
  return isTransposed
    ? matmul(a, b, { transposeA: true, transposeB: true, addend: weight })
    : matmul(b, a, { addend: weight })
}

/** How {@link changedLinear} computes. */
export type ChangePath = 'products' | 'weight'

/**
 * The cheaper way, in multiplications that a training step has beside those of the plain site: for n rows, products cost
 * r (in + out) each in the forward and in the backward pass; a weight of its own is made (in · out · r), and its gradient
 * (n · in · out) is projected back (in · out · r), unless the compiler finds fewer in n r (in + out). Only ranks near the
 * full one make the weight worth it, which is held until the backward pass.
 */
export function changePath(n: number, r: number, { out, inner }: Pick<MatrixShape, 'out' | 'inner'>): ChangePath {
  return 2 * n * r * (inner + out) <= inner * out * (n + 2 * r) ? 'products' : 'weight'
}

/** Options of {@link changedLinear}. */
export interface ChangedLinearOptions {
  /** Probability of dropping an element of the change's input in training. Default 0. */
  readonly dropout?: number
  /** Default: the one that {@link changePath} finds cheaper. A convolution, a change with dropout, and a site whose weight is in a structure or in blocks have no choice. */
  readonly path?: ChangePath
}

/** The output of the site with W + Σ ΔW: base(x) + Σ s L (C (R x)), or W + Σ ΔW made and multiplied with. */
export function changedLinear(
  context: SiteContext,
  shape: MatrixShape,
  changes: readonly LowRankChange[],
  { dropout: p = 0, path }: ChangedLinearOptions = {},
): Sym {
  const { x, base, site, forward, stream } = context
  const weight = (): Sym => changedWeight(read(site.weight), changes, shape)
  if (shape.isConvolution) return convolutionWith(site, weight(), x)
  const isDropping = forward.training && p > 0
  const n = elementCount(x.shape.slice(0, -1))
  const r = changes.reduce((total, { right }) => total + right.shape[0]!, 0)
  const hasNumbers = !site.structure && forward.precision !== 'stored'
  if (!isDropping && hasNumbers && (path ?? changePath(n, r, shape)) === 'weight')
    return linearWith(site, weight(), x, forward)
  const input = dropped(x, p, forward, stream)
  return changes.reduce((y, change) => add(y, changeOutput(site, input, change, forward)), base())
}

/**
 * What a change adds to the site's output, each factor by itself: s L (C (R x)). At a convolution, where there is no C, R is
 * a kernel like the site's own over all channels, and L `[out, r / groups]` one of single pixels in the site's groups.
 */
export function changeOutput(
  site: Site,
  x: Sym,
  { left, core, right, scale = 1 }: LowRankChange,
  { precision }: Pick<Forward, 'precision'>,
): Sym {
  if (site.kind === 'conv2d') {
    const { groups = 1 } = site.window ?? {}
    const kernel = reshape(right, [right.shape[0]!, -1, ...site.weight.shape.slice(2)])
    const inner = conv2d(x, kernel, { ...site.window, groups: 1 })
    return mul(conv2d(inner, reshape(left, [...left.shape, 1, 1]), { groups }), scale)
  }
  const z = matmul(x, right, { transposeB: true, precision })
  const inner = !core ? z : core.rank === 1 ? mul(z, core) : matmul(z, core, { transposeB: true, precision })
  return matmul(inner, left, { transposeB: true, alpha: scale, precision })
}
