/** Pooling and interpolation of images `[n, c, h, w]`. All that is linear in the image is one operator, `resample`. */
import { sameShape, shapeText } from '../../tensor/dtype.js'
import { defineOperator, floatType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { scatterAdd } from './gather.js'
import { reshape } from './reduce.js'
import { type Pair, pair, windowOf, windowOutput } from './window.js'

/** Options of {@link maxPool2d}. */
export interface PoolOptions {
  /** Default: the window's size. */
  readonly stride?: Pair
  /** At most half the window; default 0. */
  readonly padding?: Pair
  /** Default 1. */
  readonly dilation?: Pair
}

/** Options of {@link avgPool2d}. */
export interface AveragePoolOptions extends Omit<PoolOptions, 'dilation'> {
  /** Zeros of the padding count as elements; default true, as in PyTorch. */
  readonly countIncludePad?: boolean
}

function checkImages(op: string, x: Sym): void {
  if (x.rank !== 4) misuse(op, 'images [n, c, h, w]', typeText(x))
}

const maxPoolOf = defineOperator({
  name: 'max_pool2d',
  attributes: { size: 'i64[]', stride: 'i64[]', padding: 'i64[]', dilation: 'i64[]' },
  types: ([x], attributes) => {
    const size = attributes.size as readonly number[]
    const [n, c, ...image] = x!.shape
    const shape = [n!, c!, ...windowOutput('max_pool2d', image, size, attributes)]
    return [
      { shape, dtype: floatType('max_pool2d', [x]) },
      { shape, dtype: 'i32' },
    ]
  },
  optionalOutputs: [1],
  vjp: ({ inputs: [x], outputs: [, index], gradients: [g] }) => {
    const [n, c, h, w] = x!.shape
    const flat = (value: Sym): Sym => reshape(value, [n!, c!, -1])
    return [g ? reshape(scatterAdd(flat(index!), flat(g), h! * w!, 2), x!.shape) : undefined]
  },
})

/**
 * The largest element of each window. Padding never wins; the gradient goes to the first of equal ones.
 * @param x `[n, c, h, w]`
 * @throws ERR_HEDDLE_SHAPE when the padding is more than half the window, or a window does not fit
 */
export function maxPool2d(x: Sym, size: Pair, options: PoolOptions = {}): Sym {
  checkImages('max_pool2d', x)
  const { stride = size, padding = 0, dilation = 1 } = options
  const window = windowOf('max_pool2d', pair(size), { stride, padding, dilation })
  if (pair(padding).some((width, axis) => 2 * width > pair(size)[axis]!))
    misuse('max_pool2d', 'a padding of at most half the window', `${padding} for ${size}`)
  return maxPoolOf([x], { size: pair(size), ...window })[0]!
}

/** A sparse matrix: row i has weights[k] at columns[k] for k from offsets[i] up to offsets[i + 1]. */
interface SparseMatrix {
  readonly offsets: readonly number[]
  readonly columns: readonly number[]
  readonly weights: readonly number[]
}

type Row = readonly { readonly column: number; readonly weight: number }[]

function sparse(rows: readonly Row[]): SparseMatrix {
  const offsets = [0]
  for (const row of rows) offsets.push(offsets.at(-1)! + row.length)
  const entries = rows.flat()
  return { offsets, columns: entries.map(({ column }) => column), weights: entries.map(({ weight }) => weight) }
}

function transposed({ offsets, columns, weights }: SparseMatrix, size: number): SparseMatrix {
  const rows = Array.from({ length: size }, (): { column: number; weight: number }[] => [])
  for (let i = 0; i + 1 < offsets.length; ++i)
    for (let k = offsets[i]!; k < offsets[i + 1]!; ++k) rows[columns[k]!]!.push({ column: i, weight: weights[k]! })
  return sparse(rows)
}

const resampleOf = defineOperator({
  name: 'resample',
  attributes: { axis: 'i64', offsets: 'i64[]', columns: 'i64[]', weights: 'f64[]' },
  types: ([x], { axis, offsets }) => [
    {
      shape: x!.shape.with(axis as number, (offsets as readonly number[]).length - 1),
      dtype: floatType('resample', [x]),
    },
  ],
  vjp: ({ inputs: [x], attributes, gradients: [g] }) => {
    const { axis, ...matrix } = attributes
    return [resample(g!, axis as number, transposed(matrix as unknown as SparseMatrix, x!.shape[axis as number]!))]
  },
})

/** y[…, i, …] = Σ_k matrix[i, k] x[…, k, …] along an axis. */
const resample = (x: Sym, axis: number, matrix: SparseMatrix): Sym => resampleOf([x], { axis, ...matrix })[0]!

/** One matrix along each spatial axis; the one that leaves fewer elements first. */
function resampleImages(x: Sym, size: readonly number[], row: (axis: number, output: number) => Row): Sym {
  const axes = [2, 3].sort((a, b) => size[a - 2]! / x.shape[a]! - size[b - 2]! / x.shape[b]!)
  return axes.reduce((y, axis) => {
    const rows = Array.from({ length: size[axis - 2]! }, (_, output) => row(axis, output))
    return resample(y, axis, sparse(rows))
  }, x)
}

/** The mean over positions [from, to) of an axis, divided by `count`. */
const average = (from: number, to: number, count = to - from): Row =>
  Array.from({ length: Math.max(0, to - from) }, (_, k) => ({ column: from + k, weight: 1 / count }))

/**
 * The mean of each window.
 * @param x `[n, c, h, w]`
 * @throws ERR_HEDDLE_SHAPE when the padding is more than half the window, or a window does not fit
 */
export function avgPool2d(x: Sym, size: Pair, options: AveragePoolOptions = {}): Sym {
  checkImages('avg_pool2d', x)
  const { stride = size, padding = 0, countIncludePad = true } = options
  const lengths = pair(size)
  const window = windowOf('avg_pool2d', lengths, { stride, padding, dilation: 1 })
  if (pair(padding).some((width, axis) => 2 * width > lengths[axis]!))
    misuse('avg_pool2d', 'a padding of at most half the window', `${padding} for ${size}`)
  const output = windowOutput('avg_pool2d', x.shape.slice(2), lengths, { ...window })
  return resampleImages(x, output, (axis, i) => {
    const start = i * window.stride[axis - 2]! - window.padding[2 * (axis - 2)]!
    const end = start + lengths[axis - 2]!
    const [from, to] = [Math.max(0, start), Math.min(end, x.shape[axis]!)]
    return average(from, to, countIncludePad ? end - start : to - from)
  })
}

/** Means over bins [⌊i h / oh⌋, ⌈(i + 1) h / oh⌉) that cut the image into `size` of them. */
export function adaptiveAvgPool2d(x: Sym, size: Pair): Sym {
  checkImages('adaptive_avg_pool2d', x)
  return resampleImages(x, pair(size), (axis, i) => {
    const [input, output] = [x.shape[axis]!, pair(size)[axis - 2]!]
    return average(Math.floor((i * input) / output), Math.ceil(((i + 1) * input) / output))
  })
}

/** Options of {@link upsample2d}. */
export interface UpsampleOptions {
  /** Default nearest. */
  readonly mode?: 'nearest' | 'bilinear'
  /** `bilinear`: the corners' pixel centres stay where they are; default false: the image's edges do. */
  readonly alignCorners?: boolean
}

/** Images of another size [h, w] by interpolation, as PyTorch's interpolate (without antialiasing). */
export function upsample2d(x: Sym, size: Pair, options: UpsampleOptions = {}): Sym {
  checkImages('upsample2d', x)
  const { mode = 'nearest', alignCorners = false } = options
  const target = pair(size)
  if (target.some((length) => !(Number.isInteger(length) && length >= 1)) || x.shape[2]! * x.shape[3]! === 0)
    misuse('upsample2d', 'sizes from 1 on', `${shapeText(x.shape)} to ${target}`)
  if (sameShape(target, x.shape.slice(2))) return x
  return resampleImages(x, target, (axis, i) => {
    const [input, output] = [x.shape[axis]!, target[axis - 2]!]
    if (mode === 'nearest') return [{ column: Math.min(input - 1, Math.floor((i * input) / output)), weight: 1 }]
    return linearRow(input, output, i, alignCorners)
  })
}

/** The two pixels that output i lies between. */
function linearRow(input: number, output: number, i: number, alignCorners: boolean): Row {
  const scale = alignCorners ? (output > 1 ? (input - 1) / (output - 1) : 0) : input / output
  const at = alignCorners ? i * scale : Math.max(0, (i + 0.5) * scale - 0.5)
  const column = Math.min(input - 1, Math.floor(at))
  const next = Math.min(input - 1, column + 1)
  const weight = Math.min(1, at - column)
  return [
    { column, weight: 1 - weight },
    { column: next, weight },
  ]
}
