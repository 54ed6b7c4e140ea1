/**
 * The leading principal components of rows that arrive in batches: the mean-corrected incremental SVD of Ross et al.
 * 2008 (doi 10.1007/s11263-007-0075-7), as scikit-learn's IncrementalPCA and EVA compute it.
 */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { abs, add, div, mul, sign, square, sub } from '../graph/ops/elementwise.js'
import { expandDims, takeAlongAxis } from '../graph/ops/gather.js'
import { concat, slice } from '../graph/ops/index.js'
import { scaleRows } from '../graph/ops/matrices.js'
import { argmax, mean, sum } from '../graph/ops/reduce.js'
import { stopGradient } from '../graph/ops/stop_gradient.js'
import type { RunOptions } from '../graph/program.js'
import type { Sym } from '../graph/sym.js'
import { shapeText } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import { svd } from './factorise.js'
import { truncatedSvd } from './low_rank.js'

/** Options of {@link IncrementalSvd}. */
export interface IncrementalSvdOptions {
  /** How many components are kept. */
  readonly rank: number
  /** Subtract the running mean of the rows, as principal components want it. Default true. */
  readonly center?: boolean
  /**
   * What earlier rows still weigh when a batch arrives, in the mean and in the scatter alike: from 0 (nothing) to 1 (as
   * if all came at once). Default 1.
   */
  readonly forgetting?: number
  /**
   * Subspace iterations of a randomised decomposition of twice the rank at each update, as EVA does; default: exact. Many
   * times faster where the rank is small against the rows and columns.
   */
  readonly iterations?: number | undefined
}

const schema = z.strictObject({
  rank: z.int().min(1),
  center: z.boolean().default(true),
  forgetting: z.number().min(0).max(1).default(1),
  iterations: z.int().min(0).optional(),
})

interface State {
  readonly s: Tensor
  readonly vh: Tensor
  readonly mean: Tensor
  /** Sum of the squared distances to the mean, per column. */
  readonly scatter: Tensor
}

/** Singular values and right vectors of all rows so far. Updates queue up; `dispose()` frees the state. */
export class IncrementalSvd {
  readonly #options: z.infer<typeof schema>
  #state: State | undefined
  #rows = 0
  #queue: Promise<void> = Promise.resolve()

  /** @throws ERR_HEDDLE_ARGUMENT naming a wrong option */
  constructor(options: IncrementalSvdOptions) {
    this.#options = parseConfig('IncrementalSvd', schema, options)
  }

  /** How many rows the state stands for; with a forgetting factor below 1, a weighted number. */
  get rows(): number {
    return this.#rows
  }

  /** `[rank]`, descending: singular values of the (centred) rows so far. */
  get s(): Tensor {
    return this.#known.s
  }

  /** `[rank, n]`: the components, each with its largest element positive. */
  get vh(): Tensor {
    return this.#known.vh
  }

  /** `[n]` */
  get mean(): Tensor {
    return this.#known.mean
  }

  /** `[rank]`: the variance along each component, s² / (rows − 1). */
  explainedVariance(): Promise<Tensor> {
    const rows = this.#rows
    return computed((s) => div(square(s!), rows - 1), [this.#known.s])
  }

  /** `[rank]`: the share of the total variance along each component. */
  explainedVarianceRatio(): Promise<Tensor> {
    return computed((s, scatter) => div(square(s!), sum(scatter!)), [this.#known.s, this.#known.scatter])
  }

  get #known(): State {
    if (this.#state) return this.#state
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', {
      place: 'IncrementalSvd',
      expected: 'a batch of rows first',
      got: 'none',
      hint: 'Call update(rows).',
    })
  }

  /**
   * Takes a batch `rows [b, n]` in; b may differ from batch to batch, but the first needs at least `rank` rows.
   * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE; ERR_HEDDLE_ARGUMENT when an element is not finite; ERR_HEDDLE_ABORTED,
   * with the state as it was
   */
  update(rows: Tensor, options: RunOptions = {}): Promise<void> {
    const done = this.#queue.then(() => this.#update(rows, options))
    this.#queue = done.catch(() => {})
    return done
  }

  async #update(rows: Tensor, options: RunOptions): Promise<void> {
    const { rank, center, forgetting, iterations } = this.#options
    const [b, n] = rows.shape as [number, number]
    const before = this.#state
    const enough = rows.shape.length === 2 && b > 0 && (before ? n === before.mean.size : rank <= Math.min(b, n))
    if (!enough)
      throw new HeddleError('ERR_HEDDLE_SHAPE', {
        place: 'IncrementalSvd.update',
        expected: before ? `rows [b, ${before.mean.size}]` : `a first batch of at least ${rank} rows and columns`,
        got: shapeText(rows.shape),
      })
    const seen = this.#rows * forgetting
    const inputs = before ? [rows, before.s, before.vh, before.mean, before.scatter] : [rows]
    this.#state = await computed(
      (...given) => updated(given, { rank, center, forgetting, iterations, seen }),
      inputs,
      options,
    )
    this.#rows = seen + b
    if (before) for (const old of Object.values(before) as Tensor[]) old.dispose()
  }

  /** Frees the state's tensors. */
  dispose(): void {
    if (this.#state) for (const each of Object.values(this.#state) as Tensor[]) each.dispose()
    this.#state = undefined
    this.#rows = 0
  }

  /** Same as {@link IncrementalSvd.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}

interface Update extends z.infer<typeof schema> {
  /** Weight of the rows before this batch. */
  readonly seen: number
}

/** [diag(s) vh; batch − its mean; √(seen b / (seen + b)) (mean − batch's mean)] has the scatter of all rows. */
function updated(
  [rows, s, vh, oldMean, oldScatter]: readonly Sym[],
  { rank, center, forgetting, iterations, seen }: Update,
) {
  const b = rows!.shape[0]!
  const batchMean = center ? mean(rows!, { axes: [0] }) : mul(mean(rows!, { axes: [0] }), 0)
  const centred = sub(rows!, batchMean)
  let [stack, scatter, newMean] = [centred, sum(square(centred), { axes: [0] }), batchMean]
  if (s && vh && oldMean && oldScatter) {
    const shift = sub(oldMean, batchMean)
    const drift = mul(shift, Math.sqrt((seen * b) / (seen + b)))
    const kept = Math.sqrt(forgetting)
    stack = concat([scaleRows(vh, mul(s, kept)), centred, expandDims(drift, 0)])
    scatter = add(add(mul(oldScatter, forgetting), scatter), square(drift))
    newMean = add(batchMean, mul(shift, seen / (seen + b)))
  }
  const factors = iterations === undefined ? svd(stack) : truncatedSvd(stack, { rank, iterations, oversampling: rank })
  const components = slice(factors.vh, [{ axis: 0, start: 0, end: rank }])
  return {
    s: slice(factors.s, [{ axis: 0, start: 0, end: rank }]),
    vh: mul(components, largestSigns(components)),
    mean: newMean,
    scatter,
  }
}

/** The sign of each row's largest element, `[rank, 1]`. */
function largestSigns(rows: Sym): Sym {
  const place = expandDims(argmax(abs(rows)), 1)
  return stopGradient(sign(takeAlongAxis(rows, place, 1)))
}
