/** Order along an axis. Ties keep their order; NaN counts as the largest value, as in PyTorch. */
import { defineOperator, floatType, misuse } from '../operator.js'
import type { Attributes, Sym } from '../sym.js'
import { axisOf, moveAxis } from './axes.js'
import { scatterAdd } from './gather.js'

/** Options of {@link sort} and {@link argsort}. */
export interface SortOptions {
  /** Default the last. */
  readonly axis?: number
  /** Largest first. */
  readonly descending?: boolean
}

/** Options of {@link topk}. */
export interface TopKOptions {
  /** Default the last. */
  readonly axis?: number
  /** The k largest, largest first (default), or the k smallest, smallest first. */
  readonly largest?: boolean
}

/** Values in order, and where each came from. */
export interface Sorted {
  /** f32 */
  readonly values: Sym
  /** i32 positions along the axis. */
  readonly indices: Sym
}

function declare(
  name: string,
  attributes: Readonly<Record<string, 'i64'>>,
  kept: (n: number, a: Attributes) => number,
) {
  return defineOperator({
    name,
    attributes,
    types: ([x], given) => {
      const shape = x!.shape.with(-1, kept(x!.shape.at(-1)!, given))
      return [
        { shape, dtype: floatType(name, [x]) },
        { shape, dtype: 'i32' },
      ]
    },
    optionalOutputs: [0, 1],
    vjp: ({ inputs: [x], outputs: [, index], gradients: [g] }) => [
      g ? scatterAdd(index!, g, x!.shape.at(-1)!, -1) : undefined,
    ],
  })
}

const sortOf = declare('sort', { descending: 'i64' }, (n) => n)
const topKOf = declare('top_k', { k: 'i64', descending: 'i64' }, (_, { k }) => k as number)

function along(op: string, x: Sym, axis: number, apply: (rows: Sym) => readonly Sym[]): Sorted {
  const at = axisOf(op, x, axis)
  const [values, indices] = apply(moveAxis(x, at, -1)).map((result) => moveAxis(result, -1, at))
  return { values: values!, indices: indices! }
}

/** x in order along an axis. The gradient of a value goes back to where it came from. */
export const sort = (x: Sym, { axis = -1, descending = false }: SortOptions = {}): Sorted =>
  along('sort', x, axis, (rows) => sortOf([rows], { descending: Number(descending) }))

/** i32 positions that would put x in order along an axis. */
export const argsort = (x: Sym, options: SortOptions = {}): Sym => sort(x, options).indices

/**
 * The k first of {@link sort} along an axis, which becomes k long.
 * @throws ERR_HEDDLE_SHAPE unless k is from 0 to the axis's length
 */
export function topk(x: Sym, k: number, { axis = -1, largest = true }: TopKOptions = {}): Sorted {
  const size = x.shape[axisOf('topk', x, axis)]!
  if (!(Number.isInteger(k) && k >= 0 && k <= size)) misuse('topk', `k from 0 to ${size}`, `${k}`)
  return along('topk', x, axis, (rows) => topKOf([rows], { k, descending: Number(largest) }))
}
