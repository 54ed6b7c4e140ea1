// Every registered operator against numerical derivatives, first and second. An operator without a case here fails the
// suite. In f64 the composite operators run as what they decompose into, so f32 against f64 also holds their kernels
// against their meaning.
import test, { type ExecutionContext } from 'ava'
import { gradients, vjp } from '../lib/graph/grad.js'
import { operators } from '../lib/graph/operator.js'
import { attention, attentionCached } from '../lib/graph/ops/attention.js'
import { blockDiagonal } from '../lib/graph/ops/block_diagonal.js'
import { conv1d, conv2d } from '../lib/graph/ops/conv.js'
import * as elementwise from '../lib/graph/ops/elementwise.js'
import * as gather from '../lib/graph/ops/gather.js'
import { groupedLowRank } from '../lib/graph/ops/grouped_low_rank.js'
import { identity } from '../lib/graph/ops/identity.js'
import * as index from '../lib/graph/ops/index.js'
import { kroneckerMatmul } from '../lib/graph/ops/kronecker.js'
import { linearCrossEntropy } from '../lib/graph/ops/loss.js'
import { matmul } from '../lib/graph/ops/matmul.js'
import { monarch } from '../lib/graph/ops/monarch.js'
import { layerNorm, rmsNorm } from '../lib/graph/ops/norm.js'
import { pagedAttention, pagedCacheUpdate } from '../lib/graph/ops/paged_attention.js'
import { adaptiveAvgPool2d, maxPool2d, upsample2d } from '../lib/graph/ops/pool.js'
import { randomNormal, randomUniform } from '../lib/graph/ops/random.js'
import * as reduce from '../lib/graph/ops/reduce.js'
import { rope, ropeTable } from '../lib/graph/ops/rope.js'
import { sampleToken } from '../lib/graph/ops/sample.js'
import { cumprod, cumsum, linearScan, logCumSumExp } from '../lib/graph/ops/scan.js'
import { segmentMax } from '../lib/graph/ops/segment.js'
import { logSumExp, softmax } from '../lib/graph/ops/softmax.js'
import { sort, topk } from '../lib/graph/ops/sort.js'
import { sddmm, sparseGather, sparseToDense, spmm } from '../lib/graph/ops/sparse.js'
import { stopGradient } from '../lib/graph/ops/stop_gradient.js'
import { walshHadamard } from '../lib/graph/ops/walsh_hadamard.js'
import { program } from '../lib/graph/program.js'
import { assign, read, type Sym } from '../lib/graph/sym.js'
import { cholesky, eigh, lu, qr, qrPivoted, svd } from '../lib/linalg/factorise.js'
import { linearAssignment } from '../lib/linalg/permutation.js'
import { pinv, solve, solveTriangular } from '../lib/linalg/solve.js'
import { supportFromEntries } from '../lib/structured/sparse.js'
import { elementCount } from '../lib/tensor/dtype.js'
import { type Tensor, tensor, zeros } from '../lib/tensor/tensor.js'
import { randomNumbers } from './random_numbers.js'

interface Case {
  /** Shapes of the differentiable inputs. */
  readonly shapes: readonly (readonly number[])[]
  readonly fn: (...inputs: Sym[]) => Sym | Promise<Sym>
  /** Inputs are drawn from here; default [-1, 1]. */
  readonly range?: readonly [number, number]
  /** The function rounds to f32 whatever its inputs are. */
  readonly rounds?: boolean
}

const ints = (values: readonly number[], shape?: readonly number[]) =>
  read(tensor(Int32Array.from(values), shape ?? [values.length]))
/** Numbers as a constant of the program, in the dtype of x. */
const given = (values: Float32Array, shape: readonly number[], x: Sym) =>
  elementwise.cast(read(tensor(values, shape)), x.dtype)
const matrix = [3, 5]

/** The gradient of Σ g · y with respect to x: reaches the operators that other operators' gradients are made of. */
const gradientOf = async (y: Sym, g: Sym, x: Sym): Promise<Sym> =>
  (await gradients(reduce.sum(elementwise.mul(y, g)), [x]))[0]!

const unary = (fn: (x: Sym) => Sym, range?: readonly [number, number]): Case => ({
  shapes: [matrix],
  fn,
  ...(range ? { range } : {}),
})
const binary = (fn: (a: Sym, b: Sym) => Sym, range?: readonly [number, number]): Case => ({
  shapes: [
    [2, 3, 5],
    [3, 1],
  ],
  fn,
  ...(range ? { range } : {}),
})

const times = (a: Sym, b: Sym): Sym => matmul(a, b)
/** A well conditioned matrix from any small one: its values lie around 1, 2, 3, … */
const spread = (x: Sym): Sym => {
  const [m, n] = x.shape.slice(-2) as [number, number]
  const values = Float32Array.from({ length: m * n }, (_, i) => (Math.floor(i / n) === i % n ? 2 + (i % n) : 0))
  return elementwise.add(elementwise.mul(x, 0.3), given(values, [m, n], x))
}
/** Positive definite. */
const definite = (x: Sym): Sym => times(spread(x), index.transpose(spread(x)))

const qkv = [
  [2, 6, 4, 8],
  [2, 6, 2, 8],
  [2, 6, 2, 8],
]

/** A sparse 4 × 5 matrix with an empty row and an empty column. */
const { support } = await supportFromEntries(
  { rows: Int32Array.of(3, 0, 1, 0, 3, 1), columns: Int32Array.of(1, 4, 0, 1, 4, 2) },
  [4, 5],
)

const blockShapes = [
  [2, 3, 6],
  [2, 4, 3],
]
/** 10 of 12 inputs and 7 of 8 outputs: the padding rules of four blocks. */
const monarchShapes = [
  [2, 3, 10],
  [4, 2, 3],
  [4, 2, 2],
]
/** Two terms of a chain that shrinks one axis and stretches the other. */
const kroneckerShapes = [
  [3, 12],
  [2, 2, 4],
  [2, 5, 3],
]

/** Differentiable operators: one or more functions that use the operator on the way. */
const cases: Readonly<Record<string, readonly Case[]>> = {
  neg: [unary((x) => elementwise.neg(x))],
  abs: [unary((x) => elementwise.abs(x), [0.2, 1])],
  exp: [unary(elementwise.exp)],
  log: [unary(elementwise.log, [0.5, 2])],
  sqrt: [unary(elementwise.sqrt, [0.5, 2])],
  rsqrt: [unary(elementwise.rsqrt, [0.5, 2])],
  reciprocal: [unary(elementwise.reciprocal, [0.5, 2])],
  square: [unary(elementwise.square)],
  sin: [unary(elementwise.sin)],
  cos: [unary(elementwise.cos)],
  tanh: [unary(elementwise.tanh)],
  sigmoid: [unary(elementwise.sigmoid)],
  silu: [unary(elementwise.silu)],
  relu: [unary(elementwise.relu, [0.2, 1]), unary(elementwise.relu, [-1, -0.2])],
  erf: [unary(elementwise.erf)],
  softplus: [unary(elementwise.softplus)],
  add: [binary(elementwise.add)],
  sub: [binary(elementwise.sub)],
  mul: [binary(elementwise.mul)],
  div: [binary(elementwise.div, [0.5, 2])],
  pow: [binary(elementwise.pow, [0.5, 2])],
  maximum: [{ shapes: [[4], []], fn: (a, b) => elementwise.maximum(a, elementwise.mul(b, 3)) }],
  minimum: [{ shapes: [[4], []], fn: (a, b) => elementwise.minimum(a, elementwise.mul(b, 3)) }],
  select: [{ shapes: [[4], [4]], fn: (a, b) => elementwise.select(elementwise.greater(ints([1, 0, 1, 0]), 0), a, b) }],
  cast: [
    unary((x) => elementwise.cast(elementwise.cast(elementwise.square(x), 'f64'), 'f32')),
    unary((x) => elementwise.square(elementwise.cast(x, 'f64'))),
  ].map((spec) => ({ ...spec, rounds: true })),
  identity: [unary((x) => elementwise.mul(identity(x), x))],
  broadcast_to: [{ shapes: [[3, 1]], fn: (x) => elementwise.broadcastTo(x, [2, 3, 4]) }],
  reshape: [unary((x) => reduce.reshape(x, [5, 3]))],
  // Its derivative is zero on purpose: here the stopped parts cancel, so that the true derivative agrees.
  stop_gradient: [unary((x) => elementwise.add(x, elementwise.sub(stopGradient(x), stopGradient(x))))],
  reduce_sum: [
    { shapes: [[2, 3, 4]], fn: (x) => reduce.sum(x, { axes: [0, 2] }) },
    { shapes: [[2, 3, 4]], fn: (x) => reduce.sum(x, { axes: [1], keepDims: true }) },
  ],
  reduce_max: [{ shapes: [[3, 5]], fn: (x) => reduce.max(x, { axes: [1] }) }],
  gather_rows: [{ shapes: [[5, 3]], fn: (x) => index.gatherRows(x, ints([4, 0, 4, 2], [2, 2])) }],
  scatter_add_rows: [{ shapes: [[4, 3]], fn: (x) => index.scatterAddRows(ints([1, 1, 0, 4]), x, 6) }],
  gather_last: [{ shapes: [[3, 5]], fn: (x) => index.gatherLast(x, ints([4, 0, 2])) }],
  scatter_last: [{ shapes: [[3]], fn: (x) => index.scatterLast(ints([4, 0, 2]), x, 5) }],
  slice: [{ shapes: [[4, 6]], fn: (x) => index.slice(x, [{ axis: 1, start: 1, end: 6, step: 2 }]) }],
  slice_vjp: [
    {
      shapes: [
        [4, 6],
        [4, 3],
      ],
      fn: (x, y) => elementwise.mul(index.slice(elementwise.square(x), [{ axis: 1, start: 0, end: 3 }]), y),
    },
  ],
  concat: [
    {
      shapes: [
        [2, 3],
        [2, 1],
      ],
      fn: (a, b) => index.concat([a, b, a], 1),
    },
  ],
  transpose: [{ shapes: [[2, 3, 4]], fn: (x) => index.transpose(x, [2, 0, 1]) }],
  copy: [unary(index.copy)],
  block_diagonal: [{ shapes: blockShapes, fn: (x, w) => blockDiagonal(x, w) }],
  block_diagonal_vjp: [
    {
      shapes: [...blockShapes, [2, 3, 8]],
      fn: async (x, w, g) => {
        const [dx, dw] = await vjp([blockDiagonal(x, w)], [g], [x, w])
        return elementwise.add(reduce.sum(elementwise.square(dx!)), reduce.sum(elementwise.square(dw!)))
      },
    },
  ],
  monarch: [
    { shapes: monarchShapes, fn: (x, a, b) => monarch(x, a, b, { out: 7 }) },
    {
      shapes: [
        [5, 6],
        [2, 4, 3],
        [4, 3, 2],
      ],
      fn: (x, a, b) => monarch(x, a, b),
    },
  ],
  monarch_vjp: [
    {
      shapes: [...monarchShapes, [2, 3, 7]],
      fn: async (x, a, b, g) => {
        const found = await vjp([monarch(x, a, b, { out: 7 })], [g], [x, a, b])
        return found.map((each) => reduce.sum(elementwise.square(each))).reduce((p, q) => elementwise.add(p, q))
      },
    },
  ],
  kronecker: [
    { shapes: kroneckerShapes, fn: (x, ...factors) => kroneckerMatmul(x, factors) },
    {
      shapes: [
        [2, 12],
        [2, 3],
        [3, 2],
        [4, 2],
      ],
      fn: (x, ...factors) => kroneckerMatmul(x, factors),
    },
  ],
  kronecker_vjp: [
    {
      shapes: [...kroneckerShapes, [3, 10]],
      fn: async (x, a, b, g) => {
        const found = await vjp([kroneckerMatmul(x, [a, b])], [g], [x, a, b])
        return found.map((each) => reduce.sum(elementwise.square(each))).reduce((p, q) => elementwise.add(p, q))
      },
    },
  ],
  matmul: [
    {
      shapes: [
        [3, 4],
        [4, 5],
      ],
      fn: (a, b) => matmul(a, b, { alpha: 0.5 }),
    },
    {
      shapes: [
        [3, 4],
        [5, 4],
      ],
      fn: (a, b) => matmul(a, b, { transposeB: true }),
    },
    {
      shapes: [
        [4, 3],
        [4, 5],
      ],
      fn: (a, b) => matmul(a, b, { transposeA: true }),
    },
    {
      shapes: [
        [4, 3],
        [5, 4],
      ],
      fn: (a, b) => matmul(a, b, { transposeA: true, transposeB: true }),
    },
    {
      shapes: [
        [2, 3, 4],
        [2, 4, 5],
      ],
      fn: (a, b) => matmul(a, b),
    },
    { shapes: [[2, 3, 4], [4, 5], [5]], fn: (a, b, c) => matmul(a, b, { addend: c }) },
    {
      shapes: [
        [3, 4],
        [4, 5],
        [3, 5],
      ],
      fn: (a, b, c) => matmul(a, b, { addend: c, alpha: 2 }),
    },
  ],
  spmm: [
    { shapes: [[6], [5, 3]], fn: (values, x) => spmm(support, values, x) },
    { shapes: [[6], [4, 3]], fn: (values, x) => spmm(support, values, x, { transpose: true }) },
    { shapes: [[6], [2, 3, 5]], fn: (values, x) => spmm(support, values, x, { side: 'right' }) },
    { shapes: [[6], [3, 4]], fn: (values, x) => spmm(support, values, x, { transpose: true, side: 'right' }) },
  ],
  sddmm: [
    {
      shapes: [
        [4, 3],
        [5, 3],
      ],
      fn: (a, b) => sddmm(support, a, b),
    },
    {
      shapes: [
        [3, 4],
        [3, 5],
      ],
      fn: (a, b) => sddmm(support, a, b, { side: 'right' }),
    },
  ],
  sparse_add: [
    { shapes: [[6], [4, 5]], fn: (values, dense) => sparseToDense(support, values, dense) },
    { shapes: [[6]], fn: (values) => sparseToDense(support, values) },
  ],
  sparse_gather: [{ shapes: [[4, 5]], fn: (x) => sparseGather(support, x) }],
  rms_norm: [{ shapes: [[3, 8], [8]], fn: (x, w) => rmsNorm(x, w, 1e-5) }],
  gather: [
    { shapes: [[2, 3, 2]], fn: (x) => gather.gather(x, 1, ints([0, 2, 2, 1, 1, 0, 0, 0], [2, 2, 2])) },
    { shapes: [[3, 4]], fn: (x) => gather.gather(x, 0, ints([0, 2, 2, 1], [2, 2])) },
  ],
  scatter_add: [{ shapes: [[2, 4]], fn: (x) => gather.scatterAdd(ints([0, 2, 2, 1, 1, 1, 1, 0], [2, 4]), x, 3, 1) }],
  flip: [{ shapes: [[2, 3, 2]], fn: (x) => gather.flip(x, 1) }],
  sort: [{ shapes: [[3, 5]], fn: (x) => sort(x, { axis: 0, descending: true }).values }],
  top_k: [{ shapes: [[3, 5]], fn: (x) => topk(x, 2).values }],
  cumsum: [
    { shapes: [[2, 5, 3]], fn: (x) => cumsum(x, 1) },
    { shapes: [[2, 5]], fn: (x) => cumsum(x, 1, { reverse: true }) },
  ],
  logcumsumexp: [
    { shapes: [[2, 5, 3]], fn: (x) => logCumSumExp(x, 1) },
    { shapes: [[2, 5]], fn: (x) => logCumSumExp(x, 1, { reverse: true }) },
  ],
  linear_scan: [
    {
      shapes: [
        [2, 5, 3],
        [2, 5, 3],
        [2, 3],
      ],
      fn: (a, b, initial) => linearScan(a, b, { axis: 1, initial }),
    },
    {
      shapes: [[4, 3], [4, 3], [3]],
      fn: (a, b, initial) => linearScan(a, b, { axis: 0, initial, reverse: true }),
    },
    { shapes: [[2, 4]], fn: (x) => cumprod(x, 1) },
    {
      shapes: [
        [2, 5],
        [2, 5],
        [2, 5],
      ],
      fn: (a, b, g) => gradientOf(linearScan(a, b, { axis: 1 }), g, a),
    },
  ],
  max_pool2d: [{ shapes: [[1, 2, 5, 5]], fn: (x) => maxPool2d(x, 3, { stride: 2, padding: 1 }) }],
  resample: [
    { shapes: [[1, 2, 5, 4]], fn: (x) => adaptiveAvgPool2d(x, [3, 3]) },
    { shapes: [[1, 2, 3, 4]], fn: (x) => upsample2d(x, [5, 9], { mode: 'bilinear' }) },
  ],
  conv2d: [
    {
      shapes: [[2, 3, 5, 6], [4, 3, 3, 2], [4]],
      fn: (x, w, bias) => conv2d(x, w, { bias, stride: [2, 1], padding: 1, dilation: [1, 2] }),
    },
    {
      shapes: [
        [1, 4, 4, 4],
        [6, 2, 3, 3],
      ],
      fn: (x, w) => conv2d(x, w, { padding: 'same', groups: 2 }),
    },
    {
      shapes: [
        [2, 3, 7],
        [3, 1, 4],
      ],
      fn: (x, w) => conv1d(x, w, { padding: 3, groups: 3 }),
    },
    {
      shapes: [
        [2, 3, 4, 4],
        [5, 3, 1, 1],
      ],
      fn: (x, w) => conv2d(x, w),
    },
  ],
  conv2d_input_vjp: [
    {
      shapes: [
        [2, 3, 5, 5],
        [4, 3, 3, 3],
        [2, 4, 3, 3],
      ],
      fn: (x, w, g) => gradientOf(conv2d(x, w, { stride: 2, padding: 1 }), g, x),
    },
  ],
  conv2d_weight_vjp: [
    {
      shapes: [
        [2, 4, 5, 5],
        [4, 2, 3, 3],
        [2, 4, 3, 3],
      ],
      fn: (x, w, g) => gradientOf(conv2d(x, w, { stride: 2, padding: 1, groups: 2 }), g, w),
    },
  ],
  layer_norm: [
    { shapes: [[3, 8], [8], [8]], fn: (x, w, b) => layerNorm(x, w, b, 1e-5) },
    { shapes: [[2, 3, 5]], fn: (x) => layerNorm(x, undefined, undefined, 1e-5) },
    { shapes: [[3, 8], [8]], fn: (x, b) => layerNorm(x, undefined, b, 1e-5) },
  ],
  softmax: [
    { shapes: [[3, 7]], fn: (x) => softmax(x) },
    { shapes: [[3, 4, 2]], fn: (x) => softmax(x, 1) },
  ],
  softmax_vjp: [
    {
      shapes: [
        [3, 7],
        [3, 7],
      ],
      fn: (x, g) => gradientOf(softmax(x), g, x),
    },
  ],
  log_sum_exp: [{ shapes: [[3, 7]], fn: (x) => logSumExp(x) }],
  rope: [
    { shapes: [[2, 3, 2, 8]], fn: (x) => rope(x, ropeTable(ints([0, 1, 5], [1, 3]), [1, 0.3, 0.1, 0.03])) },
    { shapes: [[2, 3, 2, 7]], fn: (x) => rope(x, ropeTable(ints([0, 1, 5], [1, 3]), [1, 0.3])) },
  ],
  attention: [
    { shapes: qkv, fn: (q, k, v) => attention(q, k, v, { causal: true }) },
    { shapes: qkv, fn: (q, k, v) => attention(q, k, v) },
    { shapes: qkv, fn: (q, k, v) => attention(q, k, v, { causal: true, window: 3, softcap: 0.7 }) },
    {
      shapes: qkv,
      fn: (q, k, v) =>
        attention(q, k, v, { causal: true, segments: ints([0, 0, 1, 1, 1, -1, 0, 0, 0, 0, -1, -1], [2, 6]) }),
    },
  ],
  svd: [
    { shapes: [[2, 4, 3]], fn: (x) => svd(spread(x)).s },
    {
      // Not the vectors themselves, whose signs are free.
      shapes: [[5, 3]],
      fn: (x) => {
        const { u, vh } = svd(spread(x))
        return elementwise.add(reduce.sum(times(u, vh)), elementwise.mul(elementwise.square(u), 2))
      },
    },
    { shapes: [[3, 5]], fn: (x) => elementwise.square(svd(spread(x)).vh) },
  ],
  pseudoinverse: [
    { shapes: [[4, 4]], fn: (x) => pinv(spread(x)) },
    { shapes: [[2, 5, 3]], fn: (x) => pinv(spread(x)) },
    { shapes: [[3, 5]], fn: (x) => pinv(spread(x)) },
  ],
  qr: [
    { shapes: [[2, 4, 3]], fn: (x) => qr(spread(x)).q },
    { shapes: [[3, 3]], fn: (x) => qr(spread(x)).r },
    {
      shapes: [[3, 5]],
      fn: (x) => {
        const { q, r } = qr(spread(x))
        return times(index.transpose(q), elementwise.sin(r))
      },
    },
  ],
  eigh: [
    { shapes: [[2, 3, 3]], fn: (x) => eigh(definite(x)).w },
    {
      shapes: [[4, 4]],
      fn: (x) => {
        const { w, v } = eigh(definite(elementwise.mul(x, 0.3)))
        return elementwise.mul(elementwise.square(v), elementwise.mul(w, 0.1))
      },
    },
  ],
  walsh_hadamard: [{ shapes: [[3, 8]], fn: (x) => walshHadamard(elementwise.sin(x)) }],
  segment_max: [{ shapes: [[5, 2]], fn: (x) => segmentMax(x, ints([1, 0, 1, 1, 0]), 2) }],
  cholesky: [{ shapes: [[2, 3, 3]], fn: (x) => cholesky(definite(x)) }],
  lu: [
    {
      shapes: [[4, 4]],
      fn: (x) => {
        const { l, u } = lu(spread(x))
        return elementwise.add(elementwise.sin(l), u)
      },
    },
  ],
  solve: [
    {
      shapes: [
        [4, 4],
        [4, 2],
      ],
      fn: (a, b) => solve(spread(a), b),
    },
    {
      shapes: [
        [2, 3, 3],
        [2, 3],
      ],
      fn: (a, b) => solve(spread(a), b),
    },
  ],
  solve_triangular: [
    {
      shapes: [
        [4, 4],
        [4, 2],
      ],
      fn: (a, b) => solveTriangular(spread(a), b, { upper: true }),
    },
    {
      shapes: [
        [4, 4],
        [4, 2],
      ],
      fn: (a, b) => solveTriangular(spread(a), b, { transpose: true }),
    },
    {
      shapes: [
        [4, 4],
        [4, 2],
      ],
      fn: (a, b) => solveTriangular(spread(a), b, { unitTriangular: true }),
    },
  ],
  linear_cross_entropy: [
    {
      shapes: [
        [4, 6],
        [9, 6],
      ],
      fn: (x, w) => linearCrossEntropy(x, w, ints([8, 0, -100, 3])),
    },
    {
      shapes: [[4, 6]],
      fn: (x) => linearCrossEntropy(x, given(randomNumbers(54, 5), [9, 6], x), ints([8, 0, -100, 3])),
    },
  ],
}

/** Operators without a derivative: each refuses one and says why, or, giving integers or constants, passes on zeros. */
const refusals: Readonly<Record<string, (x: Sym) => Sym>> = {
  constant: () => elementwise.constant(1),
  sign: (x) => elementwise.sign(x),
  floor: (x) => elementwise.floor(x),
  greater: (x) => elementwise.greater(x, 0),
  greater_equal: (x) => elementwise.greaterEqual(x, 0),
  less: (x) => elementwise.less(x, 0),
  equal: (x) => elementwise.equal(x, 0),
  not_equal: (x) => elementwise.notEqual(x, 0),
  arange: () => gather.arange(2, { dtype: 'f32' }),
  linear_assignment: (x) => elementwise.cast(linearAssignment(reduce.reshape(x, [1, 2])), 'f32'),
  qr_pivoted: (x) => qrPivoted(reduce.reshape(x, [1, 2])).r,
  argmax: (x) => elementwise.cast(reduce.argmax(x), 'f32'),
  rope_table: (x) => ropeTable(elementwise.cast(x, 'i32'), [1]).cos,
  random_uniform: (x) => randomUniform(elementwise.cast(reduce.reshape(x, [2]), 'u32'), 0, [2]),
  random_normal: (x) => randomNormal(elementwise.cast(reduce.reshape(x, [2]), 'u32'), 0, [2]),
  sample_token: (x) => sampleToken(reduce.reshape(x, [1, 2]), samplingOf()).logProbability,
  cache_update: (x) => index.cacheUpdate(read(zeros([1, 4, 1, 2])), reduce.reshape(x, [1, 1, 1, 2]), ints([0])),
  attention_cached: (x) =>
    attentionCached(reduce.reshape(x, [1, 1, 1, 2]), read(zeros([1, 4, 1, 2])), read(zeros([1, 4, 1, 2])), ints([0])),
  paged_cache_update: (x) => pagedCacheUpdate(read(zeros([1, 4, 1, 2])), reduce.reshape(x, [1, 1, 2]), ints([0])),
  paged_attention: (x) =>
    pagedAttention(reduce.reshape(x, [1, 1, 2]), read(zeros([1, 4, 1, 2])), read(zeros([1, 4, 1, 2])), {
      tables: ints([0], [1, 1]),
      starts: ints([0, 1]),
      positions: ints([0]),
    }),
  grouped_low_rank: (x) =>
    groupedLowRank(reduce.reshape(x, [1, 2]), reduce.reshape(x, [1, 2]), read(zeros([1, 2])), read(zeros([1, 2])), {
      ranges: ints([0, 1], [1, 2]),
      scales: read(tensor([1])),
    }),
}

const samplingOf = () => ({
  draws: read(tensor(new Uint32Array(4), [1, 4])),
  settings: read(tensor([1, 0, 1, 0, 1, 0, 0], [1, 7])),
})

for (const name of operators.keys()) {
  // The gradient of another operator, which has cases of its own.
  if (operators.get(name)!.vjp === 'decomposition') continue
  const differentiable = cases[name]
  const refused = refusals[name]
  if (differentiable)
    for (const [i, spec] of differentiable.entries())
      test(`${name} (${i + 1}): gradient equals the numerical derivative`, async (t) => {
        const single = directional(spec, i + 1, 'f32')
        const numeric = await derivative(single.value, 1e-2)
        near(t, (await single.along(0)).first, numeric, 2e-3)
        if (spec.rounds) return
        const double = directional(spec, i + 1, 'f64')
        const { first, second } = await double.along(0)
        near(t, first, await derivative(double.value, 1e-3), 1e-8)
        near(t, second, await derivative(async (e) => (await double.along(e)).mixed, 1e-3), 1e-8)
        const rounded = await single.along(0)
        near(t, rounded.first, first, 1e-5)
        near(t, rounded.second, second, 1e-4)
      })
  else if (refused)
    test(`${name}: has no derivative and does not pretend to`, async (t) => {
      const step = program(async (x) => gradients(reduce.sum(refused(x!)), [x!]))
      const x = tensor([0.5, 1.5])
      if (['constant', 'arange', 'argmax', 'linear_assignment'].includes(name))
        return void t.deepEqual(await (await step(x))[0]!.data(), new Float32Array(2))
      await t.throwsAsync(step(x), { code: 'ERR_HEDDLE_GRAD', message: new RegExp(name) })
    })
  else test(`${name}: has a gradient case`, (t) => t.fail(`add ${name} to the cases of this file`))
}

test('gradients of gradients: d²/dx² of Σ x⁴ is 12 x²', async (t) => {
  const step = program(async (x) => {
    const [first] = await gradients(reduce.sum(elementwise.square(elementwise.square(x!))), [x!])
    return gradients(reduce.sum(first!), [x!])
  })
  const result = await step(tensor([1, -2, 0.5]))
  t.deepEqual([...(await result[0]!.data())], [12, 48, 3])
})

test('a value the loss does not depend on gets zeros', async (t) => {
  const step = program(async (x, y) => gradients(reduce.sum(x!), [y!]))
  const [dy] = await step(tensor([1, 2]), tensor([3, 4, 5]))
  t.deepEqual([...(await dy!.data())], [0, 0, 0])
})

test('assign inside a program updates a tensor that gradients were taken of', async (t) => {
  const w = tensor([1, 2, 3])
  const step = program(async () => {
    const [dw] = await gradients(reduce.sum(elementwise.square(read(w))), [read(w)])
    assign(w, elementwise.sub(read(w), elementwise.mul(0.25, dw!)))
    return []
  })
  await step()
  await step()
  t.deepEqual([...(await w.data())], [0.25, 0.5, 0.75])
})

function near(t: ExecutionContext, got: number, expected: number, tolerance: number): void {
  const error = Math.abs(got - expected) / Math.max(1, Math.abs(expected))
  t.true(error < tolerance, `${got} instead of ${expected}: off by ${error.toExponential(1)}`)
}

interface Directional {
  /** L(x + e v), with L = Σ weights · fn². */
  readonly value: (e: number) => Promise<number>
  /** At x + e v: v · ∇L, w · ∇L and v · ∇²L w. */
  readonly along: (e: number) => Promise<Readonly<Record<'first' | 'mixed' | 'second', number>>>
}

/** The loss of a case along a line x + e v, for seeded x, v and w. */
function directional(spec: Case, seed: number, dtype: 'f32' | 'f64'): Directional {
  const draw = (shape: readonly number[], at: number, [a, b]: readonly [number, number]): Tensor => {
    const values = Float64Array.from(randomNumbers(elementCount(shape), at), (value) => a + ((value + 1) / 2) * (b - a))
    return tensor(dtype === 'f64' ? values : Float32Array.from(values), shape)
  }
  const n = spec.shapes.length
  const points = spec.shapes.map((shape, i) => draw(shape, seed * 100 + i, spec.range ?? [-1, 1]))
  const [directions, others] = [50, 80].map((at) =>
    spec.shapes.map((shape, i) => draw(shape, seed * 100 + at + i, [-1, 1])),
  )
  const dot = (a: readonly Sym[], b: readonly Sym[]): Sym =>
    a.map((x, i) => reduce.sum(elementwise.mul(x, b[i]!))).reduce((x, y) => elementwise.add(x, y))
  const at = async (values: readonly Sym[]) => {
    const [x, v, w, e] = [values.slice(0, n), values.slice(n, 2 * n), values.slice(2 * n, 3 * n), values[3 * n]!]
    const place = x.map((value, i) => elementwise.add(value, elementwise.mul(e, v[i]!)))
    const result = await spec.fn(...place)
    const weights = given(randomNumbers(elementCount(result.shape), 7), result.shape, result)
    return { place, v, w, loss: reduce.sum(elementwise.mul(weights, elementwise.square(result))) }
  }
  const value = program(async (...values) => (await at(values)).loss)
  const along = program(async (...values) => {
    const { place, v, w, loss } = await at(values)
    const first = await gradients(loss, place)
    return { first: dot(first, v), mixed: dot(first, w), second: dot(await vjp(first, w, place), v) }
  })
  const inputs = (e: number) => [...points, ...directions!, ...others!, tensor([e], [], dtype)]
  return {
    value: async (e) => (await value(...inputs(e))).item(),
    along: async (e) => {
      const { first, mixed, second } = await along(...inputs(e))
      return { first: first.item(), mixed: mixed.item(), second: second.item() }
    },
  }
}

/** f'(0) by Richardson's extrapolation of two central differences: the error is of fourth order in h. */
async function derivative(f: (e: number) => Promise<number>, h: number): Promise<number> {
  const central = async (e: number) => ((await f(e)) - (await f(-e))) / (2 * e)
  return (4 * (await central(h / 2)) - (await central(h))) / 3
}

test('stop_gradient: the value passes, its gradient does not', async (t) => {
  const x = tensor([1, 2, 3])
  const step = program(async () => {
    const value = read(x)
    const loss = reduce.sum(elementwise.mul(value, stopGradient(value)))
    return { loss, gradient: (await gradients(loss, [value]))[0]! }
  })
  const { loss, gradient } = await step()
  t.is(loss.item(), 14)
  t.deepEqual([...((await gradient.data()) as Float32Array)], [1, 2, 3])
})
