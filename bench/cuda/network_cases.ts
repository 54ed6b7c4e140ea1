/** What networks are made of, at the shape of Llama 3.2 1B, 4 texts of 1,024 tokens. */
import type { Attribute } from '../../test/support/instruction_list.js'
import type { CudaCase, Pick } from './cases.js'
import { bf16, type CaseOperand, counting, f32, i32, indices, u32 } from './operands.js'

/** @returns products, norms, attention, losses, sampling */
export function networkCases(pick: Pick): readonly CudaCase[] {
  const sizes = sizesAt(pick)
  return [
    ...products(sizes),
    ...norms(sizes),
    ...attentions(sizes),
    ...pages(sizes),
    ...losses(sizes),
    ...convolutions(pick),
  ]
}

type Sizes = ReturnType<typeof sizesAt>

const sizesAt = (pick: Pick) => ({
  texts: pick(4, 2),
  length: pick(1024, 5),
  tokens: pick(4096, 10),
  d: pick(2048, 12),
  ff: pick(8192, 20),
  heads: pick(32, 4),
  kvHeads: pick(8, 2),
  headDim: pick(64, 4),
  vocabulary: pick(128_256, 50),
  rank: pick(16, 2),
  /** Sequences that are being written, and keys of each. */
  streams: pick(64, 3),
  keys: pick(1024, 6),
  page: pick(16, 2),
})

function products({ tokens, d, ff, rank, streams }: Sizes): readonly CudaCase[] {
  const shapes = { inputs: [f32(tokens, d), f32(d, ff)], outputs: [f32(tokens, ff)], flops: 2 * tokens * d * ff }
  const half: readonly (readonly [string, Attribute])[] = [['precision', 'bf16']]
  const factors = [f32(d, rank), f32(rank, ff)]
  const update = 2 * tokens * rank * (d + ff)
  const pool = 100 * rank
  return [
    { op: 'matmul', name: `[${tokens}, ${d}] × [${d}, ${ff}]`, ...shapes },
    { op: 'matmul', name: 'the same in bf16', ...shapes, attributes: half, unit: 'bf16' },
    {
      op: 'low_rank_matmul',
      name: `the same in bf16, rank ${rank}`,
      inputs: [...shapes.inputs, ...factors],
      outputs: [...shapes.outputs, f32(tokens, rank)],
      attributes: half,
      flops: shapes.flops + update,
      unit: 'bf16',
    },
    {
      op: 'grouped_low_rank',
      name: `${streams} tokens of 100 adapters, rank ${rank}, ${d} → ${d}`,
      inputs: [
        ...[f32(streams, d), f32(streams, d), bf16(pool, d), bf16(pool, d)],
        { ...i32(streams, 2), fill: (i) => (i % 2 === 1 ? rank : (Math.floor(i / 2) % 100) * rank) },
        f32(streams),
      ],
      outputs: [f32(streams, d)],
      flops: 4 * streams * rank * d,
      bytes: streams * (3 * 4 * d + 2 * 2 * rank * d),
    },
  ]
}

function norms({ tokens, d, ff, texts, length, heads, headDim }: Sizes): readonly CudaCase[] {
  const [x, gain, row] = [f32(tokens, d), f32(d), f32(tokens)]
  const count = tokens * d
  const eps: readonly (readonly [string, Attribute])[] = [['eps', 1e-5]]
  const table = f32(1, length, headDim / 2)
  const turned = f32(texts, length, heads, headDim)
  const frequencies = Array.from({ length: headDim / 2 }, (_, i) => 0.5 / (i + 1))
  const name = `[${tokens}, ${d}]`
  return [
    { op: 'rms_norm', name, inputs: [x, gain], outputs: [x, row], attributes: eps, flops: 4 * count },
    { op: 'rms_norm_vjp', name, inputs: [x, gain, row, x], outputs: [x, gain], flops: 8 * count },
    { op: 'layer_norm', name, inputs: [x, gain, gain], outputs: [x, row, row], attributes: eps, flops: 7 * count },
    { op: 'layer_norm_vjp', name, inputs: [x, gain, row, row, x], outputs: [x, gain, gain], flops: 12 * count },
    { op: 'softmax', name, inputs: [x], outputs: [x], flops: 4 * count },
    { op: 'softmax_vjp', name, inputs: [x, x], outputs: [x], flops: 4 * count },
    { op: 'log_sum_exp', name, inputs: [x], outputs: [row], flops: 3 * count },
    {
      op: 'elementwise',
      name: `silu(a) b, [${tokens}, ${ff}]`,
      inputs: [f32(tokens, ff), f32(tokens, ff)],
      outputs: [f32(tokens, ff)],
      attributes: [
        ['ops', ['silu', 'mul']],
        ['operands', [0, 2, 1]],
        ['constants', []],
        ['results', [3]],
      ],
      flops: 5 * tokens * ff,
    },
    {
      op: 'rope',
      name: `[${turned.shape}]`,
      inputs: [turned, table, table],
      outputs: [turned],
      flops: 3 * tokens * heads * headDim,
    },
    {
      op: 'rope_table',
      name: `${tokens} positions`,
      inputs: [indices(length, texts, length)],
      outputs: [f32(texts, length, headDim / 2), f32(texts, length, headDim / 2)],
      attributes: [
        ['inverse_frequencies', frequencies],
        ['scale', 1.5],
      ],
      flops: 40 * tokens * (headDim / 2),
    },
  ]
}

function attentions({ texts, length, heads, kvHeads, headDim, streams, keys }: Sizes): readonly CudaCase[] {
  const [q, k] = [f32(texts, length, heads, headDim), f32(texts, length, kvHeads, headDim)]
  const statistic = f32(texts, heads, length)
  // Half of the pairs, by two products forward and five backward.
  const product = texts * heads * length * length * headDim
  const causal: readonly (readonly [string, Attribute])[] = [
    ['causal', 1],
    ['scale', 0.125],
  ]
  const cache = bf16(streams, keys, kvHeads, headDim)
  const one = f32(streams, 1, heads, headDim)
  const name = `causal, ${texts} × ${length} tokens, ${heads} heads of ${headDim}, ${kvHeads} of keys`
  return [
    {
      op: 'attention',
      name,
      inputs: [q, k, k, null],
      outputs: [q, statistic],
      attributes: causal,
      flops: 2 * product,
    },
    {
      op: 'attention_vjp',
      name,
      inputs: [q, k, k, null, q, statistic, q],
      outputs: [q, k, k],
      attributes: causal,
      flops: 5 * product,
    },
    {
      op: 'attention_cached',
      name: `${streams} tokens, each behind ${keys - 1}`,
      inputs: [one, cache, cache, { ...i32(streams), fill: () => keys - 1 }],
      outputs: [one],
      attributes: [['scale', 0.125]],
      flops: 4 * streams * keys * heads * headDim,
    },
    {
      op: 'cache_update',
      name: `${streams} tokens`,
      ...updated(cache, [f32(streams, 1, kvHeads, headDim), { ...i32(streams), fill: () => keys - 1 }]),
      flops: 0,
      bytes: streams * kvHeads * headDim * (4 + 2),
    },
  ]
}

const updated = (target: CaseOperand, others: readonly CaseOperand[]) => ({
  inputs: [target, ...others],
  outputs: [target],
  updates: true as const,
})

function pages({ heads, kvHeads, headDim, streams, keys, page }: Sizes): readonly CudaCase[] {
  const each = keys / page
  const pool = bf16(streams * each, page, kvHeads, headDim)
  const q = f32(streams, heads, headDim)
  const tables: CaseOperand = { ...i32(streams, each), fill: (i, count) => count - 1 - i }
  return [
    {
      op: 'paged_attention',
      name: `${streams} tokens, each behind ${keys - 1} in pages of ${page}`,
      inputs: [q, pool, pool, tables, counting(streams + 1), { ...i32(streams), fill: () => keys - 1 }],
      outputs: [q],
      attributes: [['scale', 0.125]],
      flops: 4 * streams * keys * heads * headDim,
    },
    {
      op: 'paged_cache_update',
      name: `${streams} tokens`,
      ...updated(pool, [f32(streams, kvHeads, headDim), counting(streams, page)]),
      flops: 0,
      bytes: streams * kvHeads * headDim * (4 + 2),
    },
  ]
}

function losses({ length, d, vocabulary, streams }: Sizes): readonly CudaCase[] {
  const [x, w, targets] = [f32(length, d), f32(vocabulary, d), indices(vocabulary, length)]
  const product = 2 * length * d * vocabulary
  const half: readonly (readonly [string, Attribute])[] = [['precision', 'bf16']]
  const name = `${length} tokens of ${d}, ${vocabulary} words, bf16`
  const logits = f32(streams, vocabulary)
  return [
    {
      op: 'linear_cross_entropy',
      name: `${name}, with the gradient`,
      inputs: [x, w, targets],
      outputs: [f32(length), f32(length), x],
      attributes: half,
      flops: 2 * product,
      unit: 'bf16',
    },
    {
      op: 'linear_cross_entropy_vjp',
      name: `${name}, of both`,
      inputs: [x, w, targets, f32(length), f32(length)],
      outputs: [x, w],
      attributes: half,
      flops: 3 * product,
      unit: 'bf16',
    },
    {
      op: 'sample_token',
      name: `${streams} rows of ${vocabulary}, top-k, top-p`,
      inputs: [
        logits,
        u32(streams, 4),
        { ...f32(streams, 7), fill: (i) => [0.8, 50, 0.9, 0, 1, 0, 0][i % 7]! },
        null,
        null,
        null,
        null,
      ],
      outputs: [i32(streams), null, null, null],
      attributes: [['top', 1]],
      flops: 4 * streams * vocabulary,
    },
    { op: 'argmax', name: `[${logits.shape}]`, inputs: [logits], outputs: [i32(streams)], flops: streams * vocabulary },
  ]
}

/** A layer of a ResNet, and its first pooling. */
function convolutions(pick: Pick): readonly CudaCase[] {
  const [images, channels, side] = [pick(16, 2), pick(256, 3), pick(28, 5)]
  const [x, w] = [f32(images, channels, side, side), f32(channels, channels, 3, 3)]
  const flops = 2 * images * side * side * channels * channels * 9
  const attributes: readonly (readonly [string, Attribute])[] = [
    ['stride', [1, 1]],
    ['padding', [1, 1, 1, 1]],
    ['dilation', [1, 1]],
    ['groups', 1],
  ]
  const name = `3 × 3, [${x.shape}]`
  const [wide, narrow] = [pick(112, 8), pick(56, 4)]
  const pooled = [images, channels / pick(4, 1), narrow, narrow]
  const columns = Array.from({ length: 2 * narrow }, (_, i) => i)
  return [
    { op: 'conv2d', name, inputs: [x, w, null], outputs: [x], attributes, flops },
    { op: 'conv2d_input_vjp', name, inputs: [x, w], outputs: [x], attributes, flops },
    { op: 'conv2d_weight_vjp', name, inputs: [x, x], outputs: [w], attributes, flops },
    {
      op: 'max_pool2d',
      name: `3 × 3 by 2, to [${pooled}]`,
      inputs: [f32(pooled[0]!, pooled[1]!, wide, wide)],
      outputs: [f32(...pooled), null],
      attributes: [
        ['size', [3, 3]],
        ['stride', [2, 2]],
        ['padding', [1, 1, 1, 1]],
        ['dilation', [1, 1]],
      ],
      flops: 9 * pooled.reduce((a, b) => a * b),
    },
    {
      op: 'resample',
      name: `pairs of an axis of ${wide}, to [${pooled[0]}, ${narrow}, ${wide * pooled[1]!}]`,
      inputs: [f32(pooled[0]!, wide, wide * pooled[1]!)],
      outputs: [f32(pooled[0]!, narrow, wide * pooled[1]!)],
      attributes: [
        ['axis', 1],
        ['offsets', Array.from({ length: narrow + 1 }, (_, i) => 2 * i)],
        ['columns', columns],
        ['weights', columns.map(() => 0.5)],
      ],
      flops: 4 * pooled[0]! * narrow * wide * pooled[1]!,
    },
  ]
}
