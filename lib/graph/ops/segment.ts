/** Reductions of the rows that belong to one segment: `x [n, ...]` with `segment i32 [n]` to `[segments, ...]`. */
import { sameShape } from '../../tensor/dtype.js'
import { defineOperator, floatType, gradientType, misuse, typeText } from '../operator.js'
import type { Sym } from '../sym.js'
import { broadcastTo, constant, div, equal, maximum, mul, neg } from './elementwise.js'
import { gatherRows, scatterAddRows } from './index.js'
import { reshape } from './reduce.js'
import { stopGradient } from './stop_gradient.js'

const segmentMaxOf = defineOperator({
  name: 'segment_max',
  attributes: { segments: 'i64' },
  types: ([segment, x], { segments }) => {
    if (segment!.dtype !== 'i32' || x!.rank !== 2 || !sameShape(segment!.shape, [x!.shape[0]!]))
      misuse('segment_max', 'segment i32 [n] and x [n, d]', `${typeText(segment)} and ${typeText(x)}`)
    return [{ shape: [segments as number, x!.shape[1]!], dtype: floatType('segment_max', [x]) }]
  },
  vjp: ({ inputs: [segment, x], outputs: [y], attributes: { segments }, gradients: [g] }) => {
    const isMax = stopGradient(equal(x!, gatherRows(y!, segment!)))
    const ties = gatherRows(scatterAddRows(segment!, isMax, segments as number), segment!)
    return [undefined, mul(div(isMax, maximum(ties, 1)), gatherRows(g!, segment!))]
  },
})

/** Sum of each segment's rows; 0 for an empty one. A segment's number outside of the segments fails the run. */
export const segmentSum = (x: Sym, segment: Sym, segments: number): Sym => scatterAddRows(segment, x, segments)

/** How many rows each segment has, `[segments]` in x's dtype. */
export function segmentCounts(x: Sym, segment: Sym, segments: number): Sym {
  const ones = broadcastTo(constant(1, gradientType(x)), [segment.shape[0]!, 1])
  return reshape(scatterAddRows(segment, ones, segments), [segments])
}

/** Mean of each segment's rows; 0 for an empty one. */
export function segmentMean(x: Sym, segment: Sym, segments: number): Sym {
  const counts = reshape(segmentCounts(x, segment, segments), [segments, ...x.shape.slice(1).map(() => 1)])
  return div(segmentSum(x, segment, segments), maximum(counts, 1))
}

/** Maximum of each segment's rows, −∞ for an empty one; the gradient is shared equally between equal maxima. */
export function segmentMax(x: Sym, segment: Sym, segments: number): Sym {
  const rows = reshape(x, [x.shape[0]!, x.shape.slice(1).reduce((a, b) => a * b, 1)])
  return reshape(segmentMaxOf([segment, rows], { segments })[0]!, [segments, ...x.shape.slice(1)])
}

/** Minimum of each segment's rows, +∞ for an empty one; the gradient is shared equally between equal minima. */
export const segmentMin = (x: Sym, segment: Sym, segments: number): Sym => neg(segmentMax(neg(x), segment, segments))
