/** k-means: Lloyd's iterations from a k-means++ start (Arthur and Vassilvitskii 2007). */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import {
  add,
  cast,
  div,
  equal,
  floor,
  less,
  maximum,
  minimum,
  mul,
  neg,
  select,
  square,
  sub,
} from '../graph/ops/elementwise.js'
import { expandDims } from '../graph/ops/gather.js'
import { gatherRows, scatterAddRows, slice } from '../graph/ops/index.js'
import { matmul } from '../graph/ops/matmul.js'
import { randomUniform } from '../graph/ops/random.js'
import { argmax, max, reshape, sum } from '../graph/ops/reduce.js'
import { cumsum } from '../graph/ops/scan.js'
import { segmentCounts, segmentSum } from '../graph/ops/segment.js'
import { topk } from '../graph/ops/sort.js'
import type { RunOptions } from '../graph/program.js'
import { program } from '../graph/program.js'
import { read, type Sym } from '../graph/sym.js'
import { shapeText } from '../tensor/dtype.js'
import { seedTensor } from '../tensor/seed.js'
import { type Tensor, tensor } from '../tensor/tensor.js'

/** Options of {@link kMeans}. */
export interface KMeansOptions extends RunOptions {
  readonly clusters: number
  /** Of the start; default 0. */
  readonly seed?: number
  /** Centres `[clusters, d]` to start from instead of k-means++. */
  readonly initial?: Tensor
  /** At most so many of Lloyd's iterations; default 100. */
  readonly iterations?: number
  /** Stop when the inertia falls by less than this share of itself; default 1e-6. */
  readonly tolerance?: number
}

/** What {@link kMeans} gives. */
export interface KMeans {
  /** `[clusters, d]` */
  readonly centers: Tensor
  /** i32 `[n]`: the nearest centre of each point. */
  readonly labels: Tensor
  /** Sum of the squared distances of points to their centres. */
  readonly inertia: number
  readonly iterations: number
}

const schema = z.strictObject({
  clusters: z.int().min(1),
  seed: z.int().min(0).default(0),
  iterations: z.int().min(1).default(100),
  tolerance: z.number().min(0).default(1e-6),
  initial: z.unknown().optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/**
 * Clusters of `points [n, d]` (f32 or f64). A cluster that loses all its points starts again at the point that is
 * farthest from its centre. Deterministic for a seed, on any number of threads.
 * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT with more clusters than points; ERR_HEDDLE_ABORTED
 */
export async function kMeans(points: Tensor, options: KMeansOptions): Promise<KMeans> {
  const { clusters, seed, iterations, tolerance } = parseConfig('kMeans', schema, options)
  const { signal, initial } = options
  if (points.shape.length !== 2)
    throw new HeddleError('ERR_HEDDLE_SHAPE', {
      place: 'kMeans',
      expected: 'points [n, d]',
      got: shapeText(points.shape),
    })
  if (clusters > points.shape[0]!)
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'kMeans.clusters',
      expected: `at most ${points.shape[0]}, the number of points`,
      got: `${clusters}`,
    })
  let centers = initial
    ? await computed((x) => mul(x!, 1), [initial])
    : await spreadStart(points, clusters, seed, signal)
  const step = program((x, c) => lloyd(x!, c!))
  try {
    let before = Number.POSITIVE_INFINITY
    for (let iteration = 1; ; iteration += 1) {
      const next = await step.run([points, centers], { signal })
      const inertia = next.inertia.item()
      next.inertia.dispose()
      if (iteration === iterations || before - inertia <= tolerance * inertia) {
        next.centers.dispose()
        return { centers, labels: next.labels, inertia, iterations: iteration }
      }
      before = inertia
      next.labels.dispose()
      centers.dispose()
      centers = next.centers
    }
  } finally {
    step.dispose()
  }
}

/** ‖x − c‖² `[n, k]`, not below 0. */
function squaredDistances(x: Sym, c: Sym): Sym {
  const lengths = (a: Sym): Sym => sum(square(a), { axes: [1] })
  const cross = matmul(x, c, { transposeB: true, alpha: -2 })
  return maximum(add(add(cross, expandDims(lengths(x), 1)), lengths(c)), 0)
}

/** Labels and inertia for these centres, and the means of the points that they got. */
function lloyd(x: Sym, centers: Sym) {
  const clusters = centers.shape[0]!
  const closeness = neg(squaredDistances(x, centers))
  const labels = argmax(closeness)
  const distance = neg(max(closeness, { axes: [1] }))
  const counts = segmentCounts(x, labels, clusters)
  const means = div(segmentSum(x, labels, clusters), expandDims(maximum(counts, 1), 1))
  // The j-th empty cluster gets the j-th farthest point.
  const empty = equal(counts, 0)
  const rank = cast(maximum(sub(cumsum(empty, 0), 1), 0), 'i32')
  const farthest = gatherRows(x, gatherRows(expandDims(topk(distance, clusters).indices, 1), rank))
  const replaced = select(expandDims(empty, 1), reshape(farthest, centers.shape), means)
  return { centers: replaced, labels, inertia: sum(distance) }
}

/** k-means++: each further centre is a point drawn by its squared distance to the centres so far. */
async function spreadStart(
  points: Tensor,
  clusters: number,
  seed: number,
  signal: AbortSignal | undefined,
): Promise<Tensor> {
  const n = points.shape[0]!
  const dtype = points.dtype === 'f64' ? 'f64' : 'f32'
  using words = seedTensor(seed)
  using draws = await computed((given) => cast(randomUniform(given!, 0, [clusters]), dtype), [words])
  const start = program((x, draw) => {
    const fresh = gatherRows(
      x!,
      cast(minimum(floor(mul(slice(draw!, [{ axis: 0, start: 0, end: 1 }]), n)), n - 1), 'i32'),
    )
    const first = tensor(Int32Array.of(0), [1])
    return { centers: scatterAddRows(read(first), fresh, clusters), distance: toNearest(x!, fresh) }
  })
  const further = program((x, distance, centers, draw, at) => {
    const total = cumsum(distance!, 0)
    const chosen = mul(gatherRows(expandDims(draw!, 1), at!), max(total, { axes: [0] }))
    const place = cast(minimum(sum(less(total, reshape(chosen, [1])), { axes: [0], keepDims: true }), n - 1), 'i32')
    const fresh = gatherRows(x!, place)
    return {
      centers: add(centers!, scatterAddRows(at!, fresh, clusters)),
      distance: minimum(distance!, toNearest(x!, fresh)),
    }
  })
  try {
    let state = await start.run([points, draws], { signal })
    for (let i = 1; i < clusters; i += 1) {
      using at = tensor(Int32Array.of(i), [1])
      const next = await further.run([points, state.distance, state.centers, draws, at], { signal })
      state.centers.dispose()
      state.distance.dispose()
      state = next
    }
    state.distance.dispose()
    return state.centers
  } finally {
    start.dispose()
    further.dispose()
  }
}

/** Squared distances `[n]` to one centre `[1, d]`. */
const toNearest = (x: Sym, center: Sym): Sym => reshape(squaredDistances(x, center), [x.shape[0]!])
