/** What LoRA computes at a site: linear, embedding or convolution. */
import { add, div, maximum, mul, sqrt, square, sub } from '../../graph/ops/elementwise.js'
import { concat, gatherRows, transpose } from '../../graph/ops/index.js'

import { matmul, type Precision } from '../../graph/ops/matmul.js'
import { reshape, sum } from '../../graph/ops/reduce.js'
import { stopGradient } from '../../graph/ops/stop_gradient.js'
import { read, type Sym } from '../../graph/sym.js'
import { dropped, type Site } from '../../nn/site.js'
import { changeOutput } from '../low_rank_change.js'
import type { MergeContext, Merged, SiteContext, SitePlan } from '../parametrization.js'
import type { LoraInit } from './lora_config.js'

/** The matrices that LoRA sees at a site. */
export interface LoraShape {
  readonly kind: 'linear' | 'embedding' | 'conv2d'
  /** Rows of B. */
  readonly out: number
  /** Columns of A: an embedding's rows. */
  readonly inner: number
  readonly aShape: (r: number) => readonly number[]
  readonly bShape: (r: number) => readonly number[]
  readonly magnitudeShape: readonly number[]
  /** The weight is stored `[inner, out]`, as an embedding's and GPT-2's linear ones are. */
  readonly isTransposed: boolean
  readonly groups: number
}

/** What decides everything at one site. */
export interface LoraSettings {
  readonly shape: LoraShape
  readonly r: number
  readonly scale: number
  readonly init: LoraInit
  /** B has a bias. */
  readonly hasBias: boolean
  readonly isDora: boolean
  readonly dropout: number
}

/** Undefined where LoRA cannot act. */
export function shapeAt(site: Site): LoraShape | undefined {
  if (site.kind === 'conv2d') return convolutionShape(site)
  if (site.kind !== 'linear' && site.kind !== 'embedding') return undefined
  const [rows, columns] = site.weight.shape as [number, number]
  const isTransposed = site.kind === 'embedding' || site.transposed === true
  const [out, inner] = isTransposed ? [columns, rows] : [rows, columns]
  return {
    kind: site.kind,
    out,
    inner,
    aShape: (r) => [r, inner],
    bShape: (r) => [out, r],
    magnitudeShape: [out],
    isTransposed,
    groups: 1,
  }
}

/** A is a convolution like the site's own over all channels, B one of single pixels in the site's groups, as in PEFT. */
function convolutionShape({ weight, window }: Site): LoraShape {
  const [out, perGroup, height, width] = weight.shape as [number, number, number, number]
  const groups = window?.groups ?? 1
  return {
    kind: 'conv2d',
    out,
    inner: perGroup * groups * height * width,
    aShape: (r) => [r, perGroup * groups, height, width],
    bShape: (r) => [out, r / groups, 1, 1],
    magnitudeShape: [1, out, 1, 1],
    isTransposed: false,
    groups,
  }
}

/** Names of A, B and B's bias in the adapter's file. */
export const namesAt = ({ kind }: LoraShape): { readonly a: string; readonly b: string; readonly bias: string } =>
  kind === 'embedding'
    ? { a: 'lora_embedding_A', b: 'lora_embedding_B', bias: '' }
    : { a: 'lora_A.weight', b: 'lora_B.weight', bias: 'lora_B.bias' }

export const magnitudeName = 'lora_magnitude_vector'

/** y = base(x) + s · update(x), or DoRA's form of it. */
export function loraForward(settings: LoraSettings): (context: SiteContext) => Sym {
  return (context) => {
    const { x, base, forward, stream } = context
    const input = settings.shape.kind === 'embedding' ? x : dropped(x, settings.dropout, forward, stream)
    const delta = update(settings, context, input)
    return settings.isDora ? decomposed(settings, context, input, delta) : add(base(), delta)
  }
}

/** c (y − bias) + bias with c = m/‖W + s B A‖: the ratio scales all but the bias. */
function decomposed(settings: LoraSettings, context: SiteContext, input: Sym, delta: Sym): Sym {
  const { site, x, base, parameters, forward } = context
  const { a, b } = factors(settings, parameters)
  const ratio = magnitudeRatio(settings, read(site.weight), a, b, read(parameters[magnitudeName]!), forward.precision)
  const c = alongOutput(settings.shape, ratio)
  if (input === x) {
    const scaled = mul(c, add(base(), delta))
    return site.bias ? add(scaled, mul(sub(1, c), alongOutput(settings.shape, read(site.bias)))) : scaled
  }
  // With dropout PEFT drops from the input of the base product too, but only in the part where the ratio is not 1.
  const product = base({ ...site, bias: undefined }, input)
  return add(base(), add(mul(sub(c, 1), product), mul(c, delta)))
}

/** s · (B A x + bias of B). */
function update({ shape, scale, hasBias }: LoraSettings, { site, parameters, forward }: SiteContext, x: Sym): Sym {
  const names = namesAt(shape)
  const [a, b] = [read(parameters[names.a]!), read(parameters[names.b]!)]
  const product =
    shape.kind === 'embedding'
      ? matmul(gatherRows(transpose(a), x), b, { transposeB: true, alpha: scale, precision: forward.precision })
      : changeOutput(site, x, { left: reshape(b, [shape.out, -1]), right: a, scale }, forward)
  return hasBias ? add(product, mul(alongOutput(shape, read(parameters[names.bias]!)), scale)) : product
}

/** W + s B A, and DoRA's m (W + s B A)/‖W + s B A‖. */
export function loraMerged(settings: LoraSettings): (context: MergeContext) => Merged {
  return ({ weight, bias, parameters }) => {
    const { shape, scale, isDora, hasBias } = settings
    const { a, b } = factors(settings, parameters)
    const sumOf = add(weight, reshape(weightChange(shape, a, b, scale), weight.shape))
    if (isDora) {
      const c = magnitudeRatio(settings, weight, a, b, read(parameters[magnitudeName]!), 'f32')
      return { weight: mul(alongRows(shape, c, weight), sumOf) }
    }
    if (!hasBias) return { weight: sumOf }
    return { weight: sumOf, bias: add(bias!, mul(read(parameters[namesAt(shape).bias]!), scale)) }
  }
}

/** ΔW = (s B) A; with a weight of the adapter's own, its initial product is taken off. */
export const loraFactors =
  ({ scale }: LoraSettings): NonNullable<SitePlan['factors']> =>
  ({ parameters, initial }) => {
    const [a, b] = ['lora_A.weight', 'lora_B.weight'] as const
    const own = { a: read(parameters[a]!), b: mul(read(parameters[b]!), scale) }
    if (!initial) return own
    return {
      a: concat([own.a, read(initial[a]!)], 0),
      b: concat([own.b, mul(read(initial[b]!), -scale)], 1),
    }
  }

/** A `[r, inner]` and B `[out, r]` as matrices. */
function factors(
  { shape, r }: LoraSettings,
  parameters: MergeContext['parameters'],
): { readonly a: Sym; readonly b: Sym } {
  const names = namesAt(shape)
  return {
    a: reshape(read(parameters[names.a]!), [r, shape.inner]),
    b: reshape(read(parameters[names.b]!), [shape.out, r]),
  }
}

/** s · B A as the weight is stored. */
export const weightChange = ({ isTransposed }: LoraShape, a: Sym, b: Sym, scale: number): Sym =>
  isTransposed ? matmul(a, b, { transposeA: true, transposeB: true, alpha: scale }) : matmul(b, a, { alpha: scale })

/** m/‖W + s B A‖ in m's shape; the norm is a constant of differentiation (section 4.3 of the paper). */
function magnitudeRatio(
  settings: LoraSettings,
  weight: Sym,
  a: Sym,
  b: Sym,
  magnitude: Sym,
  precision: Precision,
): Sym {
  const norm = stopGradient(rowNorm(settings.shape, weight, a, b, settings.scale, precision))
  return div(magnitude, reshape(norm, magnitude.shape))
}

/**
 * ‖W_i + s (B A)_i‖ `[out]` without the product B A:
 * ‖W_i‖² + 2 s ⟨B_i, (W Aᵀ)_i⟩ + s² ⟨B_i, (B A Aᵀ)_i⟩.
 */
export function rowNorm(
  { isTransposed, out }: LoraShape,
  weight: Sym,
  a: Sym,
  b: Sym,
  scale: number,
  precision: Precision,
): Sym {
  const matrix = isTransposed ? weight : reshape(weight, [out, -1])
  const own = sum(square(matrix), { axes: [isTransposed ? 0 : 1] })
  // A Wᵀ, not W Aᵀ: the frozen right operand is the one that the forward pass has packed.
  const cross = transpose(matmul(a, matrix, { transposeB: !isTransposed, precision }))
  const gram = matmul(b, matmul(a, a, { transposeB: true }))
  const twice = sum(mul(b, add(mul(cross, 2 * scale), mul(gram, scale * scale))), { axes: [1] })
  return sqrt(maximum(add(own, twice), 0))
}

/** One number per row of B, in a shape that broadcasts over the output. */
const alongOutput = ({ kind, out }: LoraShape, c: Sym): Sym => reshape(c, kind === 'conv2d' ? [out, 1, 1] : [out])

/** One number per row of B, in a shape that broadcasts over the weight. */
const alongRows = ({ isTransposed, out }: LoraShape, c: Sym, weight: Sym): Sym =>
  reshape(c, isTransposed ? [out] : [out, ...weight.shape.slice(1).map(() => 1)])
