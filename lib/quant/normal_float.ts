/**
 * NormalFloat codes with scales that are quantised too (QLoRA, Dettmers et al. 2023, arXiv 2305.14314; in the form of LQ-LoRA,
 * Guo et al. 2023, arXiv 2311.12023).
 */
import { abs, add, cast, div, greater, maximum, minimum, mul, select, sub } from '../graph/ops/elementwise.js'
import { pad } from '../graph/ops/gather.js'
import { gatherRows, slice } from '../graph/ops/index.js'
import { max, min, reshape } from '../graph/ops/reduce.js'
import { read, type Sym } from '../graph/sym.js'
import { elementCount } from '../tensor/dtype.js'
import { tensor } from '../tensor/tensor.js'

/** How a matrix is quantised, by LQ-LoRA's names. */
export interface NormalFloatConfig {
  /** Bits of a code. */
  readonly num_bits: 2 | 3 | 4 | 8
  /** Bits of a quantised scale. */
  readonly num_bits_0: 2 | 3 | 4 | 8
  /** Type of the scales of the scales. */
  readonly num_bits_1: 'bf16' | 'fp16' | 'fp32'
  /** Weights per scale. */
  readonly block_size_0: number
  /** Scales per scale of scales. */
  readonly block_size_1: number
}

/** A quantised matrix: what {@link dequantised} makes numbers of. */
export interface NormalFloat {
  /** f32 `[supers, block_size_1, block_size_0]`, whole numbers: the row-major matrix with zeros behind it. */
  readonly codes: Sym
  /** f32 `[supers, block_size_1]`, whole numbers. */
  readonly scales: Sym
  /** f32 `[supers]`, of the values that `num_bits_1` has. */
  readonly superScales: Sym
  /** f32 `[1]` */
  readonly offset: Sym
}

const tail = 0.9677083

/**
 * The 2ᵇ numbers of b bits, ascending from −1 to 1, 0 among them: quantiles of the normal distribution, one more of them
 * positive than negative.
 */
export function normalFloats(bits: number): number[] {
  const half = 2 ** (bits - 1)
  const spaced = (from: number, to: number, count: number): number[] =>
    Array.from({ length: count }, (_, i) => from + ((to - from) * i) / (count - 1))
  const levels = [...spaced(1 - tail, 0.5, half).slice(0, -1), ...spaced(0.5, tail, half + 1)]
  return levels.map((level) => normalQuantile(level) / normalQuantile(tail))
}

const [numerator, denominator] = [
  [-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239],
  [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1],
] as const

/** The normal distribution's quantile for 0.03 ≤ p ≤ 0.97, to 1.2e-9 (Acklam's rational approximation). */
function normalQuantile(p: number): number {
  const q = p - 0.5
  const polynomial = (coefficients: readonly number[]): number => coefficients.reduce((sum, c) => sum * q * q + c, 0)
  return (q * polynomial(numerator)) / polynomial(denominator)
}

/** Bits a weight takes: its code, and its part of the scales. */
export const bitsPerWeight = (config: NormalFloatConfig): number =>
  config.num_bits +
  config.num_bits_0 / config.block_size_0 +
  (config.num_bits_1 === 'fp32' ? 32 : 16) / (config.block_size_0 * config.block_size_1)

/** Sizes of the parts for so many weights. */
export function blockCounts(
  size: number,
  { block_size_0, block_size_1 }: NormalFloatConfig,
): { readonly blocks: number; readonly supers: number } {
  const blocks = Math.ceil(size / block_size_0)
  return { blocks, supers: Math.ceil(blocks / block_size_1) }
}

/**
 * Quantises a matrix, row by row in blocks that may cross from one row into the next. A block's scale s is the largest magnitude
 * in it, quantised as s ≈ o + q t / (2^b₀ − 1): o the smallest s of the matrix, t the largest s − o of a super-block. Codes
 * are those of x / s with the quantised s. What is missing in the last blocks is filled with zeros and has no say in o.
 * @param a f32, of any shape
 */
export function quantised(a: Sym, config: NormalFloatConfig): NormalFloat {
  const { block_size_0: inner, block_size_1: outer, num_bits, num_bits_0 } = config
  const size = elementCount(a.shape)
  const { blocks, supers } = blockCounts(size, config)
  const missing = supers * outer * inner - size
  const flat = missing === 0 ? reshape(a, [-1]) : pad(reshape(a, [-1]), [[0, missing]])
  const grouped = reshape(flat, [supers, outer, inner])
  const exact = max(abs(grouped), { axes: [2] })
  const offset = reshape(min(slice(reshape(exact, [-1]), [{ axis: 0, start: 0, end: blocks }])), [1])
  const above = sub(exact, offset)
  const superScales = rounded(max(above, { axes: [1] }), config.num_bits_1)
  const levels = 2 ** num_bits_0 - 1
  const divisor = reshape(nonzero(superScales), [supers, 1])
  const scales = minimum(maximum(nearestEven(div(mul(above, levels), divisor)), 0), levels)
  const found = { scales, superScales, offset }
  const scale = reshape(nonzero(blockScales(found, config)), [supers, outer, 1])
  return { ...found, codes: nearestCode(div(grouped, scale), normalFloats(num_bits)) }
}

/** The numbers that a quantised matrix stands for, f32, in this shape. */
export function dequantised(quantity: NormalFloat, config: NormalFloatConfig, shape: readonly number[]): Sym {
  const { codes } = quantity
  const values = gatherRows(floats(normalFloats(config.num_bits)), cast(codes, 'i32'))
  const scale = reshape(blockScales(quantity, config), [...codes.shape.slice(0, 2), 1])
  const flat = reshape(mul(values, scale), [-1])
  return reshape(slice(flat, [{ axis: 0, start: 0, end: elementCount(shape) }]), shape)
}

/** s `[supers, block_size_1]` */
function blockScales(
  { scales, superScales, offset }: Omit<NormalFloat, 'codes'>,
  { num_bits_0 }: NormalFloatConfig,
): Sym {
  return add(offset, div(mul(scales, reshape(superScales, [-1, 1])), 2 ** num_bits_0 - 1))
}

/** Where all numbers are 0, their code does not depend on the scale. */
const nonzero = (x: Sym): Sym => select(greater(x, 0), x, 1)

const rounded = (x: Sym, type: NormalFloatConfig['num_bits_1']): Sym =>
  type === 'fp32' ? x : cast(cast(x, type === 'bf16' ? 'bf16' : 'f16'), 'f32')

/** The nearest whole number, of two the even one: what f32 addition does to numbers below 2²². */
function nearestEven(x: Sym): Sym {
  const unit = 1.5 * 2 ** 23
  return sub(add(x, unit), unit)
}

/** The index of the nearest of ascending numbers, of two the lower one: a binary search between their midpoints. */
function nearestCode(x: Sym, values: readonly number[]): Sym {
  const between = floats(values.slice(1).map((value, i) => (Math.fround(value) + Math.fround(values[i]!)) / 2))
  let code = mul(x, 0)
  for (let step = values.length / 2; step >= 1; step /= 2)
    code = add(code, mul(step, greater(x, gatherRows(between, cast(add(code, step - 1), 'i32')))))
  return code
}

const floats = (values: readonly number[]): Sym => read(tensor(Float32Array.from(values), [values.length]))
