/** Whole numbers of a few bits as bits. */
import { add, div, floor, mul, sub } from '../graph/ops/elementwise.js'
import { concat, slice } from '../graph/ops/index.js'
import { reshape } from '../graph/ops/reduce.js'
import type { Sym } from '../graph/sym.js'
import { packed, unpacked } from './masked_weight.js'

/** u8 `[bits, ⌈size / 8⌉]`: bit p of every number in plane p, the first number in the lowest bit. */
export function bitPlanes(x: Sym, count: number): Sym {
  const planes = Array.from({ length: count }, (_, p) => {
    const shifted = floor(div(x, 2 ** p))
    return reshape(packed(sub(shifted, mul(2, floor(div(shifted, 2))))), [1, -1])
  })
  return concat(planes, 0)
}

/** The numbers of {@link bitPlanes}, f32. */
export function ofBitPlanes(planes: Sym, count: number, shape: readonly number[]): Sym {
  const plane = (p: number): Sym => reshape(slice(planes, [{ axis: 0, start: p, end: p + 1 }]), [-1])
  const terms = Array.from({ length: count }, (_, p) => mul(unpacked(plane(p), shape), 2 ** p))
  return terms.reduce((a, b) => add(a, b))
}
