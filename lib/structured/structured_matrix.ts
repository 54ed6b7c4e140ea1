/**
 * Matrices that are given by fewer numbers than their entries. One interface for all kinds: each is a weight `[out, in]`
 * that multiplies, is trained, is saved, and says how far it is from the dense matrix that it was made of.
 */
import { HeddleError } from '../errors.js'
import { computed } from '../graph/computed.js'
import { transpose } from '../graph/ops/index.js'
import type { Precision } from '../graph/ops/matmul.js'
import type { Sym } from '../graph/sym.js'
import { sameShape, shapeText } from '../tensor/dtype.js'
import type { Tensor } from '../tensor/tensor.js'

/** Kinds of structure; a structure's files and errors carry its name. */
export type StructureKind =
  | 'dense'
  | 'low_rank'
  | 'kronecker'
  | 'monarch'
  | 'block_diagonal'
  | 'tucker'
  | 'sparse_low_rank'

/** How {@link StructuredMatrix.matmul} computes. */
export interface StructuredMatmulOptions {
  /** Default `f32`. */
  readonly precision?: Precision
}

/** A matrix W `[out, in]` in a structure. Its parameters are leaves: reading them in a trace makes them trainable. */
export interface StructuredMatrix {
  readonly kind: StructureKind
  /** [out, in] */
  readonly shape: readonly [number, number]
  /** What a file needs besides the parameters to rebuild the matrix; JSON. */
  readonly config: StructureConfig
  /** This is the transpose of what `config` and the parameters describe. */
  readonly transposed: boolean
  /** Numbers in all parameters, buffers not counted. */
  readonly parameterCount: number
  /** x `[..., in]` → x Wᵀ `[..., out]`, traced and differentiable. @throws ERR_HEDDLE_SHAPE */
  matmul(x: Sym, options?: StructuredMatmulOptions): Sym
  /** Wᵀ, sharing the parameters. */
  transpose(): StructuredMatrix
  /** W as a traced dense matrix. */
  toDense(): Sym
  /** W as a tensor of its own. */
  dense(): Promise<Tensor>
  /** By name, as in files: `blkdiag1`, `blkdiag2` of Monarch, … */
  parameters(): ReadonlyMap<string, Tensor>
  /** What files hold besides the parameters and no training changes: where a sparse matrix has its entries, … */
  buffers(): ReadonlyMap<string, Tensor>
  /** Frees the parameters and buffers, also of the transpose. */
  dispose(): void
}

/** What rebuilds a matrix from its parameters: numbers and texts. */
export type StructureConfig = Readonly<Record<string, number | string | boolean | readonly number[]>>

/** A dense matrix brought into a structure. */
export interface Projection<M extends StructuredMatrix = StructuredMatrix> {
  readonly matrix: M
  /** ‖W − Ŵ‖ of Frobenius. */
  readonly error: number
  /** `error` / ‖W‖; 0 for W = 0. */
  readonly relativeError: number
}

/** A kind of structure: how its matrices come to be. `O` are the options that `fromDense` and `random` take. */
export interface Structure<O = unknown> {
  readonly kind: StructureKind
  /**
   * The matrix of this structure that is nearest to W `[out, in]`, or close to it where the kind says so.
   * @throws ERR_HEDDLE_SHAPE, ERR_HEDDLE_DTYPE, ERR_HEDDLE_ARGUMENT
   */
  fromDense(weight: Tensor, options: O): Promise<Projection>
  /** A matrix as training starts from. @throws ERR_HEDDLE_ARGUMENT */
  random(shape: readonly [number, number], options: O & { readonly seed?: number }): Promise<StructuredMatrix>
  /**
   * Over parameters and buffers from a file, which then belong to the matrix.
   * @throws ERR_HEDDLE_FORMAT when they are not what the configuration asks for
   */
  restore(saved: SavedStructure, parameters: ReadonlyMap<string, Tensor>): StructuredMatrix | Promise<StructuredMatrix>
}

/** A structured matrix without its numbers, as it stands in files. */
export interface SavedStructure {
  readonly kind: StructureKind
  readonly shape: readonly [number, number]
  readonly transposed: boolean
  readonly config: StructureConfig
}

/** What a kind has to say about a matrix; {@link structuredMatrix} makes the rest of it. */
export interface StructuredParts {
  readonly kind: StructureKind
  /** [out, in] of the matrix that is not transposed. */
  readonly shape: readonly [number, number]
  readonly config: StructureConfig
  readonly parameters: Readonly<Record<string, Tensor>>
  /** Saved and restored with the parameters. */
  readonly buffers?: Readonly<Record<string, Tensor>>
  /** Frees what the matrix holds besides parameters and buffers. */
  readonly dispose?: () => void
  /** x `[..., in]` → x Wᵀ; `transposed`: x `[..., out]` → x W. */
  readonly product: (x: Sym, options: { readonly transposed: boolean; readonly precision: Precision }) => Sym
  /** W `[out, in]`, traced. */
  readonly toDense: () => Sym
}

/** The matrix that the parts describe. */
export function structuredMatrix(parts: StructuredParts, transposed = false): StructuredMatrix {
  const [out, inner] = parts.shape
  const shape: readonly [number, number] = transposed ? [inner, out] : parts.shape
  const toDense = (): Sym => (transposed ? transpose(parts.toDense()) : parts.toDense())
  const parameters = new Map(Object.entries(parts.parameters))
  const buffers = new Map(Object.entries(parts.buffers ?? {}))
  return {
    kind: parts.kind,
    shape,
    config: parts.config,
    transposed,
    parameterCount: [...parameters.values()].reduce((count, { size }) => count + size, 0),
    matmul(x, { precision = 'f32' } = {}) {
      if (x.shape.at(-1) !== shape[1])
        throw new HeddleError('ERR_HEDDLE_SHAPE', {
          place: parts.kind,
          expected: `x [..., ${shape[1]}]`,
          got: shapeText(x.shape),
        })
      return parts.product(x, { transposed, precision })
    },
    transpose: () => structuredMatrix(parts, !transposed),
    toDense,
    dense: () => computed(toDense),
    parameters: () => parameters,
    buffers: () => buffers,
    dispose() {
      for (const each of [...parameters.values(), ...buffers.values()]) each.dispose()
      parts.dispose?.()
    },
  }
}

/** What a matrix is in a file, next to its parameters. */
export const savedStructure = ({ kind, shape, transposed, config }: StructuredMatrix): SavedStructure => ({
  kind,
  shape: transposed ? [shape[1], shape[0]] : shape,
  transposed,
  config,
})

/** Checks what a file says against the parameters that it holds. @throws ERR_HEDDLE_FORMAT */
export function expectParameters(
  kind: StructureKind,
  parameters: ReadonlyMap<string, Tensor>,
  shapes: Readonly<Record<string, readonly number[]>>,
): Record<string, Tensor> {
  const unknown = [...parameters.keys()].find((name) => !(name in shapes))
  if (unknown !== undefined) throw misfit(kind, `parameters ${Object.keys(shapes).join(', ')}`, `"${unknown}" besides`)
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => {
      const found = parameters.get(name)
      if (!found) throw misfit(kind, `a parameter "${name}"`, 'none')
      if (!sameShape(found.shape, shape)) throw misfit(`${kind}: ${name}`, shapeText(shape), shapeText(found.shape))
      return [name, found]
    }),
  )
}

const misfit = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
