/** What every weight file gives, whatever its format: named tensors that are only read when asked for. */
import type { NativeTensor } from '../native.js'
import type { DType } from '../tensor/dtype.js'

/** One tensor of a weight file. */
export interface StoredTensor {
  readonly name: string
  /** Outermost dimension first, e.g. `[out, in]` for a linear layer. */
  readonly shape: readonly number[]
  /** How the file stores it: `f32`, `bf16`, `q4_1`, … */
  readonly encoding: string
  /** Size in the file. */
  readonly byteLength: number
  /**
   * The tensor as elements of `dtype`; zero-copy when the file stores just these, else decoded on first use.
   * The caller disposes it.
   * @throws ERR_HEDDLE_DTYPE when the encoding cannot become that dtype
   */
  load(dtype: DType): NativeTensor
}

/** Bytes of a file that hold one tensor. */
export interface ByteRange {
  readonly name: string
  readonly start: number
  readonly end: number
}

/** The first pair of ranges that share a byte, if any. */
export function findOverlap(ranges: readonly ByteRange[]): readonly [ByteRange, ByteRange] | undefined {
  const sorted = ranges.filter(({ start, end }) => end > start).sort((a, b) => a.start - b.start)
  const index = sorted.findIndex((range, i) => i > 0 && range.start < sorted[i - 1]!.end)
  return index < 0 ? undefined : [sorted[index - 1]!, sorted[index]!]
}
