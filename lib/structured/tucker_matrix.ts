/** A weight whose sizes are cut into axes, `[o₁, …, i₁, …]`, in Tucker form: it multiplies axis by axis. */
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { matmul } from '../graph/ops/matmul.js'
import { reshape } from '../graph/ops/reduce.js'
import { modeProducts } from '../graph/ops/tucker.js'
import { read, type Sym } from '../graph/sym.js'
import { elementCount } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'
import { projectionOf, uniformTensor } from './initial.js'
import { expectParameters, type Structure, type StructuredMatrix, structuredMatrix } from './structured_matrix.js'
import { hooi } from './tucker.js'

/** Options of {@link tuckerMatrix}. */
export interface TuckerMatrixOptions {
  /** Sizes whose product is out; default [out]. */
  readonly outShape?: readonly number[]
  /** Sizes whose product is in; default [in]. */
  readonly inShape?: readonly number[]
  /** Ranks of the axes of outShape, then of inShape; or one for all, at most each axis's size. */
  readonly ranks: number | readonly number[]
}

const size = z.int().min(1)
const schema = z.strictObject({
  outShape: z.array(size).min(1).optional(),
  inShape: z.array(size).min(1).optional(),
  ranks: z.union([size, z.array(size)]),
  seed: z.number().optional(),
})

interface Axes {
  readonly outShape: readonly number[]
  readonly inShape: readonly number[]
  readonly ranks: readonly number[]
}

/**
 * W[o, i] = Σ core[j…] Π factorₙ[·, jₙ] with o and i taken apart into axes. Parameters: `core [j₁, …]` and
 * `factor0 [size₀, j₀]`, …; with the default of two axes W = factor0 core factor1ᵀ. `fromDense` is HOOI.
 */
export const tuckerMatrix: Structure<TuckerMatrixOptions> = {
  kind: 'tucker',
  async fromDense(weight, options) {
    const axes = axesOf(options, weight.shape)
    using tensor = await computed(() => reshape(read(weight), [...axes.outShape, ...axes.inShape]))
    const { core, factors } = await hooi(tensor, { ranks: axes.ranks })
    return projectionOf(over({ ...axes, ranks: core.shape }, core, factors as readonly Tensor[]), weight)
  },
  async random(shape, { seed = 0, ...options }) {
    const axes = axesOf(options, shape)
    const sizes = [...axes.outShape, ...axes.inShape]
    // Entries of W like those of a linear layer: a variance of 1 / (3 in).
    const core = await uniformTensor(axes.ranks, 1 / Math.sqrt(shape[1]), seed, 0)
    const factors = await Promise.all(
      sizes.map((each, n) => uniformTensor([each, axes.ranks[n]!], Math.sqrt(3 / axes.ranks[n]!), seed, n + 1)),
    )
    return over(axes, core, factors)
  },
  restore({ kind, shape, transposed, config }, parameters) {
    const axes = axesOf(config, shape)
    const sizes = [...axes.outShape, ...axes.inShape]
    const names = sizes.map((_, n) => `factor${n}`)
    const shapes = names.map((name, n) => [name, [sizes[n]!, axes.ranks[n]!]] as const)
    const found = expectParameters(kind, parameters, { core: axes.ranks, ...Object.fromEntries(shapes) })
    return over(
      axes,
      found.core!,
      names.map((name) => found[name]!),
      transposed,
    )
  },
}

function axesOf(options: unknown, [out, inner]: readonly number[]): Axes {
  const { outShape = [out!], inShape = [inner!], ranks } = parseConfig('tuckerMatrix', schema, options)
  const sizes = [...outShape, ...inShape]
  const each = Array.isArray(ranks) ? ranks : sizes.map((full) => Math.min(ranks, full))
  const refuse = (expected: string, got: string): never => {
    throw new HeddleError('ERR_HEDDLE_ARGUMENT', { place: 'tuckerMatrix', expected, got })
  }
  if (elementCount(outShape) !== out) refuse(`an outShape whose product is ${out}`, `[${outShape}]`)
  if (elementCount(inShape) !== inner) refuse(`an inShape whose product is ${inner}`, `[${inShape}]`)
  if (each.length !== sizes.length || each.some((rank, n) => rank > sizes[n]!))
    refuse(`a rank of at most each of [${sizes}]`, `[${ranks}]`)
  return { outShape, inShape, ranks: each }
}

function over(
  { outShape, inShape, ranks }: Axes,
  core: Tensor,
  factors: readonly Tensor[],
  transposed = false,
): StructuredMatrix {
  const count = outShape.length
  const [outRank, inRank] = [elementCount(ranks.slice(0, count)), elementCount(ranks.slice(count))]
  const [outSize, inSize] = [elementCount(outShape), elementCount(inShape)]
  const named = factors.map((factor, n) => [`factor${n}`, factor] as const)
  return structuredMatrix(
    {
      kind: 'tucker',
      shape: [outSize, inSize],
      config: { outShape, inShape, ranks },
      parameters: { core, ...Object.fromEntries(named) },
      product(x, { transposed: turned, precision }) {
        const parts = [factors.slice(0, count), factors.slice(count)].map((each) => each.map(read))
        const [first, last] = turned ? parts : parts.toReversed()
        const rows = elementCount(x.shape.slice(0, -1))
        const inner = modeProducts(reshape(x, [rows, ...(turned ? outShape : inShape)]), [undefined, ...first!], {
          transpose: true,
        })
        const matrix = reshape(read(core), [outRank, inRank])
        const middle = matmul(reshape(inner, [rows, turned ? outRank : inRank]), matrix, {
          transposeB: !turned,
          precision,
        })
        const outer = reshape(middle, [rows, ...(turned ? ranks.slice(count) : ranks.slice(0, count))])
        return reshape(modeProducts(outer, [undefined, ...last!]), [...x.shape.slice(0, -1), turned ? inSize : outSize])
      },
      toDense: (): Sym => reshape(modeProducts(read(core), factors.map(read)), [outSize, inSize]),
    },
    transposed,
  )
}
