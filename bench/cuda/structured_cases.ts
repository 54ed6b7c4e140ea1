/** Structured and sparse products. */
import type { Attribute } from '../../test/support/instruction_list.js'
import type { CudaCase, Pick } from './cases.js'
import { type CaseOperand, f32, i32 } from './operands.js'

/** @returns chains of block-wise products and sparse products, with their gradients */
export function structuredCases(pick: Pick): readonly CudaCase[] {
  return [...chains(pick), ...sparse(pick)]
}

const f32Precision: readonly [string, Attribute] = ['precision', 'f32']

function chains(pick: Pick): readonly CudaCase[] {
  const [rows, blocks, inner] = [pick(4096, 6), pick(32, 2), pick(32, 3)]
  const width = blocks * inner
  const [x, y] = [f32(rows, width), f32(rows, width)]
  const [single, w1, w2] = [f32(blocks, inner, inner), f32(blocks, inner, inner), f32(inner, blocks, blocks)]
  const factors = [f32(1, blocks, blocks), f32(1, inner, inner)]
  const order = ['order', [1, 0]] as const
  const name = `${rows} rows, ${width} → ${width}, blocks of ${inner}`
  const both = (
    op: string,
    weights: readonly CaseOperand[],
    attributes: readonly (readonly [string, Attribute])[],
    flops: number,
  ): readonly CudaCase[] => [
    { op, name, inputs: [x, ...weights], outputs: [y], attributes, flops },
    {
      op: `${op}_vjp`,
      name,
      inputs: [x, ...weights, y],
      outputs: [x, ...weights.map((weight) => ({ ...weight }))],
      attributes,
      flops: 2 * flops,
    },
  ]
  return [
    ...both('block_diagonal', [single], [f32Precision], 2 * rows * width * inner),
    ...both('monarch', [w1, w2], [f32Precision], 2 * rows * width * (inner + blocks)),
    ...both('kronecker', factors, [f32Precision, order], 2 * rows * width * (inner + blocks)),
  ]
}

/** Entries of a support that are the same many in each row, and where they lie. */
function support(rows: number, columns: number, each: number): readonly CaseOperand[] {
  const apart = Math.floor(columns / each)
  return [
    { ...i32(rows + 1), fill: (i) => i * each },
    { ...i32(rows * each), fill: (i) => (i % each) * apart + (Math.floor(i / each) % apart) },
  ]
}

function sparse(pick: Pick): readonly CudaCase[] {
  const [side, each, n] = [pick(2048, 6), pick(61, 2), pick(1024, 5)]
  const count = side * each
  const own = support(side, side, each)
  const name = `${each} entries in each row of [${side}, ${side}]`
  const [values, dense] = [f32(count), f32(side, n)]
  return [
    {
      op: 'spmm',
      name: `${name}, by [${dense.shape}]`,
      inputs: [values, dense, ...own, null, ...own, null],
      outputs: [f32(side, n)],
      attributes: [['right', 0]],
      flops: 2 * count * n,
    },
    {
      op: 'sddmm',
      name: `${name}, of [${dense.shape}] and its like`,
      inputs: [dense, dense, ...own, null, ...own, null],
      outputs: [values],
      attributes: [['right', 0]],
      flops: 2 * count * n,
    },
    {
      op: 'sparse_add',
      name,
      inputs: [values, f32(side, side), ...own, null],
      outputs: [f32(side, side)],
      attributes: [['columns', side]],
      flops: count,
    },
    {
      op: 'sparse_gather',
      name,
      inputs: [f32(side, side), ...own, null],
      outputs: [values],
      flops: 0,
      bytes: count * 12 + 4 * side,
    },
  ]
}
