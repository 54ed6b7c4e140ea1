/**
 * Decoder language models, built from a description: which norms, positions, projections and feed-forward part, where
 * they stand, and what the checkpoint calls them. One file per family says how its config.json maps to one.
 */
import { attention, type CachedAttentionOptions } from '../graph/ops/attention.js'
import { add, cast, greaterEqual, mul, tanh } from '../graph/ops/elementwise.js'
import { slice } from '../graph/ops/index.js'
import { max, reshape } from '../graph/ops/reduce.js'
import { type RopeTable, rope } from '../graph/ops/rope.js'
import { pause } from '../graph/pause.js'
import { read, type Sym } from '../graph/sym.js'
import { type ActivationName, activations } from '../nn/activation.js'
import { type NormStyle, norm } from '../nn/norm.js'
import { embedding, type Forward, linear, type Site } from '../nn/site.js'
import { tensor } from '../tensor/tensor.js'
import type { CausalLm, DecoderInputs, KeyValueCache } from './causal_lm.js'
import { refuseField } from './config_fields.js'
import { ContiguousCache } from './contiguous_cache.js'
import type { Rotary } from './rope_scaling.js'
import { lengthDependenceOf, longestText, rotationTable } from './rotation.js'
import { SiteBuilder, type WeightSource } from './weights.js'

/** A decoder language model, described. Paths of a layer's modules are relative to the layer. */
export interface DecoderSpec {
  readonly architecture: string
  readonly config: Readonly<Record<string, unknown>>
  readonly vocabulary: number
  readonly dim: number
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositions: number
  readonly embedding: EmbeddingSpec
  /** Rotation of queries and keys, by layer; layers of the same kind share one object. */
  readonly rotary?: (layer: number) => Rotary
  readonly norm: NormStyle & { readonly bias: boolean }
  /** Path of the list of layers. */
  readonly layerList: string
  readonly attention: AttentionSpec
  readonly feedForward: FeedForwardSpec
  readonly block: BlockSpec
  /** Absent where the last block ends with a norm of its own. */
  readonly finalNorm?: string | undefined
  readonly output: OutputSpec
}

interface EmbeddingSpec {
  readonly path: string
  /** Factor on the token embeddings. */
  readonly scale?: number
  /** Width of the table, where a projection without bias makes it `dim` wide (OPT-350m). */
  readonly projection?: { readonly path: string; readonly width: number } | undefined
  /** Learned positions: position p is row p + offset. */
  readonly positions?: { readonly path: string; readonly rows: number; readonly offset: number }
}

interface AttentionSpec {
  /** `split`: rows of all queries, then of all keys, then of all values; `per head`: those three for each head. */
  readonly projections:
    | { readonly q: string; readonly k: string; readonly v: string }
    | { readonly fused: string; readonly layout: 'split' | 'per head' }
  readonly output: string
  readonly bias: boolean
  readonly outputBias: boolean
  /** Norms of each head's query and key. */
  readonly headNorms?: { readonly q: string; readonly k: string } | undefined
  /** Factor on the scores. */
  readonly scale: number
  readonly softcap?: number | undefined
  /** Keys that a query sees, itself included, by layer; undefined for all. */
  readonly window?: ((layer: number) => number | undefined) | undefined
}

interface FeedForwardSpec {
  /** `down(act(up x))`, `down(act(gate x) · up x)`, or the latter with gate and up in one projection. */
  readonly projections:
    | { readonly up: string; readonly down: string }
    | { readonly gate: string; readonly up: string; readonly down: string }
    | { readonly gateUp: string; readonly down: string }
  readonly inner: number
  readonly activation: ActivationName
  readonly bias: boolean
}

/**
 * How a block adds attention A and feed-forward F to its input:
 * - `sequential`: x + A(n x), then x + F(n x); with `attentionOut` and `feedForwardOut` the sums' terms are normalised
 * - `parallel`: x + A(n x) + F(n x), with one norm where `feedForward` is absent
 * - `post`: n(x + A x), then n(x + F x)
 */
interface BlockSpec {
  readonly kind: 'sequential' | 'parallel' | 'post'
  readonly attentionNorm: string
  readonly feedForwardNorm?: string | undefined
  readonly attentionOut?: string
  readonly feedForwardOut?: string
  /** Linear weights are stored `[in, out]` (GPT-2's Conv1D). */
  readonly transposed?: boolean
}

interface OutputSpec {
  readonly path: string
  /** The token embedding is the output projection too. */
  readonly tied: boolean
  readonly bias?: boolean
  readonly softcap?: number | undefined
  /** Projection without bias before the output (OPT-350m). */
  readonly projection?: string | undefined
}

type Projection = (x: Sym, view: View, forward: Forward) => readonly [Sym, Sym, Sym]

interface Layer {
  readonly path: string
  readonly project: Projection
  readonly attentionOutput: Site
  readonly headNorms: readonly [Site, Site] | undefined
  readonly rotary: Rotary | undefined
  readonly window: number | undefined
  readonly feed: (x: Sym, forward: Forward) => Sym
  readonly norms: Readonly<Record<'attention' | 'feedForward' | 'attentionOut' | 'feedForwardOut', Site | undefined>>
}

/**
 * Builds the network that a description says over a checkpoint's tensors.
 * @throws ERR_HEDDLE_FORMAT when the description contradicts itself or a tensor is missing or misshapen
 */
export function decoder(spec: DecoderSpec, source: WeightSource, place: string): CausalLm {
  const { dim, heads, kvHeads, headDim, vocabulary, output } = spec
  if (!Number.isInteger(headDim))
    refuseField(place, 'num_attention_heads', `a divisor of hidden_size, which is ${dim}`, heads)
  if (heads % kvHeads !== 0)
    refuseField(place, 'num_key_value_heads', `a divisor of num_attention_heads, which is ${heads}`, kvHeads)
  const builder = new SiteBuilder(source)
  const embed = embeddingOf(spec, builder)
  const layers = Array.from({ length: spec.layers }, (_, index) => layerOf(spec, builder, index))
  const finalNorm = spec.finalNorm === undefined ? undefined : normOf(spec, builder, spec.finalNorm)
  const projection =
    output.projection === undefined
      ? undefined
      : builder.linear(output.projection, [spec.embedding.projection!.width, dim])
  const width = spec.embedding.projection?.width ?? dim
  const words = builder.sites.get(spec.embedding.path)!
  const outputSite: Site = output.tied
    ? { path: output.path, kind: 'linear', weight: words.weight, isOutput: true }
    : builder.linear(output.path, [vocabulary, width], { bias: output.bias ?? false, isOutput: true })

  const keyValues = { layers: spec.layers, heads: kvHeads, size: headDim }
  const rotaries = [...new Set(layers.flatMap(({ rotary }) => rotary ?? []))]
  return {
    config: spec.config,
    architecture: spec.architecture,
    sites: builder.sites,
    vocabularySize: vocabulary,
    maxPositions: longestText(spec.maxPositions, rotaries),
    lengthDependence: lengthDependenceOf(rotaries),
    embeddingTied: output.tied,
    outputSite,
    hasPlainLogits: output.softcap === undefined && !output.bias,
    logits: (hidden, forward) => capped(linear(outputSite, hidden, forward), output.softcap),
    keyValues,
    createCache: (batch, capacity, dtype) => ContiguousCache.create(keyValues, batch, capacity, dtype),
    weights: () => builder.weights(),
    async hidden(inputs, forward) {
      const view = viewOf(inputs)
      let x = reshape(embed(inputs.ids, view, forward), [-1, dim])
      for (const [index, layer] of layers.entries()) {
        const { trace } = x.node
        const attend = attendIn(index, view, inputs.cache)
        x = trace.within(layer.path, () => block(spec, layer, { x, view, attend, forward }))
        await pause()
      }
      if (finalNorm) x = norm(finalNorm, x, spec.norm, forward)
      return projection ? linear(projection, x, forward) : x
    },
  }
}

interface BlockInputs {
  readonly x: Sym
  readonly view: View
  readonly attend: Attend
  readonly forward: Forward
}

/** Mixes values `[b, t, hk, d]` as queries `[b, t, h, d]` and keys say. */
type Attend = (q: Sym, k: Sym, v: Sym, options: CachedAttentionOptions) => Sym

function attendIn(layer: number, { position, segments }: View, cache: KeyValueCache | undefined): Attend {
  return cache
    ? (q, k, v, options) => cache.attend(layer, { q, k, v, position: position! }, options)
    : (q, k, v, options) => attention(q, k, v, { causal: true, segments, ...options })
}

function block(spec: DecoderSpec, layer: Layer, { x, view, attend, forward }: BlockInputs): Sym {
  const { norms } = layer
  const normed = (site: Site | undefined, value: Sym): Sym => (site ? norm(site, value, spec.norm, forward) : value)
  const attended = (value: Sym): Sym => attentionPart(spec, layer, { x: value, view, attend, forward })
  if (spec.block.kind === 'post') {
    const middle = normed(norms.attention, add(x, attended(x)))
    return normed(norms.feedForward, add(middle, layer.feed(middle, forward)))
  }
  const inner = normed(norms.attention, x)
  const middle = add(x, normed(norms.attentionOut, attended(inner)))
  if (spec.block.kind === 'parallel') {
    const fed = layer.feed(norms.feedForward ? normed(norms.feedForward, x) : inner, forward)
    return add(middle, fed)
  }
  const fed = layer.feed(normed(norms.feedForward, middle), forward)
  return add(middle, normed(norms.feedForwardOut, fed))
}

function attentionPart(spec: DecoderSpec, layer: Layer, { x, view, attend, forward }: BlockInputs): Sym {
  const { scale, softcap } = spec.attention
  const { window, rotary, headNorms } = layer
  const [queries, keys, values] = layer.project(x, view, forward)
  const turn = (heads: Sym, site: Site | undefined): Sym => {
    const normed = site ? norm(site, heads, spec.norm, forward) : heads
    return rotary ? rope(normed, view.table(rotary)) : normed
  }
  const q = turn(queries, headNorms?.[0])
  const k = turn(keys, headNorms?.[1])
  const mixed = attend(q, k, values, { scale, softcap, window })
  return linear(layer.attentionOutput, reshape(mixed, [view.batch * view.time, -1]), forward)
}

function embeddingOf(spec: DecoderSpec, builder: SiteBuilder): (ids: Sym, view: View, forward: Forward) => Sym {
  const { path, scale, projection, positions } = spec.embedding
  const words = builder.embedding(path, spec.vocabulary, projection?.width ?? spec.dim)
  const places = positions && builder.embedding(positions.path, positions.rows, spec.dim)
  const widen = projection && builder.linear(projection.path, [spec.dim, projection.width])
  return (ids, view, forward) => {
    const rows = embedding(words, ids, forward)
    const wide = widen ? linear(widen, rows, forward) : rows
    const scaled = scale === undefined ? wide : mul(wide, scale)
    if (!places) return scaled
    return add(scaled, embedding(places, cast(add(view.positions, positions.offset), 'i32'), forward))
  }
}

function layerOf(spec: DecoderSpec, builder: SiteBuilder, index: number): Layer {
  const { dim, heads, headDim, attention: attentionSpec, block: blockSpec } = spec
  const { transposed = false } = blockSpec
  const path = `${spec.layerList}.${index}`
  const optional = (name: string | undefined): Site | undefined =>
    name === undefined ? undefined : normOf(spec, builder, `${path}.${name}`)
  const attentionNorm = optional(blockSpec.attentionNorm)
  const project = projectionOf(spec, builder, path)
  const { headNorms } = attentionSpec
  const headNorm = (name: string): Site => normOf(spec, builder, `${path}.${name}`, headDim)
  const normPair = headNorms && ([headNorm(headNorms.q), headNorm(headNorms.k)] as const)
  const attentionOutput = builder.linear(`${path}.${attentionSpec.output}`, [dim, heads * headDim], {
    bias: attentionSpec.outputBias,
    transposed,
  })
  const attentionOut = optional(blockSpec.attentionOut)
  const feedForwardNorm = optional(blockSpec.feedForwardNorm)
  const feed = feedForwardOf(spec, builder, path)
  return {
    path,
    project,
    attentionOutput,
    headNorms: normPair,
    rotary: spec.rotary?.(index),
    window: attentionSpec.window?.(index),
    feed,
    norms: {
      attention: attentionNorm,
      attentionOut,
      feedForward: feedForwardNorm,
      feedForwardOut: optional(blockSpec.feedForwardOut),
    },
  }
}

/** Queries `[b, t, h, d]`, keys and values `[b, t, hk, d]` of x `[b·t, dim]`. */
function projectionOf(spec: DecoderSpec, builder: SiteBuilder, path: string): Projection {
  const { dim, heads, kvHeads, headDim, attention: attentionSpec } = spec
  const { projections, bias } = attentionSpec
  const make = (name: string, rows: number): Site =>
    builder.linear(`${path}.${name}`, [rows, dim], { bias, transposed: spec.block.transposed ?? false })
  const split = (x: Sym, { batch, time }: View, count: number): Sym => reshape(x, [batch, time, count, headDim])
  if ('q' in projections) {
    const q = make(projections.q, heads * headDim)
    const [k, v] = [make(projections.k, kvHeads * headDim), make(projections.v, kvHeads * headDim)]
    return (x, view, forward) => [
      split(linear(q, x, forward), view, heads),
      split(linear(k, x, forward), view, kvHeads),
      split(linear(v, x, forward), view, kvHeads),
    ]
  }
  const fused = make(projections.fused, (heads + 2 * kvHeads) * headDim)
  return (x, view, forward) => {
    const all = linear(fused, x, forward)
    if (projections.layout === 'split') {
      const rows = reshape(all, [view.batch, view.time, heads + 2 * kvHeads, headDim])
      return [part(rows, 2, 0, heads), part(rows, 2, heads, kvHeads), part(rows, 2, heads + kvHeads, kvHeads)]
    }
    const rows = reshape(all, [view.batch, view.time, heads, 3 * headDim])
    return [part(rows, 3, 0, headDim), part(rows, 3, headDim, headDim), part(rows, 3, 2 * headDim, headDim)]
  }
}

function feedForwardOf(spec: DecoderSpec, builder: SiteBuilder, path: string): Layer['feed'] {
  const { projections, inner, activation, bias } = spec.feedForward
  const { transposed = false } = spec.block
  const activate = activations[activation]
  const make = (name: string, shape: readonly [number, number]): Site =>
    builder.linear(`${path}.${name}`, shape, { bias, transposed })
  if ('gateUp' in projections) {
    const gateUp = make(projections.gateUp, [2 * inner, spec.dim])
    const down = make(projections.down, [spec.dim, inner])
    return (x, forward) => {
      const both = linear(gateUp, x, forward)
      return linear(down, mul(activate(part(both, 1, 0, inner)), part(both, 1, inner, inner)), forward)
    }
  }
  const gate = 'gate' in projections ? make(projections.gate, [inner, spec.dim]) : undefined
  const up = make(projections.up, [inner, spec.dim])
  const down = make(projections.down, [spec.dim, inner])
  return (x, forward) => {
    const widened = gate
      ? mul(activate(linear(gate, x, forward)), linear(up, x, forward))
      : activate(linear(up, x, forward))
    return linear(down, widened, forward)
  }
}

const normOf = ({ norm: style, dim }: DecoderSpec, builder: SiteBuilder, path: string, width = dim): Site =>
  builder.norm(path, width, style.bias, style.unitOffset ? 'zeros' : 'ones')

/** `count` elements of an axis from `start` on. */
const part = (x: Sym, axis: number, start: number, count: number): Sym =>
  slice(x, [{ axis, start, end: start + count }])

const capped = (x: Sym, cap: number | undefined): Sym => (cap === undefined ? x : mul(tanh(mul(x, 1 / cap)), cap))

/** One call's inputs as the layers see them. */
interface View {
  readonly batch: number
  readonly time: number
  readonly segments: Sym | undefined
  readonly position: Sym | undefined
  /** Of each token in its own text, `i32 [1 or b, t]`. */
  readonly positions: Sym
  /** Made once for each kind of rotation. */
  readonly table: (rotary: Rotary) => RopeTable
}

function viewOf(inputs: DecoderInputs): View {
  const { ids, segments, position, positions: given, cache } = inputs
  const [batch, time] = ids.shape as [number, number]
  const steps = Int32Array.from({ length: time }, (_, i) => i)
  const row = read(tensor(steps, [1, time]))
  const places = position ? cast(add(reshape(position, [-1, 1]), row), 'i32') : row
  const tables = new Map<Rotary, RopeTable>()
  // Rotations matter by their differences only, so that places in the row serve all its texts with one table.
  const table = (rotary: Rotary): RopeTable => {
    const made =
      tables.get(rotary) ??
      rotationTable(rotary, {
        places,
        lengths: inputs.lengths ?? textLengths(inputs, places),
        longest: cache?.capacity ?? time,
      })
    tables.set(rotary, made)
    return made
  }
  return { batch, time, segments, position, positions: given ?? places, table }
}

/** Tokens of the longest text of each row, `i32 [1 or b]`. */
function textLengths({ ids, segments, position, positions }: DecoderInputs, places: Sym): Sym {
  const [batch, time] = ids.shape as [number, number]
  if (position) return cast(add(position, time), 'i32')
  if (!segments) return read(tensor(Int32Array.of(time)))
  const ends = mul(add(cast(positions ?? places, 'f32'), 1), greaterEqual(segments, 0))
  return cast(max(reshape(ends, [batch, time]), { axes: [1] }), 'i32')
}
