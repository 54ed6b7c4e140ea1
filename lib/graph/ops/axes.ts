/** How operators whose kernels work on the last axis work along any. */
import { misuse } from '../operator.js'
import type { Sym } from '../sym.js'
import { transpose } from './index.js'

/** The axis as a number from 0 on; negative ones count from the end. */
export function axisOf(op: string, x: Sym, axis: number): number {
  const at = axis < 0 ? axis + x.rank : axis
  if (!Number.isInteger(at) || at < 0 || at >= x.rank) misuse(op, `an axis of a rank-${x.rank} value`, `${axis}`)
  return at
}

/** x with one axis moved to another place, the order of the others kept. */
export function moveAxis(x: Sym, from: number, to: number): Sym {
  const [source, target] = [axisOf('transpose', x, from), axisOf('transpose', x, to)]
  if (source === target) return x
  const order = [...x.shape.keys()].filter((axis) => axis !== source)
  return transpose(x, order.toSpliced(target, 0, source))
}

/** Applies `rows`, which works along the last axis and keeps it, along another one. */
export function alongAxis(op: string, x: Sym, axis: number, rows: (x: Sym) => Sym): Sym {
  const at = axisOf(op, x, axis)
  return moveAxis(rows(moveAxis(x, at, -1)), -1, at)
}
