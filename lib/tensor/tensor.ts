/** A concrete, native buffer with a shape: parameters, batches, results. Few and long-lived; released by `dispose()`. */
import { HeddleError } from '../errors.js'
import { addon, type NativeTensor } from '../native.js'
import { type DType, dtypeOf, elementCount, sameShape, shapeText, type TypedArray, viewAs } from './dtype.js'

/** A native buffer with a shape and a dtype. */
export class Tensor {
  readonly shape: readonly number[]
  readonly dtype: DType
  readonly #native: NativeTensor
  readonly #absent: (() => HeddleError) | undefined

  /**
   * Wraps a native tensor; users call {@link tensor} or {@link zeros}.
   * @param absent what {@link shapeOnly} throws
   * @internal
   */
  constructor(native: NativeTensor, absent?: () => HeddleError) {
    this.#native = native
    this.#absent = absent
    this.shape = native.shape
    this.dtype = native.dtype
  }

  /** Number of elements. */
  get size(): number {
    return elementCount(this.shape)
  }

  /**
   * The native handle.
   * @internal
   * @throws ERR_HEDDLE_ARGUMENT after `dispose()`, and always where there are no numbers, see {@link shapeOnly}
   */
  get native(): NativeTensor {
    if (this.#absent) throw this.#absent()
    if (this.#native.disposed)
      throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
        place: 'Tensor',
        expected: 'a live tensor',
        got: `a disposed one of shape ${shapeText(this.shape)}`,
      })
    return this.#native
  }

  /** A copy of the elements, row-major, made off the event loop. */
  async data(): Promise<TypedArray> {
    return viewAs(this.dtype, await addon.tensorData(this.native))
  }

  /**
   * A copy of the elements of a tensor of at most 1 MiB, made here and now.
   * @internal
   */
  smallData(): TypedArray {
    return viewAs(this.dtype, addon.tensorDataSync(this.native))
  }

  /** The single element of a tensor of size 1. */
  item(): number {
    if (this.size !== 1)
      throw new HeddleError('ERR_HEDDLE_SHAPE', {
        place: 'Tensor.item',
        expected: 'one element',
        got: `shape ${shapeText(this.shape)}`,
      })
    return Number(this.smallData()[0])
  }

  /** Frees the native memory as soon as no running program uses it; the tensor is unusable from now on. */
  dispose(): void {
    if (!this.#native.disposed) this.#native.dispose()
  }

  /** Same as {@link Tensor.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/**
 * Copies elements into a new tensor.
 * @param data row-major elements; plain numbers become `f32` unless `dtype` says otherwise
 * @param shape defaults to `[data.length]`
 * @throws ERR_HEDDLE_SHAPE when the number of elements is not the shape's product
 */
export function tensor(data: TypedArray | readonly number[], shape?: readonly number[], dtype?: DType): Tensor {
  const type = dtype ?? (ArrayBuffer.isView(data) ? dtypeOf(data) : 'f32') ?? 'bf16'
  const elements = ArrayBuffer.isView(data) && (dtypeOf(data) ?? type) === type ? data : convert(data, type)
  const dims = shape ?? [elements.length]
  if (elementCount(dims) !== elements.length)
    throw new HeddleError('ERR_HEDDLE_SHAPE', {
      place: 'tensor',
      expected: `${elementCount(dims)} elements for shape ${shapeText(dims)}`,
      got: `${elements.length}`,
    })
  return new Tensor(addon.tensorFromData(type, [...dims], elements))
}

/** A tensor of zeros. */
export const zeros = (shape: readonly number[], dtype: DType = 'f32'): Tensor =>
  new Tensor(addon.tensorZeros(dtype, [...shape]))

/**
 * A tensor of a shape and no numbers: what stands in the place of a weight that is kept in another form. Whoever reads
 * it, in a trace or outside, is thrown what `absent` makes.
 * @internal
 */
export const shapeOnly = (shape: readonly number[], absent: () => HeddleError, dtype: DType = 'f32'): Tensor =>
  new Tensor({ shape, dtype, byteLength: 0, version: 0, disposed: true, dispose() {} }, absent)

/** Overwrites a small tensor (≤ 1 MiB) in place, e.g. a run-time scalar. */
export function write(target: Tensor, data: TypedArray): void {
  addon.tensorWrite(target.native, data)
}

/** Rows of a tensor to be filled, see {@link writeRows}. */
export interface RowWrite {
  /** `[rows, width]`, f32 or bf16, of its own memory. */
  readonly target: Tensor
  readonly first: number
  readonly count: number
  /** f32 `[n, width]` with n ≤ count, or `[width, n]` if `transposed`; default: no rows. */
  readonly source?: Tensor | undefined
  readonly transposed?: boolean
  /** Factor of the source's numbers, as f32; default 1. */
  readonly scale?: number | undefined
}

/**
 * Makes rows of tensors other tensors' rows, times a scale, and those behind them zero, in place and off the event loop.
 * Programs may read other rows of the same tensors meanwhile.
 * @internal
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE, and ERR_HEDDLE_ARGUMENT for a target that is a view of a file
 */
export const writeRows = (writes: readonly RowWrite[]): Promise<void> =>
  addon.writeRows(writes.map((each) => ({ ...each, target: each.target.native, source: each.source?.native })))

/** True when both have the same shape and dtype. */
export const sameType = (a: Tensor, b: Tensor): boolean => a.dtype === b.dtype && sameShape(a.shape, b.shape)

function convert(data: TypedArray | readonly number[], dtype: DType): TypedArray {
  const source = data as ArrayLike<number>
  switch (dtype) {
    case 'f32':
      return Float32Array.from(source)
    case 'f64':
      return Float64Array.from(source)
    case 'i32':
      return Int32Array.from(source)
    case 'u32':
      return Uint32Array.from(source)
    case 'u8':
      return Uint8Array.from(source)
    default:
      throw new HeddleError('ERR_HEDDLE_DTYPE', {
        place: 'tensor',
        expected: `a typed array that already holds ${dtype}`,
        got: 'numbers of another type',
      })
  }
}
