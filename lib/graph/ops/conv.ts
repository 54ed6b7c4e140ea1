/** Convolutions of images and sequences. Both gradients are convolutions again, so any order of derivative exists. */
import { elementCount, sameShape } from '../../tensor/dtype.js'
import { pullbackOf } from '../grad.js'
import { type Decomposition, defineOperator, floatType, gradientType, misuse, typeText } from '../operator.js'
import type { Attributes, Sym, SymType } from '../sym.js'
import { add, broadcastTo, constant } from './elementwise.js'
import { placeInZeros, type SliceRange, slice } from './index.js'
import { matmul } from './matmul.js'
import { reshape, sum } from './reduce.js'
import { type Padding, type Pair, type Window, windowOf, windowOutput } from './window.js'

/** Options of {@link conv2d}. */
export interface Conv2dOptions {
  /** `[o]`, added to every output pixel. */
  readonly bias?: Sym | undefined
  /** Default 1. */
  readonly stride?: Pair
  /** Zeros around the image; default 0. */
  readonly padding?: Padding
  /** Distance between the pixels that a window takes; default 1. */
  readonly dilation?: Pair
  /** Output channels see only the input channels of their own group; default 1. */
  readonly groups?: number
}

/** Options of {@link conv1d}. */
export interface Conv1dOptions {
  /** `[o]` */
  readonly bias?: Sym | undefined
  /** Default 1. */
  readonly stride?: number
  /** Default 0. */
  readonly padding?: number | 'same' | 'valid'
  /** Default 1. */
  readonly dilation?: number
  /** Default 1. */
  readonly groups?: number
}

const window = { stride: 'i64[]', padding: 'i64[]', dilation: 'i64[]', groups: 'i64' } as const

/** The window without the shape that an adjoint must be told. */
const geometry = ({ stride, padding, dilation, groups }: Attributes): Attributes => ({
  stride: stride!,
  padding: padding!,
  dilation: dilation!,
  groups: groups!,
})

/** Σ over the places (i, j) of a window: a product of w[:, :, i, j] and the pixels that it meets there, per group. */
const windowProducts: Decomposition = ([x, w, bias], attributes) => {
  const { stride, padding, dilation } = attributes as unknown as Window
  const groups = attributes.groups as number
  const [n, c, h, width] = x!.shape
  const [o, perGroup, ...size] = w!.shape
  const [oh, ow] = windowOutput('conv2d', [h!, width!], size, attributes)
  const [top, bottom, left, right] = padding
  const padded = placeInZeros(x!, [0, 0, top!, left!], [n!, c!, h! + top! + bottom!, width! + left! + right!])
  const along = (axis: number, at: number, count: number): SliceRange => {
    const [step, start] = [stride[axis]!, at * dilation[axis]!]
    return { axis: axis + 2, start, end: start + (count - 1) * step + 1, step }
  }
  let y: Sym | undefined
  for (let i = 0; i < size[0]!; i += 1)
    for (let j = 0; j < size[1]!; j += 1) {
      const pixels = reshape(slice(padded, [along(0, i, oh!), along(1, j, ow!)]), [n!, groups, perGroup!, oh! * ow!])
      const tap = slice(w!, [
        { axis: 2, start: i, end: i + 1 },
        { axis: 3, start: j, end: j + 1 },
      ])
      const weight = broadcastTo(reshape(tap, [groups, o! / groups, perGroup!]), [n!, groups, o! / groups, perGroup!])
      const product = matmul(weight, pixels)
      y = y ? add(y, product) : product
    }
  const result = reshape(y!, [n!, o!, oh!, ow!])
  return [bias ? add(result, reshape(bias, [o!, 1, 1])) : result]
}

/** Zeros of a shape in the dtype of x. */
const zerosOf = (x: Sym, shape: readonly number[]): Sym => broadcastTo(constant(0, gradientType(x)), shape)

/** A multiplication and an addition for each output pixel and each weight that it meets. */
const convFlops = (w: SymType, y: SymType): number => 2 * elementCount(y.shape) * elementCount(w.shape.slice(1))

const conv2dOf = defineOperator({
  name: 'conv2d',
  attributes: window,
  flops: ([, w], [y]) => convFlops(w!, y!),
  types: ([x, w, bias], attributes) => {
    const groups = attributes.groups as number
    const [n, c, ...image] = x!.shape
    const [o, perGroup, ...size] = w!.shape
    const fits = x!.rank === 4 && w!.rank === 4 && groups >= 1 && perGroup! * groups === c && o! % groups === 0
    if (!fits) misuse('conv2d', `x [n, c, h, w] and w [o, c/${groups}, kh, kw]`, `${typeText(x)} and ${typeText(w)}`)
    if (bias && !sameShape(bias.shape, [o!])) misuse('conv2d', `a bias [${o}]`, typeText(bias))
    const dtype = floatType('conv2d', [x, w, bias])
    return [{ shape: [n!, o!, ...windowOutput('conv2d', image, size, attributes)], dtype }]
  },
  decompose: windowProducts,
  vjp: ({ inputs: [x, w, bias], attributes, gradients: [g], wanted }) => [
    wanted[0] ? inputVjp(g!, w!, x!.shape, attributes) : undefined,
    wanted[1] ? weightVjp(x!, g!, w!.shape, attributes) : undefined,
    bias && wanted[2] ? sum(g!, { axes: [0, 2, 3] }) : undefined,
  ],
})

const inputVjpOf = defineOperator({
  name: 'conv2d_input_vjp',
  attributes: { ...window, shape: 'i64[]' },
  flops: ([y, w]) => convFlops(w!, y!),
  types: ([y], { shape }) => [{ shape: shape as readonly number[], dtype: gradientType(y!) }],
  decompose: ([y, w], attributes) => {
    const x = zerosOf(y!, attributes.shape as readonly number[])
    return pullbackOf(([value]) => windowProducts([value, w], attributes), [x], [y])
  },
  vjp: ({ inputs: [y, w], attributes, gradients: [g], wanted }) => [
    wanted[0] ? conv2dOf([g!, w!, undefined], geometry(attributes))[0]! : undefined,
    wanted[1] ? weightVjp(g!, y!, w!.shape, attributes) : undefined,
  ],
})

const weightVjpOf = defineOperator({
  name: 'conv2d_weight_vjp',
  attributes: { ...window, shape: 'i64[]' },
  flops: ([, y], [w]) => convFlops(w!, y!),
  types: ([x], { shape }) => [{ shape: shape as readonly number[], dtype: gradientType(x!) }],
  decompose: ([x, y], attributes) => {
    const w = zerosOf(x!, attributes.shape as readonly number[])
    return pullbackOf(([value]) => windowProducts([x, value], attributes), [w], [y])
  },
  vjp: ({ inputs: [x, y], attributes, gradients: [g], wanted }) => [
    wanted[0] ? inputVjp(y!, g!, x!.shape, attributes) : undefined,
    wanted[1] ? conv2dOf([x!, g!, undefined], geometry(attributes))[0]! : undefined,
  ],
})

/** The adjoint of x ↦ conv2d(x, w). */
const inputVjp = (y: Sym, w: Sym, shape: readonly number[], attributes: Attributes): Sym =>
  inputVjpOf([y, w], { ...geometry(attributes), shape })[0]!

/** The adjoint of w ↦ conv2d(x, w). */
const weightVjp = (x: Sym, y: Sym, shape: readonly number[], attributes: Attributes): Sym =>
  weightVjpOf([x, y], { ...geometry(attributes), shape })[0]!

/**
 * Σ over (c, i, j) of w[o, c, i, j] · x[n, c, stride·y + dilation·i − padding, …] + bias[o].
 * @param x `[n, c, h, w]`
 * @param w `[o, c/groups, kh, kw]`
 * @returns `[n, o, oh, ow]` with oh = ⌊(h + paddings − dilation·(kh − 1) − 1) / stride⌋ + 1
 * @throws ERR_HEDDLE_SHAPE when the channels, the bias or the window do not fit
 */
export function conv2d(x: Sym, w: Sym, options: Conv2dOptions = {}): Sym {
  const { bias, stride = 1, padding = 0, dilation = 1, groups = 1 } = options
  const { stride: s, padding: p, dilation: d } = windowOf('conv2d', w.shape.slice(2), { stride, padding, dilation })
  return conv2dOf([x, w, bias], { stride: s, padding: p, dilation: d, groups })[0]!
}

/**
 * {@link conv2d} along one axis.
 * @param x `[n, c, t]`
 * @param w `[o, c/groups, k]`
 * @returns `[n, o, ot]`
 */
export function conv1d(x: Sym, w: Sym, options: Conv1dOptions = {}): Sym {
  if (x.rank !== 3 || w.rank !== 3)
    misuse('conv1d', 'x [n, c, t] and w [o, c/g, k]', `${typeText(x)} and ${typeText(w)}`)
  const { bias, stride = 1, padding = 0, dilation = 1, groups = 1 } = options
  const image = (value: Sym): Sym => reshape(value, [value.shape[0]!, value.shape[1]!, 1, value.shape[2]!])
  const y = conv2d(image(x), image(w), {
    bias,
    groups,
    stride: [1, stride],
    dilation: [1, dilation],
    padding: typeof padding === 'string' ? padding : [0, padding],
  })
  return reshape(y, [y.shape[0]!, y.shape[1]!, y.shape[3]!])
}
