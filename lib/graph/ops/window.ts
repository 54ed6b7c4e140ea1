/** Windows that slide over images: the options that convolution and pooling share. */
import { misuse } from '../operator.js'
import type { Attributes } from '../sym.js'

/** One number for both spatial axes, or one for each: [vertical, horizontal]. */
export type Pair = number | readonly [number, number]

/** Padding of {@link conv2d}: as much on both sides of an axis, none, or so that a stride of 1 keeps the size. */
export type Padding = Pair | 'same' | 'valid'

/** Where windows lie, as a kernel reads it: two of each, and paddings top, bottom, left, right. */
export interface Window {
  readonly stride: readonly number[]
  readonly padding: readonly number[]
  readonly dilation: readonly number[]
}

export const pair = (value: Pair): readonly [number, number] => (typeof value === 'number' ? [value, value] : value)

/** Checks and spells out a window of `size` [kh, kw]. */
export function windowOf(
  op: string,
  size: readonly number[],
  { stride, padding, dilation }: { readonly stride: Pair; readonly padding: Padding; readonly dilation: Pair },
): Window {
  const [strides, dilations] = [pair(stride), pair(dilation)]
  for (const value of [...strides, ...dilations, ...size])
    if (!Number.isInteger(value) || value < 1) misuse(op, 'whole sizes, strides and dilations from 1 on', `${value}`)
  return { stride: strides, dilation: dilations, padding: paddings(op, size, strides, dilations, padding) }
}

function paddings(
  op: string,
  size: readonly number[],
  stride: readonly number[],
  dilation: readonly number[],
  padding: Padding,
): readonly number[] {
  if (padding === 'valid') return [0, 0, 0, 0]
  if (padding === 'same') {
    if (stride.some((step) => step !== 1)) misuse(op, "stride 1 with padding 'same'", `stride ${stride}`)
    // An odd total has its larger half behind, as in PyTorch.
    return size.flatMap((k, axis) => {
      const total = dilation[axis]! * (k - 1)
      return [Math.floor(total / 2), Math.ceil(total / 2)]
    })
  }
  const both = pair(padding)
  for (const value of both)
    if (!Number.isInteger(value) || value < 0) misuse(op, 'whole paddings from 0 on', `${value}`)
  return both.flatMap((value) => [value, value])
}

/** Output size [oh, ow] of windows over an image of [h, w]. */
export function windowOutput(
  op: string,
  image: readonly number[],
  size: readonly number[],
  window: Attributes,
): number[] {
  const { stride, padding, dilation } = window as unknown as Window
  return image.map((length, axis) => {
    const reach = (size[axis]! - 1) * dilation[axis]! + 1
    const room = length + padding[2 * axis]! + padding[2 * axis + 1]! - reach
    if (room < 0) misuse(op, `a padded image of at least ${reach} along axis ${axis + 2}`, `${room + reach}`)
    return Math.floor(room / stride[axis]!) + 1
  })
}
