/** Moving, reducing, scanning, sorting. */
import type { CudaCase, Pick } from './cases.js'
import { f32, i32, indices, u32 } from './operands.js'

/** @returns what moves, reduces, scans, sorts or draws numbers */
export function arrayCases(pick: Pick): readonly CudaCase[] {
  const sizes = { n: pick(4096, 6), d: pick(2048, 8), words: pick(128_256, 40), rows: pick(512, 4) }
  return [...moves(sizes), ...gathers(sizes), ...reductions(sizes), ...orders(sizes)]
}

interface Sizes {
  readonly n: number
  readonly d: number
  readonly words: number
  readonly rows: number
}

function moves({ n, d }: Sizes): readonly CudaCase[] {
  const x = f32(n, d)
  const name = `[${n}, ${d}]`
  const [from, step] = [
    ['start', [0, 0]],
    ['step', [1, 2]],
  ] as const
  const heads = [n / 2, 2, d / 8, 8]
  return [
    { op: 'copy', name, inputs: [x], outputs: [x], flops: 0 },
    { op: 'broadcast_to', name, inputs: [f32(d)], outputs: [x], flops: 0 },
    { op: 'flip', name, inputs: [x], outputs: [x], attributes: [['axis', 1]], flops: 0 },
    {
      op: 'slice',
      name: `every other column of ${name}`,
      inputs: [x],
      outputs: [f32(n, d / 2)],
      attributes: [from, step],
      flops: 0,
    },
    {
      op: 'slice_vjp',
      name: `every other column of ${name}`,
      inputs: [f32(n, d / 2)],
      outputs: [x],
      attributes: [from, step],
      flops: 0,
    },
    {
      op: 'concat',
      name: `to [${n}, ${2 * d}]`,
      inputs: [x, x],
      outputs: [f32(n, 2 * d)],
      attributes: [['axis', 1]],
      flops: 0,
    },
    {
      op: 'transpose',
      name,
      inputs: [x],
      outputs: [f32(d, n)],
      attributes: [['permutation', [1, 0]]],
      flops: 0,
    },
    {
      op: 'transpose',
      name: `heads to the front, [${heads}]`,
      inputs: [f32(...heads)],
      outputs: [f32(heads[0]!, heads[2]!, heads[1]!, heads[3]!)],
      attributes: [['permutation', [0, 2, 1, 3]]],
      flops: 0,
    },
    {
      op: 'arange',
      name: `${n * d} numbers`,
      inputs: [],
      outputs: [f32(n * d)],
      attributes: [
        ['start', 0.5],
        ['step', 2],
      ],
      flops: 2 * n * d,
    },
  ]
}

function gathers({ n, d, words, rows }: Sizes): readonly CudaCase[] {
  const [table, x, chosen] = [f32(words, d), f32(n, d), indices(words, n)]
  const wide = f32(rows, words)
  const along = indices(d, n, d)
  return [
    {
      op: 'gather_rows',
      name: `${n} of [${table.shape}]`,
      inputs: [table, chosen],
      outputs: [x],
      flops: 0,
      bytes: 4 * n * (2 * d + 1),
    },
    {
      op: 'scatter_add_rows',
      name: `${n} into [${table.shape}]`,
      inputs: [chosen, x],
      outputs: [table],
      flops: n * d,
    },
    {
      op: 'gather_last',
      name: `one of each row, [${wide.shape}]`,
      inputs: [wide, indices(words, rows)],
      outputs: [f32(rows)],
      flops: 0,
      bytes: 12 * rows,
    },
    {
      op: 'scatter_last',
      name: `one in each row, [${wide.shape}]`,
      inputs: [indices(words, rows), f32(rows)],
      outputs: [wide],
      flops: 0,
    },
    {
      op: 'gather',
      name: `along rows, [${n}, ${d}]`,
      inputs: [x, along],
      outputs: [x],
      attributes: [['axis', 1]],
      flops: 0,
    },
    {
      op: 'scatter_add',
      name: `along rows, [${n}, ${d}]`,
      inputs: [along, x],
      outputs: [x],
      attributes: [['axis', 1]],
      flops: n * d,
    },
    {
      op: 'segment_max',
      name: `[${n}, ${d}] in ${rows} segments`,
      inputs: [indices(rows, n), x],
      outputs: [f32(rows, d)],
      attributes: [['segments', rows]],
      flops: n * d,
    },
  ]
}

function reductions({ n, d }: Sizes): readonly CudaCase[] {
  const x = f32(n, d)
  const count = n * d
  const over = (axes: readonly number[]) => [['axes', axes]] as const
  const scanned = f32(4, n / 2, d / 2)
  const scan = [
    ['axis', 1],
    ['reverse', 0],
  ] as const
  const name = `along [4, ·, ${d / 2}], ${n / 2}`
  return [
    {
      op: 'reduce_sum',
      name: `columns of [${n}, ${d}]`,
      inputs: [x],
      outputs: [f32(d)],
      attributes: over([0]),
      flops: count,
    },
    {
      op: 'reduce_sum',
      name: `all of [${n}, ${d}]`,
      inputs: [x],
      outputs: [f32()],
      attributes: over([0, 1]),
      flops: count,
    },
    {
      op: 'reduce_max',
      name: `rows of [${n}, ${d}]`,
      inputs: [x],
      outputs: [f32(n)],
      attributes: over([1]),
      flops: count,
    },
    { op: 'cumsum', name, inputs: [scanned], outputs: [scanned], attributes: scan, flops: count },
    { op: 'logcumsumexp', name, inputs: [scanned], outputs: [scanned], attributes: scan, flops: 6 * count },
    {
      op: 'linear_scan',
      name,
      inputs: [scanned, scanned, null],
      outputs: [scanned],
      attributes: scan,
      flops: 2 * count,
    },
  ]
}

function orders({ n, d, words, rows }: Sizes): readonly CudaCase[] {
  const x = f32(n, d)
  const [few, k] = [f32(rows / 4, words), Math.min(50, words)]
  const name = `[${n}, ${d}]`
  return [
    {
      op: 'sort',
      name,
      inputs: [x],
      outputs: [x, i32(n, d)],
      attributes: [['descending', 0]],
      flops: n * d * Math.log2(d),
    },
    {
      op: 'top_k',
      name: `${k} of each row, [${few.shape}]`,
      inputs: [few],
      outputs: [f32(rows / 4, k), i32(rows / 4, k)],
      attributes: [
        ['k', k],
        ['descending', 1],
      ],
      flops: (rows / 4) * words,
    },
    { op: 'random_uniform', name, inputs: [u32(2)], outputs: [x], attributes: [['stream', 1]], flops: 30 * n * d },
    { op: 'random_normal', name, inputs: [u32(2)], outputs: [x], attributes: [['stream', 1]], flops: 50 * n * d },
    {
      op: 'walsh_hadamard',
      name,
      inputs: [x],
      outputs: [x],
      flops: n * d * Math.log2(d),
    },
  ]
}
