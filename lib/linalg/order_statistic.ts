/** Elements by their rank in large tensors, exactly and without sorting them. */
import { abs, greater, sub } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { reshape, sum } from '../graph/ops/reduce.js'
import { program } from '../graph/program.js'
import { read, type Sym } from '../graph/sym.js'
import { type Tensor, tensor } from '../tensor/tensor.js'

/** Which element of which tensors. */
export interface OrderQuery {
  /** f32, finite; their elements are taken together. */
  readonly tensors: readonly Tensor[]
  /** Place among all elements, sorted, from 0. */
  readonly index: number
}

/** Options of {@link orderStatistics}. */
export interface OrderOptions {
  /** Sort by |x|, and give |x|. */
  readonly magnitudes?: boolean
}

/**
 * For each query the element that would stand at its index were its tensors sorted. At most 32 passes, each reading all
 * tensors once: the bits of floats are in the order of their values, so that bisecting them ends at the element itself.
 */
export async function orderStatistics(
  queries: readonly OrderQuery[],
  { magnitudes = false }: OrderOptions = {},
): Promise<number[]> {
  const count = program((thresholds) =>
    queries.map(({ tensors }, i) =>
      tensors.map((each) => {
        const value = magnitudes ? abs(read(each)) : read(each)
        return atMost(value, thresholds!, i)
      }),
    ),
  )
  const bounds = queries.map(() => ({
    low: orderOf(Number.NEGATIVE_INFINITY),
    high: orderOf(Number.POSITIVE_INFINITY),
  }))
  while (bounds.some(({ low, high }) => low < high)) {
    const middles = bounds.map(({ low, high }) => Math.floor((low + high) / 2))
    using thresholds = tensor(Float32Array.from(middles, floatOf))
    for (const [i, results] of (await count(thresholds)).entries()) {
      const bound = bounds[i]!
      // The least value with more than `index` elements at or below it.
      if ((await totalOf(results)) > queries[i]!.index) bound.high = middles[i]!
      else bound.low = Math.min(middles[i]! + 1, bound.high)
    }
  }
  count.dispose()
  // Adding 0 makes one zero of two.
  return bounds.map(({ low }) => floatOf(low) + 0)
}

/** How many elements of each row are at most the i-th threshold: exact in f32 for rows of up to 2^24. */
function atMost(value: Sym, thresholds: Sym, i: number): Sym {
  const rows = reshape(value, [value.shape[0] ?? 1, -1])
  const threshold = slice(thresholds, [{ axis: 0, start: i, end: i + 1 }])
  return sum(sub(1, greater(rows, threshold)), { axes: [1] })
}

async function totalOf(counts: readonly Tensor[]): Promise<number> {
  let total = 0
  for (const each of counts) {
    for (const value of await each.data()) total += Number(value)
    each.dispose()
  }
  return total
}

const word = new DataView(new ArrayBuffer(4))

/** A number of 32 bits that grows with the float. */
function orderOf(value: number): number {
  word.setFloat32(0, value)
  const bits = word.getUint32(0)
  return bits >= 2 ** 31 ? 2 ** 32 - 1 - bits : bits + 2 ** 31
}

/** The float that {@link orderOf} gives this number. */
function floatOf(order: number): number {
  word.setUint32(0, order >= 2 ** 31 ? order - 2 ** 31 : 2 ** 32 - 1 - order)
  return word.getFloat32(0)
}
