/** For every kernel of the core, correct instructions of random size: what tests of hostile ones start from. */
import type { DType } from '../../lib/tensor/dtype.js'
import type { Attribute } from './instruction_list.js'

export interface Operand {
  readonly dtype: DType
  readonly shape: readonly number[]
}

export interface Call {
  readonly inputs: (Operand | null)[]
  readonly outputs: (Operand | null)[]
  readonly attributes: (readonly [string, Attribute])[]
}

export interface Random {
  /** An integer in [0, limit). */
  readonly below: (limit: number) => number
  readonly pick: <T>(values: readonly T[]) => T
}

const f32 = (...shape: readonly number[]): Operand => ({ dtype: 'f32', shape })
const i32 = (...shape: readonly number[]): Operand => ({ dtype: 'i32', shape })
const u32 = (...shape: readonly number[]): Operand => ({ dtype: 'u32', shape })

const size = (random: Random): number => random.pick([1, 2, 4, 7, 16, 33, 65, 130])
const small = (random: Random): number => 1 + random.below(4)
const flag = (random: Random): number => random.below(2)
const maybe = (random: Random, operand: Operand): Operand | null => (flag(random) ? operand : null)

const microOps: readonly (readonly [string, number])[] = [
  ...['neg', 'abs', 'sign', 'exp', 'log', 'sqrt', 'rsqrt', 'reciprocal', 'square', 'sin', 'cos', 'tanh', 'sigmoid'].map(
    (op) => [op, 1] as const,
  ),
  ...['silu', 'relu', 'erf', 'softplus', 'floor'].map((op) => [op, 1] as const),
  ...['add', 'sub', 'mul', 'div', 'maximum', 'minimum', 'pow', 'greater', 'greater_equal', 'less', 'equal'].map(
    (op) => [op, 2] as const,
  ),
  ['not_equal', 2],
  ['select', 3],
  ['constant', 0],
]

function elementwise(random: Random): Call {
  const shape = [small(random), size(random)]
  const broadcast = [shape, [shape[1]!], [shape[0]!, 1], []]
  const inputs = Array.from({ length: small(random) }, () => f32(...random.pick(broadcast)))
  const ops: string[] = []
  const operands: number[] = []
  const constants: number[] = []
  for (let k = 0; k < 1 + random.below(6); ++k) {
    const [op, arity] = random.pick(microOps)
    for (let i = 0; i < arity; ++i) operands.push(random.below(inputs.length + k))
    if (op === 'constant') constants.push(0.5 + k)
    ops.push(op)
  }
  const outputs = Array.from({ length: 1 + random.below(2) }, (): Operand => {
    return { dtype: random.pick(['f32', 'f32', 'bf16', 'f16', 'i32', 'u32', 'u8']), shape }
  })
  const results = outputs.map(() => random.below(inputs.length + ops.length))
  return {
    inputs,
    outputs,
    attributes: [
      ['ops', ops],
      ['operands', operands],
      ['constants', constants],
      ['results', results],
    ],
  }
}

function reduce(random: Random): Call {
  const shape = [small(random), size(random), size(random)]
  const axes = [0, 1, 2].filter(() => flag(random))
  const kept = shape.filter((_, axis) => !axes.includes(axis))
  return { inputs: [f32(...shape)], outputs: [f32(...kept)], attributes: [['axes', axes]] }
}

function matmul(random: Random): Call {
  const [m, n, k] = [size(random), size(random), size(random)]
  const [transposeA, transposeB] = [flag(random), flag(random)]
  const leading = flag(random) ? [small(random)] : []
  const matrix = (rows: number, cols: number, turned: number) => (turned ? [cols, rows] : [rows, cols])
  const dtype = (): DType => random.pick(['f32', 'f32', 'bf16'])
  const a = { dtype: dtype(), shape: [...leading, ...matrix(m, k, transposeA)] }
  const b = { dtype: dtype(), shape: [...(flag(random) ? leading : []), ...matrix(k, n, transposeB)] }
  const c = random.pick([null, f32(n), f32(...leading, m, n)])
  return {
    inputs: [a, b, c],
    outputs: [f32(...leading, m, n)],
    attributes: [
      ['transpose_a', transposeA],
      ['transpose_b', transposeB],
      ['alpha', 0.5],
      ['precision', random.pick(['f32', 'bf16'])],
    ],
  }
}

function lowRankMatmul(random: Random): Call {
  const [m, n, k, r] = [random.pick([size(random), 520]), size(random), size(random), small(random)]
  const [transposeB, transposeU, transposeV] = [flag(random), flag(random), flag(random)]
  const matrix = (rows: number, cols: number, turned: number) => f32(...(turned ? [cols, rows] : [rows, cols]))
  const operands = [f32(m, k), matrix(k, n, transposeB), matrix(k, r, transposeU), matrix(r, n, transposeV)]
  return {
    inputs: [...operands, random.pick([null, f32(m, n)])],
    outputs: [f32(m, n), f32(m, r)],
    attributes: [
      ['transpose_b', transposeB],
      ['transpose_u', transposeU],
      ['transpose_v', transposeV],
      ['alpha', 0.5],
      ['alpha_z', 2],
      ['precision', random.pick(['f32', 'bf16'])],
    ],
  }
}

/** Inputs x, weights and output y of a chain of block-wise products, or what its gradient takes and gives. */
function chainCall(
  random: Random,
  [x, y]: readonly [Operand, Operand],
  weights: readonly Operand[],
  { gradient, order }: { readonly gradient: boolean; readonly order?: readonly number[] },
): Call {
  const attributes: [string, Attribute][] = [['precision', random.pick(['f32', 'bf16'])]]
  if (order) attributes.push(['order', [...order]])
  if (!gradient) return { inputs: [x, ...weights], outputs: [y], attributes }
  const outputs = [x, ...weights].map((operand) => maybe(random, { ...operand }))
  return { inputs: [x, ...weights, y], outputs, attributes }
}

const blockDiagonal =
  (gradient: boolean) =>
  (random: Random): Call => {
    const [rows, blocks, out, inner] = [size(random), small(random), size(random), size(random)]
    return chainCall(random, [f32(rows, blocks * inner), f32(rows, blocks * out)], [f32(blocks, out, inner)], {
      gradient,
    })
  }

const monarch =
  (gradient: boolean) =>
  (random: Random): Call => {
    const [rows, blocks, phases, unit] = [size(random), small(random), small(random), small(random)]
    const [inner, out] = [1 + random.below(20), 1 + random.below(20)]
    const w1 = f32(blocks, phases * unit, inner)
    const w2 = f32(phases, out, blocks * unit)
    const x = f32(rows, blocks * inner - random.below(blocks))
    return chainCall(random, [x, f32(rows, phases * out - random.below(phases))], [w1, w2], { gradient })
  }

const kronecker =
  (gradient: boolean) =>
  (random: Random): Call => {
    const terms = small(random)
    const factors = Array.from({ length: small(random) }, () => f32(terms, small(random), small(random)))
    const sizeOf = (axis: number): number => factors.reduce((product, { shape }) => product * shape[axis]!, 1)
    const rows = size(random)
    const order = [...factors.keys()].reverse()
    return chainCall(random, [f32(rows, sizeOf(2)), f32(rows, sizeOf(1))], factors, { gradient, order })
  }

function attentionOperands(random: Random, square: boolean) {
  const [b, t, kvHeads, group] = [small(random), size(random), small(random), small(random)]
  const d = random.pick([1, 3, 8, 16, 20, 64])
  const s = square ? t : size(random)
  return { b, t, s, q: [b, t, kvHeads * group, d], k: [b, s, kvHeads, d], statistic: [b, kvHeads * group, t] }
}

function attention(random: Random): Call {
  const square = flag(random) === 1
  const { b, s, q, k, statistic } = attentionOperands(random, square)
  const causal = square ? flag(random) : 0
  return {
    inputs: [f32(...q), f32(...k), f32(...k), square ? maybe(random, i32(b, s)) : null],
    outputs: [f32(...q), maybe(random, f32(...statistic))],
    attributes: [['causal', causal], ['scale', 0.25], ...bends(random, causal === 1)],
  }
}

/** A window, where there may be one, and a cap on the scores. */
const bends = (random: Random, windowed: boolean): Call['attributes'] => [
  ['softcap', random.pick([0, 2.5])],
  ['window', windowed ? random.pick([0, 1, 7, 100]) : 0],
]

function attentionVjp(random: Random): Call {
  const forward = attention(random)
  const [q, k] = [forward.inputs[0]!, forward.inputs[1]!]
  const statistic = f32(q.shape[0]!, q.shape[2]!, q.shape[1]!)
  return {
    inputs: [...forward.inputs, { ...q }, statistic, { ...q }],
    outputs: [maybe(random, { ...q }), maybe(random, { ...k }), maybe(random, { ...k })],
    attributes: forward.attributes,
  }
}

function attentionCached(random: Random): Call {
  const { b, q, k } = attentionOperands(random, false)
  const cache = { dtype: random.pick<DType>(['f32', 'bf16']), shape: k }
  return {
    inputs: [f32(...q), cache, { ...cache }, i32(b)],
    outputs: [f32(...q)],
    attributes: [['scale', 0.25], ...bends(random, true)],
  }
}

function pagedAttention(random: Random): Call {
  const [n, s, p, pages, page] = [small(random), small(random), small(random), 4 + small(random), 4 + small(random)]
  const [kvHeads, group, d] = [small(random), small(random), random.pick([1, 3, 8, 16, 20, 64])]
  const pool = { dtype: random.pick<DType>(['f32', 'bf16']), shape: [pages, page, kvHeads, d] }
  const q = [n, kvHeads * group, d]
  return {
    inputs: [f32(...q), pool, { ...pool }, i32(s, p), i32(s + 1), i32(s)],
    outputs: [f32(...q)],
    attributes: [['scale', 0.25], ...bends(random, true)],
  }
}

function groupedLowRank(random: Random): Call {
  const [n, rows, inner, out] = [size(random), 4 + size(random), size(random), size(random)]
  const pool = (width: number): Operand => ({ dtype: random.pick<DType>(['f32', 'bf16']), shape: [rows, width] })
  return plain([f32(n, out), f32(n, inner), pool(inner), pool(out), i32(n, 2), f32(n)], [f32(n, out)])
}

function crossEntropy(random: Random): Call {
  const [n, d, v] = [size(random), size(random), random.pick([4, 16, 130, 700])]
  return {
    inputs: [f32(n, d), f32(v, d), i32(n)],
    outputs: [f32(n), maybe(random, f32(n)), maybe(random, f32(n, d))],
    attributes: [['precision', random.pick(['f32', 'bf16'])]],
  }
}

function crossEntropyVjp(random: Random): Call {
  const { inputs, attributes } = crossEntropy(random)
  const n = inputs[2]!.shape[0]!
  return {
    inputs: [...inputs, f32(n), f32(n)],
    outputs: [maybe(random, { ...inputs[0]! }), maybe(random, { ...inputs[1]! })],
    attributes,
  }
}

function slice(random: Random, turned: boolean): Call {
  const whole = [small(random), 4 + size(random)]
  const start = [0, random.below(4)]
  const step = [1, small(random)]
  const part = [whole[0]!, Math.ceil((whole[1]! - start[1]!) / step[1]!)]
  const [x, y] = turned ? [part, whole] : [whole, part]
  return {
    inputs: [f32(...x)],
    outputs: [f32(...y)],
    attributes: [
      ['start', start],
      ['step', step],
    ],
  }
}

const convolutionOf =
  (pass: 'forward' | 'input' | 'weight') =>
  (random: Random): Call => {
    const pick = () => 1 + random.below(3)
    const [groups, kh, kw, stride, dilation, padding] = [pick(), pick(), pick(), pick(), pick(), random.below(2)]
    const [n, perGroup, out] = [small(random), random.pick([1, 2, 17]), groups * random.pick([1, 2, 16])]
    const [h, width] = [kh * dilation + random.below(9), kw * dilation + random.below(9)]
    const along = (length: number, k: number) => {
      return Math.floor((length + 2 * padding - dilation * (k - 1) - 1) / stride) + 1
    }
    const x = f32(n, groups * perGroup, h, width)
    const w = f32(out, perGroup, kh, kw)
    const y = f32(n, out, along(h, kh), along(width, kw))
    return {
      inputs: pass === 'forward' ? [x, w, maybe(random, f32(out))] : pass === 'input' ? [y, w] : [x, y],
      outputs: [pass === 'forward' ? y : pass === 'input' ? x : w],
      attributes: [
        ['stride', [stride, stride]],
        ['padding', [padding, padding, padding, padding]],
        ['dilation', [dilation, dilation]],
        ['groups', groups],
      ],
    }
  }

/** A support of `count` entries in [rows, columns], its index operands, and those of the other orientation. */
const supportOperands = (rows: number, columns: number, count: number, order: Operand | null): (Operand | null)[] => [
  i32(rows + 1),
  i32(count),
  order,
  i32(columns + 1),
  i32(count),
  null,
]

/** [rows, columns, entries], mostly small enough for pointers drawn below 4 to be right now and then. */
const supportSizes = (random: Random): [number, number, number] => [
  random.pick([1, 1, 1, size(random)]),
  random.pick([4, size(random)]),
  random.pick([1, 2, 3, size(random)]),
]

const sparseProduct =
  (sampled: boolean) =>
  (random: Random): Call => {
    const [rows, columns, count] = supportSizes(random)
    const n = size(random)
    const right = flag(random)
    const matrix = (side: number) => (right ? f32(n, side) : f32(side, n))
    const indices = supportOperands(rows, columns, count, sampled ? null : maybe(random, i32(count)))
    return {
      inputs: [...(sampled ? [matrix(rows)] : [f32(count)]), matrix(columns), ...indices],
      outputs: [sampled ? f32(count) : matrix(rows)],
      attributes: [['right', right]],
    }
  }

const scanAttributes = (random: Random): [string, Attribute][] => [
  ['axis', random.below(3)],
  ['reverse', flag(random)],
]

const plain = (inputs: (Operand | null)[], outputs: Operand[]): Call => ({ inputs, outputs, attributes: [] })

/** The same call in f64, every other time. */
const inEither =
  (call: (random: Random) => Call) =>
  (random: Random): Call => {
    const { inputs, outputs, attributes } = call(random)
    if (flag(random)) return { inputs, outputs, attributes }
    const wide = (operand: Operand | null): Operand | null =>
      operand && (operand.dtype === 'f32' || operand.dtype === 'bf16') ? { ...operand, dtype: 'f64' } : operand
    return {
      inputs: inputs.map(wide),
      outputs: outputs.map(wide),
      attributes: attributes.map(([name, value]) => [name, name === 'precision' ? 'f32' : value]),
    }
  }

/** Leading dimensions and sizes of a batch of matrices. */
function matrices(random: Random) {
  const leading = random.pick([[], [small(random)], [2, random.below(3)]])
  const [m, n] = [size(random), size(random)]
  return { leading, m, n, k: Math.min(m, n) }
}

function svdCall(random: Random): Call {
  const { leading, m, n, k } = matrices(random)
  const full = flag(random)
  const u = f32(...leading, m, full ? m : k)
  const vh = f32(...leading, full ? n : k, n)
  return {
    inputs: [f32(...leading, m, n)],
    outputs: [maybe(random, u), f32(...leading, k), maybe(random, vh)],
    attributes: [['full', full]],
  }
}

function qrCall(random: Random): Call {
  const { leading, m, n, k } = matrices(random)
  const full = flag(random)
  const inner = full ? m : k
  return {
    inputs: [f32(...leading, m, n)],
    outputs: [maybe(random, f32(...leading, m, inner)), maybe(random, f32(...leading, inner, n))],
    attributes: [['full', full]],
  }
}

function solveTriangular(random: Random): Call {
  const { leading, m, n } = matrices(random)
  const x = f32(...leading, m, n)
  return {
    inputs: [f32(...leading, m, m), x],
    outputs: [{ ...x }],
    attributes: [
      ['upper', flag(random)],
      ['transpose', flag(random)],
      ['unit', flag(random)],
    ],
  }
}

export const kernels: Readonly<Record<string, (random: Random) => Call>> = {
  elementwise: inEither(elementwise),
  reduce_sum: inEither(reduce),
  reduce_max: inEither(reduce),
  argmax: inEither((random) => {
    const [n, v] = [size(random), size(random)]
    return plain([f32(n, v)], [i32(n)])
  }),
  gather_rows: (random) => {
    const [n, d] = [size(random), size(random)]
    return plain([f32(4 + size(random), d), i32(n, 2)], [f32(n, 2, d)])
  },
  scatter_add_rows: inEither((random) => {
    const [n, d] = [size(random), size(random)]
    return plain([i32(n), f32(n, d)], [f32(4 + size(random), d)])
  }),
  gather_last: (random) => {
    const n = size(random)
    return plain([f32(n, 4 + size(random)), i32(n)], [f32(n)])
  },
  scatter_last: (random) => {
    const n = size(random)
    return plain([i32(n), f32(n)], [f32(n, 4 + size(random))])
  },
  slice: (random) => slice(random, false),
  slice_vjp: (random) => slice(random, true),
  concat: (random) => {
    const [n, a, b] = [size(random), size(random), size(random)]
    return { inputs: [f32(n, a), f32(n, b)], outputs: [f32(n, a + b)], attributes: [['axis', 1]] }
  },
  transpose: (random) => {
    const shape = [small(random), size(random), size(random)]
    const permutation = random.pick([
      [2, 1, 0],
      [0, 2, 1],
      [1, 2, 0],
    ])
    const turned = permutation.map((axis) => shape[axis]!)
    return { inputs: [f32(...shape)], outputs: [f32(...turned)], attributes: [['permutation', permutation]] }
  },
  broadcast_to: (random) => {
    const [n, d] = [size(random), size(random)]
    return plain([f32(...random.pick([[d], [n, 1], [1], []]))], [f32(n, d)])
  },
  copy: (random) => {
    const shape = [size(random), size(random)]
    return plain([f32(...shape)], [f32(...shape)])
  },
  cache_update: (random) => {
    const [b, t, h, d] = [small(random), small(random), small(random), size(random)]
    const cache: Operand = { dtype: random.pick(['f32', 'bf16']), shape: [b, t + size(random), h, d] }
    return plain([cache, f32(b, t, h, d), i32(b)], [cache])
  },
  paged_cache_update: (random) => {
    const [n, page, h, d] = [small(random), 1 + size(random), small(random), size(random)]
    const cache: Operand = { dtype: random.pick(['f32', 'bf16']), shape: [4, page, h, d] }
    return plain([cache, f32(n, h, d), i32(n)], [cache])
  },
  matmul: inEither(matmul),
  low_rank_matmul: lowRankMatmul,
  linear_cross_entropy: crossEntropy,
  linear_cross_entropy_vjp: crossEntropyVjp,
  rms_norm: (random) => {
    const [n, d] = [size(random), size(random)]
    return { inputs: [f32(n, d), f32(d)], outputs: [f32(n, d), maybe(random, f32(n))], attributes: [['eps', 1e-5]] }
  },
  rms_norm_vjp: (random) => {
    const [n, d] = [size(random), size(random)]
    return plain([f32(n, d), f32(d), f32(n), f32(n, d)], [f32(n, d), f32(d)])
  },
  conv2d: convolutionOf('forward'),
  conv2d_input_vjp: convolutionOf('input'),
  conv2d_weight_vjp: convolutionOf('weight'),
  gather: (random) => {
    const [n, d, k] = [small(random), size(random), size(random)]
    return {
      inputs: [f32(n, 4 + small(random), d), i32(n, k, d)],
      outputs: [f32(n, k, d)],
      attributes: [['axis', 1]],
    }
  },
  scatter_add: (random) => {
    const [n, d, k] = [small(random), size(random), size(random)]
    return {
      inputs: [i32(n, k, d), f32(n, k, d)],
      outputs: [f32(n, 4 + small(random), d)],
      attributes: [['axis', 1]],
    }
  },
  flip: (random) => {
    const x = f32(small(random), size(random), size(random))
    return { inputs: [x], outputs: [{ ...x }], attributes: [['axis', random.below(3)]] }
  },
  arange: (random) => ({
    inputs: [],
    outputs: [random.pick([f32, i32])(size(random))],
    attributes: [
      ['start', 0.5],
      ['step', 2],
    ],
  }),
  sort: (random) => {
    const shape = [small(random), size(random)]
    return {
      inputs: [f32(...shape)],
      outputs: [maybe(random, f32(...shape)), maybe(random, i32(...shape))],
      attributes: [['descending', flag(random)]],
    }
  },
  top_k: (random) => {
    const [n, d] = [small(random), size(random)]
    const k = random.below(d + 1)
    return {
      inputs: [f32(n, d)],
      outputs: [maybe(random, f32(n, k)), maybe(random, i32(n, k))],
      attributes: [
        ['k', k],
        ['descending', flag(random)],
      ],
    }
  },
  spmm: inEither(sparseProduct(false)),
  sddmm: inEither(sparseProduct(true)),
  sparse_add: inEither((random) => {
    const [rows, columns, count] = supportSizes(random)
    return {
      inputs: [f32(count), maybe(random, f32(rows, columns)), i32(rows + 1), i32(count), null],
      outputs: [f32(rows, columns)],
      attributes: [['columns', columns]],
    }
  }),
  sparse_gather: inEither((random) => {
    const [rows, columns, count] = supportSizes(random)
    return plain([f32(rows, columns), i32(rows + 1), i32(count), null], [f32(count)])
  }),
  cumsum: (random) => {
    const x = f32(small(random), size(random), size(random))
    return { inputs: [x], outputs: [{ ...x }], attributes: scanAttributes(random) }
  },
  logcumsumexp: (random) => {
    const x = f32(small(random), size(random), size(random))
    return { inputs: [x], outputs: [{ ...x }], attributes: scanAttributes(random) }
  },
  linear_scan: (random) => {
    const [n, t, d] = [small(random), size(random), size(random)]
    const attributes = scanAttributes(random)
    const state = [n, t, d].filter((_, axis) => axis !== attributes[0]![1])
    return {
      inputs: [f32(n, t, d), f32(n, t, d), maybe(random, f32(...state))],
      outputs: [f32(n, t, d)],
      attributes,
    }
  },
  max_pool2d: (random) => {
    const [n, k, stride, h, w] = [small(random), small(random), small(random), size(random), size(random)]
    const padding = Math.floor(k / 2)
    const along = (length: number) => Math.floor((length + 2 * padding - k) / stride) + 1
    const [oh, ow] = [along(h + 3), along(w + 3)]
    return {
      inputs: [f32(n, 2, h + 3, w + 3)],
      outputs: [f32(n, 2, oh, ow), maybe(random, i32(n, 2, oh, ow))],
      attributes: [
        ['size', [k, k]],
        ['stride', [stride, stride]],
        ['padding', [padding, padding, padding, padding]],
        ['dilation', [1, 1]],
      ],
    }
  },
  resample: (random) => {
    const [n, d, rows] = [small(random), size(random), size(random)]
    const x = f32(n, 4, d)
    const columns = Array.from({ length: rows * 2 }, () => random.below(4))
    return {
      inputs: [x],
      outputs: [f32(n, rows, d)],
      attributes: [
        ['axis', 1],
        ['offsets', Array.from({ length: rows + 1 }, (_, i) => 2 * i)],
        ['columns', columns],
        ['weights', columns.map((column) => column + 0.5)],
      ],
    }
  },
  layer_norm: (random) => {
    const [n, d] = [size(random), size(random)]
    return {
      inputs: [f32(n, d), maybe(random, f32(d)), maybe(random, f32(d))],
      outputs: [f32(n, d), maybe(random, f32(n)), maybe(random, f32(n))],
      attributes: [['eps', 1e-5]],
    }
  },
  layer_norm_vjp: (random) => {
    const [n, d] = [size(random), size(random)]
    return {
      inputs: [f32(n, d), maybe(random, f32(d)), f32(n), f32(n), f32(n, d)],
      outputs: [maybe(random, f32(n, d)), maybe(random, f32(d)), maybe(random, f32(d))],
      attributes: [],
    }
  },
  softmax: (random) => {
    const shape = [size(random), size(random)]
    return plain([f32(...shape)], [f32(...shape)])
  },
  softmax_vjp: (random) => {
    const shape = [size(random), size(random)]
    return plain([f32(...shape), f32(...shape)], [f32(...shape)])
  },
  log_sum_exp: (random) => {
    const [n, d] = [size(random), size(random)]
    return plain([f32(n, d)], [f32(n)])
  },
  rope_table: (random) => {
    const shape = [small(random), size(random)]
    const frequencies = Array.from({ length: small(random) }, (_, i) => 0.5 / (i + 1))
    const table = f32(...shape, frequencies.length)
    return {
      inputs: [i32(...shape)],
      outputs: [table, { ...table }],
      attributes: [
        ['inverse_frequencies', frequencies],
        ['scale', 0.5],
      ],
    }
  },
  rope: (random) => {
    const [b, t, h, half] = [small(random), size(random), small(random), size(random)]
    const table = f32(random.pick([1, b]), t, half)
    const x = f32(b, t, h, 2 * half + random.pick([0, 3]))
    return { inputs: [x, table, { ...table }], outputs: [{ ...x }], attributes: [['inverse', flag(random)]] }
  },
  svd: inEither(svdCall),
  qr: inEither(qrCall),
  qr_pivoted: inEither((random) => {
    const { leading, m, n, k } = matrices(random)
    return plain([f32(...leading, m, n)], [f32(...leading, m, k), f32(...leading, k, n), i32(...leading, n)])
  }),
  eigh: inEither((random) => {
    const { leading, n } = matrices(random)
    return plain([f32(...leading, n, n)], [f32(...leading, n), f32(...leading, n, n)])
  }),
  lu: inEither((random) => {
    const { leading, m, n, k } = matrices(random)
    return plain([f32(...leading, m, n)], [i32(...leading, m), f32(...leading, m, k), f32(...leading, k, n)])
  }),
  cholesky: inEither((random) => {
    const { leading, n } = matrices(random)
    return plain([f32(...leading, n, n)], [f32(...leading, n, n)])
  }),
  solve: inEither((random) => {
    const { leading, m, n } = matrices(random)
    return plain([f32(...leading, m, m), f32(...leading, m, n)], [f32(...leading, m, n)])
  }),
  linear_assignment: inEither((random) => {
    const { leading, m, n } = matrices(random)
    return plain([f32(...leading, m, n)], [i32(...leading, m)])
  }),
  walsh_hadamard: inEither((random) => {
    const shape = [small(random), 2 ** random.below(8)]
    return plain([f32(...shape)], [f32(...shape)])
  }),
  segment_max: inEither((random) => {
    const [n, d, segments] = [size(random), size(random), 4 + small(random)]
    return { inputs: [i32(n), f32(n, d)], outputs: [f32(segments, d)], attributes: [['segments', segments]] }
  }),
  solve_triangular: inEither(solveTriangular),
  block_diagonal: blockDiagonal(false),
  block_diagonal_vjp: blockDiagonal(true),
  monarch: monarch(false),
  monarch_vjp: monarch(true),
  kronecker: kronecker(false),
  kronecker_vjp: kronecker(true),
  attention,
  attention_vjp: attentionVjp,
  attention_cached: attentionCached,
  paged_attention: pagedAttention,
  grouped_low_rank: groupedLowRank,
  random_uniform: (random) => ({
    inputs: [u32(2)],
    outputs: [f32(size(random), size(random))],
    attributes: [['stream', small(random)]],
  }),
  random_normal: (random) => ({
    inputs: [u32(2)],
    outputs: [f32(size(random), size(random))],
    attributes: [['stream', small(random)]],
  }),
  sample_token: (random) => {
    const [b, v] = [small(random), size(random)]
    const [history, top] = [flag(random) === 1, 1 + random.below(Math.min(v, 5))]
    const ranked = flag(random) === 1
    return {
      inputs: [
        f32(b, v),
        u32(b, 4),
        f32(b, 7),
        maybe(random, flag(random) === 1 ? f32(v) : f32(b, v)),
        maybe(random, u32(b, Math.ceil(v / 32))),
        history ? i32(b, small(random)) : null,
        history ? i32(b) : null,
      ],
      outputs: [i32(b), maybe(random, f32(b)), ranked ? i32(b, top) : null, ranked ? f32(b, top) : null],
      attributes: [['top', top]],
    }
  },
}
