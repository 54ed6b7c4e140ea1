/** Where a network's builder gets its tensors from: a checkpoint, or nothing but a list of what is needed. */
import { HeddleError } from '../errors.js'
import type { StoredTensor } from '../formats/tensor_archive.js'
import { absentWeight, type Site, weightTensors } from '../nn/site.js'
import type { StructuredMatrix } from '../structured/structured_matrix.js'
import { sameShape, shapeText } from '../tensor/dtype.js'
import { Tensor } from '../tensor/tensor.js'

/** How transformers draws a parameter at first. */
export type Initial = 'normal' | 'ones' | 'zeros'

/** Gives the tensors that a builder asks for. */
export interface WeightSource {
  /** Whether there is such a tensor, for parts that only some checkpoints have. */
  has(name: string): boolean
  /** @throws ERR_HEDDLE_FORMAT when there is none, or it has another shape */
  take(name: string, shape: readonly number[], initial: Initial): Tensor
  /** The weight of a linear site, where it is stored in a structure. @throws ERR_HEDDLE_FORMAT */
  structure?(path: string): StructuredMatrix | undefined
}

/** Names that a checkpoint may use instead of the canonical ones, and tensors that it may hold besides. */
export interface CheckpointNames {
  /** Module that wraps everything but the head; some checkpoints leave it out, others add it. */
  readonly basePrefix?: string | undefined
  /** Tensors that take no part in the forward pass: derived values, heads for other tasks. */
  readonly ignored?: RegExp | undefined
}

/** Weights that are stored in a structure, by site. */
export type SiteStructures = ReadonlyMap<string, StructuredMatrix>

/** A checkpoint's tensors; {@link CheckpointWeights.unused} says what nobody asked for. */
export interface CheckpointWeights extends WeightSource {
  /** The first tensor that was not taken and is not one of the `copies`, if any. */
  unused(copies: readonly string[]): string | undefined
}

/** @param place file or folder, for messages */
export function checkpointWeights(
  tensors: ReadonlyMap<string, StoredTensor>,
  place: string,
  { basePrefix, ignored }: CheckpointNames = {},
  structures: SiteStructures = new Map(),
): CheckpointWeights {
  const used = new Set<string>()
  const find = (name: string): StoredTensor | undefined => {
    const key = spellings(name, basePrefix).find((spelling) => tensors.has(spelling))
    if (key !== undefined) used.add(key)
    return key === undefined ? undefined : tensors.get(key)
  }
  return {
    has: (name) => spellings(name, basePrefix).some((spelling) => tensors.has(spelling)),
    take(name, shape) {
      const stored = find(name)
      if (!stored) throw misfit(place, `a tensor "${name}" as config.json asks for`, 'none')
      if (!sameShape(stored.shape, shape))
        throw misfit(`${place}: ${name}`, `shape ${shapeText(shape)} as config.json says`, shapeText(stored.shape))
      return new Tensor(stored.load('f32'))
    },
    structure(path) {
      const found = structures.get(path)
      for (const name of tensors.keys()) if (found && isParameterOf(path, name)) used.add(name)
      return found
    },
    unused: (copies) =>
      [...tensors.keys()].find(
        (name) => !used.has(name) && !copies.includes(name) && !derived.test(name) && !ignored?.test(name),
      ),
  }
}

/** Whether a tensor belongs to the structured weight of a site; its bias does not. */
export const isParameterOf = (path: string, name: string): boolean => {
  const parameter = name.slice(path.length + 1)
  return name.startsWith(`${path}.`) && !parameter.includes('.') && parameter !== 'bias'
}

/** Derived values that some checkpoints store beside their parameters. */
const derived = /\.rotary_emb\.inv_freq$/

/** The canonical name first; TensorFlow's gamma and beta last. */
function spellings(name: string, basePrefix: string | undefined): string[] {
  const plain = [name]
  if (basePrefix !== undefined) {
    plain.push(`${basePrefix}.${name}`)
    if (name.startsWith(`${basePrefix}.`)) plain.push(name.slice(basePrefix.length + 1))
  }
  const old = plain
    .filter((each) => /norm\.(weight|bias)$/i.test(each))
    .map((each) => each.replace(/weight$/, 'gamma').replace(/bias$/, 'beta'))
  return [...plain, ...old]
}

/** Collects a network's sites while it is built, in the order in which they are asked for. */
export class SiteBuilder {
  readonly sites = new Map<string, Site>()
  readonly #loose: { readonly name: string; readonly tensor: Tensor }[] = []

  constructor(readonly source: WeightSource) {}

  linear(path: string, [out, inner]: readonly [number, number], options: LinearOptions = {}): Site {
    const { bias = false, transposed = false, isOutput = false } = options
    const shape = transposed ? [inner, out] : [out, inner]
    const structure = this.source.structure?.(path)
    if (structure && !sameShape(structure.shape, [out, inner]))
      throw misfit(path, `a structured matrix ${shapeText([out, inner])}`, shapeText(structure.shape))
    return this.#add({ path, kind: 'linear', transposed, isOutput, structure }, shape, bias ? [out] : undefined)
  }

  embedding(path: string, rows: number, dim: number): Site {
    return this.#add({ path, kind: 'embedding' }, [rows, dim])
  }

  /** @param initial `zeros` where the network multiplies with 1 + weight */
  norm(path: string, dim: number, bias: boolean, initial: Initial = 'ones'): Site {
    return this.#add({ path, kind: 'norm' }, [dim], bias ? [dim] : undefined, initial)
  }

  /** With a bias. @param shape `[out, in / groups, kh, kw]` */
  conv2d(path: string, shape: readonly [number, number, number, number], window: NonNullable<Site['window']>): Site {
    return this.#add({ path, kind: 'conv2d', window }, shape, [shape[0]])
  }

  /** A parameter that is no module's weight. */
  parameter(name: string, shape: readonly number[]): Tensor {
    const tensor = this.source.take(name, shape, 'normal')
    this.#loose.push({ name, tensor })
    return tensor
  }

  /** All parameters as they are now, under their checkpoint names. */
  weights(): { name: string; tensor: Tensor }[] {
    const owned = [...this.sites.values()].flatMap((site) => [
      ...[...weightTensors(site)].map(([name, tensor]) => ({ name: `${site.path}.${name}`, tensor })),
      ...(site.bias ? [{ name: `${site.path}.bias`, tensor: site.bias }] : []),
    ])
    return [...this.#loose, ...owned]
  }

  #add(
    site: Omit<Site, 'weight' | 'bias'>,
    shape: readonly number[],
    bias?: readonly number[],
    initial: Initial = 'normal',
  ): Site {
    const { path } = site
    const { structure } = site
    const weight = structure ? absentWeight(site, structure, shape) : this.source.take(`${path}.weight`, shape, initial)
    const built = { ...site, weight, ...(bias ? { bias: this.source.take(`${path}.bias`, bias, 'zeros') } : {}) }
    this.sites.set(path, built)
    return built
  }
}

/** What a linear site has besides its shape. */
export interface LinearOptions {
  readonly bias?: boolean
  /** Stored `[in, out]`. */
  readonly transposed?: boolean
  readonly isOutput?: boolean
}

const misfit = (place: string, expected: string, got: string): HeddleError =>
  new HeddleError('ERR_HEDDLE_FORMAT', { place, expected, got })
