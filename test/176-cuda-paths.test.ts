// Sizes at which CUDA kernels take another way than at those of the small calls: long rows, long sums, many columns, tiles
// with edges, grids whose blocks walk on.
import './support/cuda_host.js'
import test from 'ava'
import type { DType } from '../lib/tensor/dtype.js'
import { difference, numbersOf, prepare, randomOf, results } from './support/both_devices.js'
import type { Attribute } from './support/instruction_list.js'
import type { Operand } from './support/kernel_calls.js'

const f32 = (...shape: readonly number[]): Operand => ({ dtype: 'f32', shape })
const i32 = (...shape: readonly number[]): Operand => ({ dtype: 'i32', shape })
const of = (dtype: DType, ...shape: readonly number[]): Operand => ({ dtype, shape })

interface Path {
  readonly op: string
  readonly what: string
  readonly inputs: readonly (Operand | null)[]
  readonly outputs: readonly (Operand | null)[]
  readonly attributes?: readonly (readonly [string, Attribute])[]
  /** Default 1e-5. */
  readonly tolerance?: number
}

/** Squares of `count` inputs, all of them before the first of the sums that add them up from the last one on. */
function manyValues(count: number): readonly (readonly [string, Attribute])[] {
  const each = Array.from({ length: count }, (_, i) => i)
  const sums = each.slice(1)
  return [
    ['ops', [...each.map(() => 'square'), ...sums.map(() => 'add')]],
    ['operands', [...each, ...sums.flatMap((i) => [i === 1 ? count : 2 * count + i - 2, 2 * count - i])]],
    ['constants', []],
    ['results', [3 * count - 2]],
  ]
}

const paths: readonly Path[] = [
  {
    op: 'sort',
    what: 'rows of several tiles',
    inputs: [f32(2, 5000)],
    outputs: [f32(2, 5000), i32(2, 5000)],
    attributes: [['descending', 1]],
    tolerance: 0,
  },
  {
    op: 'top_k',
    what: 'rows of several tiles',
    inputs: [of('f64', 3, 2049)],
    outputs: [of('f64', 3, 40), i32(3, 40)],
    attributes: [
      ['k', 40],
      ['descending', 0],
    ],
    tolerance: 0,
  },
  {
    op: 'walsh_hadamard',
    what: 'rows that do not fit into shared memory',
    inputs: [f32(2, 8192)],
    outputs: [f32(2, 8192)],
    tolerance: 0,
  },
  {
    op: 'monarch_vjp',
    what: 'weights in small and large tiles, in pieces of the batch',
    // Sums of many terms that almost cancel.
    tolerance: 1e-4,
    inputs: [f32(700, 40), f32(2, 34, 20), f32(4, 5, 17), f32(700, 20)],
    outputs: [f32(700, 40), f32(2, 34, 20), f32(4, 5, 17)],
    attributes: [['precision', 'f32']],
  },
  {
    op: 'kronecker_vjp',
    what: 'a factor that all blocks share, in pieces of the batch',
    // Sums of many terms that almost cancel.
    tolerance: 1e-4,
    inputs: [f32(150, 60), f32(2, 3, 3), f32(2, 25, 20), f32(150, 75)],
    outputs: [f32(150, 60), f32(2, 3, 3), f32(2, 25, 20)],
    attributes: [
      ['precision', 'f32'],
      ['order', [1, 0]],
    ],
  },
  {
    op: 'conv2d_weight_vjp',
    what: 'in pieces of the images',
    // Sums of many terms that almost cancel.
    tolerance: 1e-4,
    inputs: [f32(4, 3, 20, 20), f32(4, 5, 20, 20)],
    outputs: [f32(5, 3, 3, 3)],
    attributes: [
      ['stride', [1, 1]],
      ['padding', [1, 1, 1, 1]],
      ['dilation', [1, 1]],
      ['groups', 1],
    ],
  },
  {
    op: 'sample_token',
    what: 'more tokens than threads',
    inputs: [f32(8, 1500), of('u32', 8, 4), f32(8, 7), f32(1500), null, i32(8, 900), i32(8)],
    outputs: [i32(8), f32(8), i32(8, 5), f32(8, 5)],
    attributes: [['top', 5]],
  },
  { op: 'softmax', what: 'a block for a row', inputs: [f32(3, 1500)], outputs: [f32(3, 1500)] },
  { op: 'log_sum_exp', what: 'a block for a row', inputs: [f32(2, 2049)], outputs: [f32(2)] },
  { op: 'softmax_vjp', what: 'a block for a row', inputs: [f32(2, 1030), f32(2, 1030)], outputs: [f32(2, 1030)] },
  {
    op: 'rms_norm',
    what: 'a block for a row',
    inputs: [f32(3, 1100), f32(1100)],
    outputs: [f32(3, 1100), f32(3)],
    attributes: [['eps', 1e-5]],
  },
  {
    op: 'rms_norm_vjp',
    what: 'a block for a row, several chunks of rows',
    inputs: [f32(70, 1100), f32(1100), f32(70), f32(70, 1100)],
    outputs: [f32(70, 1100), f32(1100)],
  },
  {
    op: 'layer_norm_vjp',
    what: 'a block for a row, several chunks of rows',
    inputs: [f32(70, 1100), f32(1100), f32(70), f32(70), f32(70, 1100)],
    outputs: [f32(70, 1100), f32(1100), f32(1100)],
  },
  {
    op: 'reduce_sum',
    what: 'everything, in chunks',
    inputs: [f32(300, 700)],
    outputs: [f32()],
    attributes: [['axes', [0, 1]]],
  },
  {
    op: 'reduce_max',
    what: 'long rows by blocks',
    inputs: [f32(1100, 1300)],
    outputs: [f32(1100)],
    attributes: [['axes', [1]]],
  },
  {
    op: 'reduce_sum',
    what: 'columns, in chunks',
    inputs: [f32(3000, 7)],
    outputs: [f32(7)],
    attributes: [['axes', [0]]],
  },
  {
    op: 'reduce_sum',
    what: 'outer and inner axes',
    inputs: [of('f64', 30, 5, 400)],
    outputs: [of('f64', 5)],
    attributes: [['axes', [0, 2]]],
  },
  {
    op: 'transpose',
    what: 'squares with edges',
    inputs: [f32(3, 70, 45)],
    outputs: [f32(3, 45, 70)],
    attributes: [['permutation', [0, 2, 1]]],
    tolerance: 0,
  },
  {
    op: 'transpose',
    what: 'squares of the first and the last axis',
    inputs: [of('bf16', 40, 3, 35)],
    outputs: [of('bf16', 35, 3, 40)],
    attributes: [['permutation', [2, 1, 0]]],
    tolerance: 0,
  },
  { op: 'scatter_add_rows', what: 'many sources for one row', inputs: [i32(900), f32(900, 5)], outputs: [f32(4, 5)] },
  { op: 'argmax', what: 'long rows', inputs: [f32(4, 3000)], outputs: [i32(4)], tolerance: 0 },
  {
    op: 'low_rank_matmul',
    what: 'many rows, of which each warp has two; ranks in groups, of which the last is not full',
    inputs: [f32(4100, 5), f32(5, 7), f32(5, 20), f32(20, 7), f32(4100, 7)],
    outputs: [f32(4100, 7), f32(4100, 20)],
    attributes: [
      ['alpha', 0.5],
      ['alpha_z', 2],
    ],
  },
  {
    op: 'low_rank_matmul',
    what: 'columns for each thread, factors as the backward pass has them',
    // Sums of 5,000 terms that almost cancel.
    tolerance: 1e-4,
    inputs: [of('bf16', 521, 150), f32(260, 150), f32(33, 150), f32(260, 33)],
    outputs: [f32(521, 260), f32(521, 33)],
    attributes: [
      ['transpose_b', 1],
      ['transpose_u', 1],
      ['transpose_v', 1],
    ],
  },
  {
    op: 'low_rank_matmul',
    // Of one number each: sums in another order might be rounded to another bf16.
    what: 'many rows in bf16',
    inputs: [f32(4100, 1), f32(1, 9), f32(1, 17), f32(17, 9)],
    outputs: [f32(4100, 9), f32(4100, 17)],
    attributes: [['precision', 'bf16']],
  },
  {
    op: 'low_rank_matmul',
    what: 'a rank that is the work of three products',
    inputs: [f32(520, 70), f32(70, 20), f32(70, 65), f32(65, 20)],
    outputs: [f32(520, 20), f32(520, 65)],
  },
  {
    op: 'attention',
    what: 'several tiles of rows and keys, and slices of wide heads',
    inputs: [f32(1, 70, 4, 150), f32(1, 70, 2, 150), f32(1, 70, 2, 150), i32(1, 70)],
    outputs: [f32(1, 70, 4, 150), f32(1, 4, 70)],
    attributes: [
      ['causal', 1],
      ['scale', 0.1],
      ['window', 40],
    ],
  },
  {
    op: 'attention_vjp',
    what: 'several tiles of rows and keys, and slices of wide heads',
    inputs: [
      ...[f32(1, 70, 4, 150), f32(1, 70, 2, 150), f32(1, 70, 2, 150), i32(1, 70)],
      ...[f32(1, 70, 4, 150), f32(1, 4, 70), f32(1, 70, 4, 150)],
    ],
    outputs: [f32(1, 70, 4, 150), f32(1, 70, 2, 150), f32(1, 70, 2, 150)],
    attributes: [
      ['causal', 1],
      ['scale', 0.1],
      ['softcap', 2],
    ],
    // The lse of this call is not that of its scores.
    tolerance: 1e-4,
  },
  {
    op: 'attention_cached',
    what: 'parts of the keys, by rows that see next to none of them',
    inputs: [f32(2, 3, 2, 8), of('bf16', 2, 1100, 1, 8), of('bf16', 2, 1100, 1, 8), i32(2)],
    outputs: [f32(2, 3, 2, 8)],
    attributes: [['scale', 0.3]],
  },
  {
    op: 'attention_cached',
    what: 'parts of the keys, by rows that see nearly all of them',
    inputs: [f32(2, 598, 1, 4), f32(2, 602, 1, 4), f32(2, 602, 1, 4), i32(2)],
    outputs: [f32(2, 598, 1, 4)],
    attributes: [['scale', 0.3]],
  },
  {
    op: 'linear_cross_entropy',
    what: 'rows in several tiles',
    inputs: [f32(70, 2), f32(270_000, 2), i32(70)],
    outputs: [f32(70), f32(70), f32(70, 2)],
  },
  {
    op: 'linear_cross_entropy_vjp',
    what: 'rows in several tiles',
    inputs: [f32(66, 2), f32(270_000, 2), i32(66), f32(66), f32(66)],
    outputs: [f32(66, 2), f32(270_000, 2)],
    // Sums of 270,000 terms.
    tolerance: 1e-4,
  },
  {
    op: 'elementwise',
    what: 'more values than wide columns have room for',
    inputs: Array.from({ length: 40 }, () => f32(130)),
    outputs: [f32(130)],
    attributes: manyValues(40),
  },
  {
    op: 'elementwise',
    what: 'half floats and integers of every kind',
    inputs: [of('f16', 200), of('bf16', 200), of('u8', 200), i32(200)],
    outputs: [of('f16', 200), of('bf16', 200), of('u8', 200), of('u32', 200)],
    attributes: [
      ['ops', ['add', 'mul', 'abs', 'add']],
      ['operands', [0, 1, 4, 1, 0, 2, 6]],
      ['constants', []],
      ['results', [4, 5, 7, 7]],
    ],
  },
]

for (const { op, what, inputs, outputs, attributes = [], tolerance = 1e-5 } of paths)
  test(`${op}: ${what}`, async (t) => {
    const call = { inputs: [...inputs], outputs: [...outputs], attributes: [...attributes] }
    const prepared = prepare(op, call, randomOf(what))
    const cuda = await results(prepared, 'cuda')
    for (const [i, expected] of (await results(prepared, 'cpu')).entries())
      t.is(difference(expected.dtype, await numbersOf(cuda[i]!), await numbersOf(expected), tolerance), undefined)
  })
