/** Element types; the order is the wire code in instruction lists (cpp/core/dtype.h); append only. */
export const dtypes = ['f32', 'f64', 'bf16', 'f16', 'i32', 'i64', 'u8', 'u32'] as const
/** Element type of a tensor. */
export type DType = (typeof dtypes)[number]

const sizes: Readonly<Record<DType, number>> = { f32: 4, f64: 8, bf16: 2, f16: 2, i32: 4, i64: 8, u8: 1, u32: 4 }

/** Bytes per element. */
export const dtypeSize = (dtype: DType): number => sizes[dtype]

/** Arrays that can hold a tensor's elements. */
export type TypedArray =
  | Float32Array
  | Float64Array
  | Uint16Array
  | Int32Array
  | BigInt64Array
  | Uint8Array
  | Uint32Array

/** The array that shows a buffer's elements; bf16 and f16 appear as their bits. */
export function viewAs(dtype: DType, buffer: ArrayBuffer): TypedArray {
  switch (dtype) {
    case 'f32':
      return new Float32Array(buffer)
    case 'f64':
      return new Float64Array(buffer)
    case 'bf16':
    case 'f16':
      return new Uint16Array(buffer)
    case 'i32':
      return new Int32Array(buffer)
    case 'i64':
      return new BigInt64Array(buffer)
    case 'u8':
      return new Uint8Array(buffer)
    case 'u32':
      return new Uint32Array(buffer)
  }
}

/** The dtype that a typed array stands for; 16-bit arrays are ambiguous and must be named by the caller. */
export function dtypeOf(data: TypedArray): DType | undefined {
  if (data instanceof Float32Array) return 'f32'
  if (data instanceof Float64Array) return 'f64'
  if (data instanceof Int32Array) return 'i32'
  if (data instanceof BigInt64Array) return 'i64'
  if (data instanceof Uint8Array) return 'u8'
  if (data instanceof Uint32Array) return 'u32'
  return undefined
}

/** Number of elements of a shape. */
export const elementCount = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1)

export const sameShape = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((size, axis) => size === b[axis])

export const shapeText = (shape: readonly number[]): string => `[${shape.join(', ')}]`
